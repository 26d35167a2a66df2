"""Tuning: streamed gradients equal plain ones, nothing changes before the first step, and the best step is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calibration.errors import TooShortError
from calibration.windows import build_windows
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.grid import QuantizedWeight, Scheme, split_groups
from compress.losses import LogitSource, distill_loss
from compress.model.blocks import BlockModel, load_all
from compress.model.shapes import linear_shapes
from compress.quantize.job import quantize_checkpoint
from compress.quantize.methods.rtn import rtn
from compress.quantize.tune.blockwise import relative_error, tune_blocks
from compress.quantize.tune.end_to_end import ScaleTrainer, final_states, tune_model
from compress.quantize.tune.model import TunedWeights, TuneSettings, batches

pytestmark = pytest.mark.slow  # runs whole jobs

GROUP = 32


def make_student(path: Path) -> tuple[Checkpoint, TunedWeights, dict[str, QuantizedWeight]]:
    """A checkpoint rounded to nearest in groups of GROUP, with multipliers for scales, norms and biases."""
    checkpoint = Checkpoint(path)
    shapes = linear_shapes(checkpoint.config)
    codes = {n: rtn(checkpoint.tensor(f"{n}.weight").float(), Scheme(group_size=GROUP, sym=False)) for n in shapes}
    trained = {n: (out, inn // GROUP) for n, (out, inn) in shapes.items()}
    trained |= {n: t.shape for n, t in checkpoint.tensors.items() if "layernorm" in n or n.endswith(".bias")}
    student = TunedWeights(codes.__getitem__, checkpoint.tensor, trained, torch.float16)
    return checkpoint, student, codes


def make_models(checkpoint: Checkpoint, student: TunedWeights) -> tuple[BlockModel, BlockModel]:
    return BlockModel(checkpoint.config, checkpoint.tensor), BlockModel(checkpoint.config, student.weights)


def ids_of(n: int, seq: int) -> Tensor:
    return torch.randint(0, 128, (n, seq), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["tiny_llama", "tiny_qwen2"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_without_training_the_student_is_the_quantized_checkpoint(path):
    checkpoint, student, codes = make_student(path)
    for name in checkpoint.tensors:
        module = name.removesuffix(".weight")
        stored = codes[module].dequantize() if module in codes else checkpoint.tensor(name)
        assert torch.equal(student.weights(name).float(), stored.float()), name


def test_the_streamed_gradient_is_that_of_the_whole_model(path):
    checkpoint, student, codes = make_student(path)
    teacher, model = make_models(checkpoint, student)
    ids = ids_of(2, 12)
    trainer = ScaleTrainer(teacher, model, student)
    with torch.no_grad(), teacher.embedding_and_norm(head=True), model.embedding_and_norm(head=True):
        loss = trainer.step(ids, final_states_of(teacher, ids), rate=0.0)

    whole = load_all(checkpoint.config, student.weights, torch.float32)
    for parameter in whole.parameters():
        parameter.requires_grad_()
    expected = whole_loss(whole, load_all(checkpoint.config, checkpoint.tensor, torch.float32), ids)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in whole.named_parameters():
        module = name.removesuffix(".weight")
        if module in codes:
            plain = split_groups(parameter.grad * parameter, GROUP).sum(-1)
            torch.testing.assert_close(student.multipliers[module].grad, plain, rtol=1e-3, atol=1e-6)
        elif name in student.multipliers:
            torch.testing.assert_close(student.multipliers[name].grad, parameter.grad * parameter, rtol=1e-3, atol=1e-6)


def final_states_of(teacher: BlockModel, ids: Tensor) -> Tensor:
    states = teacher.embed(ids)
    for index in range(len(teacher)):
        with teacher.block(index) as block:
            states = teacher.runner(block, index)(states)
    return states


def whole_loss(student, teacher, ids: Tensor) -> Tensor:
    sides = [
        LogitSource(model.base_model(ids, use_cache=False).last_hidden_state, model.get_output_embeddings().weight)
        for model in (student, teacher)
    ]
    return distill_loss(*sides, ids, torch.ones_like(ids).bool(), alpha=1.0).loss


def test_tuning_in_a_job_changes_scales_and_norms_and_no_code(path, tmp_path):
    sizes = {"samples": 16, "seq_len": 24, "group_size": 32, "held_out": 2}
    config = QuantizeConfig(method="gptq", format="gptq", error_correction=0, **sizes)
    quantize_checkpoint(path, tmp_path / "plain", config)
    quantize_checkpoint(path, tmp_path / "tuned", replace(config, tune=8))
    plain, tuned = Checkpoint(tmp_path / "plain"), Checkpoint(tmp_path / "tuned")
    kinds = ("scales", "layernorm.weight", "bias")
    changed = {n for n in plain.tensors if not torch.equal(plain.tensor(n), tuned.tensor(n))}
    assert changed and all(name.endswith(kinds) for name in changed)
    result = Checkpoint(tmp_path / "tuned").record["tune"]
    assert result["kl"] < result["kl_before"] and result["step"] > 0
    assert result["kl"] < result["kl_blocks"]


def test_batches_of_any_size_give_the_same_final_states(tiny_qwen2):
    checkpoint, student, _ = make_student(tiny_qwen2)
    teacher, _ = make_models(checkpoint, student)
    ids = ids_of(5, 12)
    torch.testing.assert_close(final_states(teacher, ids, 1), final_states(teacher, ids, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("matmul_dtype", [torch.float32, torch.bfloat16])
def test_tuning_lowers_the_kl_of_windows_it_never_trained_on(path, matmul_dtype):
    checkpoint, student, _ = make_student(path)
    teacher, model = make_models(checkpoint, student)
    settings = TuneSettings(epochs=3, learning_rate=3e-3, matmul_dtype=matmul_dtype)
    result = tune_model(teacher, model, student, ids_of(24, 24), settings)
    assert result.kl < 0.97 * result.kl_before
    assert result.step > 0


def test_the_measured_kl_does_not_depend_on_the_matmul_dtype_of_training(tiny_llama):
    before = []
    for matmul_dtype in (torch.float32, torch.bfloat16):
        checkpoint, student, _ = make_student(tiny_llama)
        settings = TuneSettings(epochs=1, learning_rate=3.0, block_learning_rate=3.0, matmul_dtype=matmul_dtype)
        before.append(tune_model(*make_models(checkpoint, student), student, ids_of(8, 12), settings).kl_before)
    assert before[0] == before[1]


def test_products_in_bfloat16_give_nearly_the_same_gradients(path):
    gradients = []
    for matmul_dtype in (torch.float32, torch.bfloat16):
        checkpoint, student, _ = make_student(path)
        teacher, model = make_models(checkpoint, student)
        ids = ids_of(2, 12)
        with torch.no_grad(), teacher.embedding_and_norm(head=True), model.embedding_and_norm(head=True):
            ScaleTrainer(teacher, model, student, matmul_dtype).step(ids, final_states_of(teacher, ids), rate=0.0)
        gradients.append(torch.cat([value.grad.flatten() for value in student.multipliers.values()]))
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < difference < 0.05


def test_a_learning_rate_that_ruins_the_model_leaves_it_untrained(tiny_llama):
    checkpoint, student, _ = make_student(tiny_llama)
    teacher, model = make_models(checkpoint, student)
    result = tune_model(
        teacher, model, student, ids_of(8, 12), TuneSettings(epochs=1, learning_rate=3.0, block_learning_rate=3.0)
    )
    assert result.step == 0 and result.kl == result.kl_before
    assert all(not value.any() for value in result.multipliers.values())


def advance_by_blocks(path: Path, settings: TuneSettings) -> tuple[TunedWeights, list[dict], Tensor, Tensor]:
    """Train a student block by block. Returns it, the reports, the returned teacher states, and the expected ones."""
    checkpoint, student, _ = make_student(path)
    teacher, model = make_models(checkpoint, student)
    ids, rows = ids_of(24, 24), []
    with teacher.embedding_and_norm(), model.embedding_and_norm():
        states = tune_blocks(teacher, model, student, ids, settings, rows.append)
    return student, rows, states, final_states(teacher, ids, settings.batch)


def test_training_a_block_alone_lowers_its_error(path):
    student, rows, states, expected = advance_by_blocks(path, TuneSettings(block_epochs=2))
    assert all(row["error"] < row["error_before"] for row in rows)
    assert all(value.any() for name, value in student.multipliers.items() if "layers" in name)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


def test_a_block_whose_error_does_not_fall_keeps_its_multipliers(tiny_llama):
    student, rows, _, _ = advance_by_blocks(tiny_llama, TuneSettings(block_learning_rate=3.0))
    assert all(row["error"] == row["error_before"] for row in rows)
    assert not any(value.any() for value in student.multipliers.values())


def test_the_error_of_a_token_is_relative_to_its_size():
    target, output = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    sizes = torch.tensor([1.0, 1e3, 1e-3])[None, :, None]
    torch.testing.assert_close(relative_error(target * sizes, output * sizes), relative_error(target, output))


def test_every_epoch_reads_every_window_once():
    settings = TuneSettings(epochs=3, batch=4)
    order = torch.cat(batches(10, settings, 3)).view(3, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in order)
    assert not torch.equal(order[0], order[1])


def test_tuning_on_one_window_is_refused(tiny_llama):
    checkpoint, student, _ = make_student(tiny_llama)
    teacher, model = make_models(checkpoint, student)
    with pytest.raises(ValueError, match="1 windows are too few"):
        tune_model(teacher, model, student, ids_of(1, 12), TuneSettings())


def test_trained_scales_are_rounded_to_float16(tiny_llama):
    _, student, codes = make_student(tiny_llama)
    module = next(iter(codes))
    student.multipliers[module] += 1e-3 * torch.randn(student.multipliers[module].shape)
    scales = student.packed(module).scales
    assert torch.equal(scales, scales.half().float())
    assert torch.equal(replace(student.packed(module), scales=codes[module].scales).codes, codes[module].codes)


CODES = "model.layers.1.mlp.down_proj.qweight"


def test_held_out_windows_follow_the_calibration_windows(tiny_llama, tmp_path):
    config = QuantizeConfig(method="gptq", format="gptq", samples=16, seq_len=24, group_size=32)
    quantize_checkpoint(tiny_llama, tmp_path / "plain", config)
    quantize_checkpoint(tiny_llama, tmp_path / "tuned", replace(config, tune=1))
    plain, tuned = (Checkpoint(tmp_path / name).tensor(CODES) for name in ("plain", "tuned"))
    assert torch.equal(plain, tuned)
    calibration = Checkpoint(tmp_path / "tuned").record["calibration"]
    assert (calibration["n_samples"], calibration["held_out"]) == (16, 2)


def test_a_short_text_holds_out_its_last_calibration_windows(tiny_llama, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("the quick brown fox jumps over the lazy dog . " * 45)
    count = fitting(tiny_llama, text)
    config = QuantizeConfig(method="gptq", format="gptq", samples=count, seq_len=24, group_size=32)
    codes = []
    for name, changes in (("tuned", {"tune": 1}), ("held", {"held_out": count // 8}), ("all", {})):
        quantize_checkpoint(tiny_llama, tmp_path / name, replace(config, text=(str(text),), **changes))
        codes.append(Checkpoint(tmp_path / name).tensor(CODES))
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[1], codes[2])
    calibration = Checkpoint(tmp_path / "tuned").record["calibration"]
    assert (calibration["n_samples"], calibration["held_out"]) == (count - count // 8, count // 8)


def fitting(path, text) -> int:
    """The number of windows of 24 tokens in a text."""
    with pytest.raises(TooShortError) as caught:
        build_windows([str(text)], Checkpoint(path).tokenizer, n_samples=1000, seq_len=24)
    return caught.value.fitting
