"""The validator on correct checkpoints, for several ranks, and with the source checkpoint."""

import ast
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoint import vllm_models
from compress.checkpoint.check.code_rules import implausible_codes
from compress.checkpoint.check.fidelity_rules import measure_similarity, source_differences
from compress.checkpoint.check.group_sums import GroupSums
from compress.checkpoint.check.run import RULES, check_checkpoint
from compress.checkpoint.check.table import make_table
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import DIGESTS, record_text
from compress.core import pack
from compress.core.errors import QCompressError
from compress.core.grid import QuantizedWeight, Scheme
from compress.model.architectures import ARCHITECTURES
from compress.quantize.methods.rtn import rtn

KINDS = ["plain", "awq", "gptq", "ct", "ct-asym"]
Q = "model.layers.1.self_attn.q_proj"


def broken(path, **options):
    return [row for row in check_checkpoint(path, **options) if row["level"] == "error"]


def rules(path, **options):
    return {row["rule"] for row in broken(path, **options)}


@pytest.fixture
def copied(good, tmp_path):
    """copied(model, kind): a copy that may be changed."""

    def make(model: str, kind: str) -> Path:
        return Path(shutil.copytree(good(model, kind), tmp_path / f"{model}-{kind}"))

    return make


@pytest.mark.parametrize("zero", [8, 7])
def test_negative_scales_belong_to_symmetric_grids_in_every_layout(copied, zero):
    path = copied("llama", "awq")
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{Q}.scales"].neg_()
    tensors[f"{Q}.qzeros"].fill_(0x88888888 - 2**32)
    tensors[f"{Q}.qzeros"][0, 0] += zero - 8
    save_file(tensors, file, metadata={"format": "pt"})
    assert ("T7" in rules(path)) == (zero != 8)


def sums_of(weight: QuantizedWeight) -> GroupSums:
    codes = weight.codes.unflatten(1, (-1, weight.group_size)).long()
    distances = (codes - weight.zeros[..., None]).abs().sum(-1)
    arrays = (tensor.numpy() for tensor in (weight.zeros, codes.sum(-1), distances))
    return GroupSums(*arrays, weight.group_size, weight.bits, weight.sym)


def edit_config(path: Path, **values) -> None:
    config = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps(config))


def edit_tensors(path: Path, **functions) -> None:
    """Replace tensors of Q by suffix, and remove the digests."""
    tensors = load_file(path / "model.safetensors")
    for suffix, function in functions.items():
        tensors[f"{Q}.{suffix}"] = function(tensors[f"{Q}.{suffix}"]).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / DIGESTS).unlink(missing_ok=True)


@pytest.mark.parametrize("model", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_checkpoint_breaks_no_rule(good, model, kind):
    path = good(model, kind)
    assert not broken(path)
    assert not broken(path, tensor_parallel_size=2, source=good(model, "plain") if kind != "plain" else None)
    assert {row["rule"] for row in check_checkpoint(path)} <= {"T4"}


@pytest.mark.parametrize("model_type", sorted({*ARCHITECTURES}))
def test_every_family_passes_as_a_plain_checkpoint(model_type, save_model, tmp_path):
    dtype = torch.bfloat16 if model_type in vllm_models.NO_FLOAT16 else torch.float16
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 128, "head_dim": 16}
    config = AutoConfig.for_model(model_type, **sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    path = save_model(AutoModelForCausalLM.from_config(config), tmp_path / "model", 0, dtype)
    rows = broken(path)
    if model_type == "ministral":  # in transformers, but not in vLLM 0.32
        rows = [row for row in rows if row["rule"] != "C2"]
    assert not rows


def test_a_reformatted_config_or_a_new_model_card_breaks_no_rule(copied):
    path = copied("llama", "awq")
    config = json.loads((path / "config.json").read_text(), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    (path / "config.json").write_text(json.dumps(config, indent=7))
    (path / "README.md").write_text("# A better card")
    assert not broken(path)


def test_tensors_stored_in_another_order_keep_their_digests(copied):
    path = copied("llama", "gptq")
    tensors = load_file(path / "model.safetensors")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert not broken(path)


def test_linears_skipped_by_the_config_may_stay_unquantized(copied):
    path = copied("llama", "awq")
    tensors = load_file(path / "model.safetensors")
    gate_up = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")]
    for module in gate_up:
        for suffix in ("qweight", "qzeros", "scales"):
            del tensors[f"{module}.{suffix}"]
        tensors[f"{module}.weight"] = torch.randn(128, 64).half()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / DIGESTS).unlink()
    assert not broken(path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = gate_up
    edit_config(path, **config)
    assert not broken(path)


def test_a_row_has_tensor_value_expected_and_consequence(copied):
    path = copied("llama", "gptq")
    edit_tensors(path, qzeros=lambda zeros: zeros + 0x11111111)
    row, consequence = broken(path)
    assert row["rule"] == "T5" and row["tensor"] == f"{Q}.qzeros" and consequence["rule"] == "T12"
    assert row["value"] == "0x88888888 at [0, 0]" and row["expected"] == "0x77777777" and "vLLM" in row["consequence"]


def test_a_changed_tensor_is_named(copied):
    path = copied("llama", "awq")
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q}.qzeros"][0, 0] ^= 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (row,) = broken(path)
    assert (row["rule"], row["tensor"]) == ("D1", f"{Q}.qzeros") and "differs from what was written" in row["value"]


def test_malformed_digests_are_an_error_and_not_a_crash(copied):
    path = copied("llama", "awq")
    (path / DIGESTS).write_text("[]")
    assert rules(path) == {"D1", "D2", "D3"}


@pytest.mark.parametrize(
    "text", ["{}", '{"config": 1, "tensors": {}}', '{"config": {}, "tensors": {}}'], ids=["empty", "number", "no names"]
)
def test_empty_digests_do_not_pass(copied, text):
    path = copied("llama", "awq")
    (path / DIGESTS).write_text(text)
    assert rules(path) & {"D1", "D2"}


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, set()), (2, set()), (4, {"TP"}), (3, {"TP"})], ids=["one", "two", "four", "three"]
)
def test_ranks_that_do_not_divide_the_shapes_break_rule_tp(good, ranks, expected):
    assert rules(good("llama", "awq"), tensor_parallel_size=ranks) == expected


def test_key_value_heads_of_null_are_as_many_as_the_heads_in_rule_tp(copied):
    path = copied("llama", "plain")
    edit_config(path, num_key_value_heads=None)
    keys = {row.get("key") for row in broken(path, tensor_parallel_size=3) if row["rule"] == "TP"}
    assert {"num_attention_heads", "num_key_value_heads"} <= keys


def test_rule_tp_names_the_linear_that_cannot_be_split(good):
    tensors = {row.get("tensor") for row in broken(good("llama", "gptq"), tensor_parallel_size=4)}
    assert tensors == {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)}  # 64 / 4 = 16 inputs, half a group


def test_kernels_are_checked_with_the_shapes_of_fused_layers(good):
    hopper = [row for row in check_checkpoint(good("llama", "awq")) if "Hopper" in row["consequence"]]
    assert [row["tensor"] for row in hopper] == [
        "model.layers.0.mlp.down_proj and 3 more"
    ]  # q + k + v make 128 outputs


def in_another_order(words: torch.Tensor) -> torch.Tensor:
    """Swap the two lowest nibbles of every word."""
    return (words & ~0xFF) | ((words & 0xF) << 4) | ((words >> 4) & 0xF)


@pytest.mark.parametrize(
    ("kind", "suffix"), [("awq", "qweight"), ("gptq", "qweight"), ("ct", "weight_packed"), ("ct-asym", "weight_packed")]
)
def test_a_wrong_nibble_order_is_reported_with_the_source(copied, good, kind, suffix):
    path = copied("llama", kind)
    edit_tensors(path, **{suffix: in_another_order})
    assert "T12" in rules(path, source=good("llama", "plain"))


def test_permuted_awq_codes_and_zeros_are_reported_only_with_the_source(copied, good):
    path = copied("llama", "awq")
    edit_tensors(path, qweight=in_another_order, qzeros=in_another_order)
    assert not rules(path)
    assert "T12" in rules(path, source=good("llama", "plain"))


def test_zeros_off_by_one_are_reported_with_the_source(copied, good):
    path = copied("llama", "ct")
    one_more = lambda words: pack.pack_ct_codes((pack.unpack_ct_codes(words) + 1).clamp(max=15))  # noqa: E731
    edit_tensors(path, weight_packed=one_more)
    assert "T12" in rules(path, source=good("llama", "plain"))


def test_a_doubled_scale_is_a_warning_with_the_source(copied, good):
    path = copied("llama", "awq")
    edit_tensors(path, scales=lambda scales: scales * torch.where(torch.arange(64) == 5, 2.0, 1.0).half()[None])
    assert not doubtful_tensors(path)
    path = copied("qwen2", "awq")
    edit_tensors(path, scales=double_one)
    assert doubtful_tensors(path, source=good("qwen2", "plain")) == {f"{Q}.qweight"}


def double_one(scales: torch.Tensor) -> torch.Tensor:
    scales[1, 5] *= 2
    return scales


def doubtful_tensors(path, **options):
    return {row["tensor"] for row in check_checkpoint(path, **options) if row["rule"] == "T12"}


def test_the_source_in_the_record_is_used_only_if_unchanged(copied, good, tmp_path):
    source, path = copied("llama", "plain"), copied("llama", "awq")
    origin = {"path": str(source), "digest": Checkpoint(source).digest}
    (path / RECORD).write_text(record_text("quantize", {}, source=origin))
    edit_tensors(path, qweight=in_another_order, qzeros=in_another_order)
    assert {"T12", "D4"} <= rules(path)
    edit_config(source, model_type="qwen2")
    assert not rules(path)


def test_two_swapped_words_are_an_error_with_the_source(copied, good):
    path = copied("llama", "gptq")
    edit_tensors(path, qweight=lambda words: torch.cat([words[:, :1], words[:, 2:3], words[:, 1:2], words[:, 3:]], 1))
    findings = [row for row in check_checkpoint(path, source=good("llama", "plain")) if row["rule"] == "T12"]
    assert findings[0]["value"].endswith(("output 1", "output 2")) and findings[0]["level"] == "error"


def test_another_model_as_source_is_an_error(good):
    assert rules(good("llama", "awq"), source=good("qwen2", "plain")) >= {"C10", "T12", "T13", "T14"}


def test_folded_scales_do_not_lower_the_similarity():
    torch.manual_seed(0)
    source = torch.randn(48, 128)
    folded = source * torch.rand(128).add(0.2) * torch.rand(48, 1).add(0.2)
    similarity = measure_similarity(rtn(folded, Scheme(group_size=32, sym=False)), source, torch.arange(48))
    assert similarity.cosine > 0.99 and similarity.row_cosine > 0.98 and abs(similarity.shift) < 0.05
    assert 0.9 < similarity.gains[0] < similarity.gains[1] < 1.1


def test_identical_weights_have_cosine_1():
    weight = QuantizedWeight(torch.randint(0, 16, (16, 64)).byte(), torch.rand(16, 2) + 0.1, torch.full((16, 2), 8.0))
    similarity = measure_similarity(weight, weight.dequantize(), torch.arange(16))
    assert similarity.cosine == pytest.approx(1) and abs(similarity.shift) < 1e-5


def test_strong_folding_is_fitted_in_two_rounds():
    torch.manual_seed(0)
    weight = QuantizedWeight(torch.randint(0, 16, (64, 64)).byte(), torch.rand(64, 2) + 0.1, torch.full((64, 2), 7.5))
    source = weight.dequantize() / torch.logspace(-1, 1, 64) / torch.logspace(-1, 1, 64)[:, None]
    assert measure_similarity(weight, source, torch.arange(64)).cosine > 0.999


def test_weights_half_a_step_off_their_source_are_an_error():
    torch.manual_seed(0)
    source = torch.randn(64, 64)
    weight = rtn(source, Scheme(group_size=32, sym=True))
    moved = replace(weight, zeros=weight.zeros + torch.tensor([1.0, 0.0]))  # every other group by one step
    assert not list(implausible_codes(sums_of(moved)))
    assert not list(source_differences(weight, source, torch.arange(64)))
    assert [row["level"] for row in source_differences(moved, source, torch.arange(64))] == ["error"]


def test_codes_far_from_their_zeros_are_implausible():
    codes = torch.tensor([0, 15, 1, 15]).repeat(16, 16).byte()  # signed codes that were not shifted by 8: mean 7.75
    rows = list(
        implausible_codes(sums_of(QuantizedWeight(codes, torch.ones(16, 2), torch.full((16, 2), 8.0), sym=True)))
    )
    assert len(rows) == 1 and "7.25 from their zeros" in rows[0]["value"]


def test_dead_outputs_and_inputs_do_not_lower_the_similarity():
    source = torch.randn(16, 64)
    source[3], source[:, 7], source[5, 32:] = 0, 0, 0
    similarity = measure_similarity(rtn(source, Scheme(group_size=32, sym=False)), source, torch.arange(16))
    assert similarity.cosine > 0.98 and similarity.row_cosine > 0.95 and similarity.gains[0] > 0.8


@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
def test_random_weights_are_plausible_and_shifted_codes_are_not(sym):
    torch.manual_seed(0)
    weight = rtn(torch.randn(64, 128), Scheme(group_size=32, sym=sym))
    assert not list(implausible_codes(sums_of(weight)))
    assert list(implausible_codes(sums_of(replace(weight, codes=(weight.codes + 1).clamp(max=15)))))


def test_a_zero_scale_is_allowed_only_in_a_group_of_zeros(copied):
    path = copied("llama", "gptq")
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q}.scales"][0, 3] = 0
    tensors[f"{Q}.qweight"][:4, 3] = -0x77777778  # eight codes of 8 in each word
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / DIGESTS).unlink()
    assert not rules(path)
    tensors[f"{Q}.qweight"][0, 3] += 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert rules(path) == {"T7"}


def test_float16_is_an_error_for_models_that_overflow(copied):
    path = copied("llama", "plain")
    edit_config(path, model_type="glm4", architectures=["Glm4ForCausalLM"])
    assert "C2" in rules(path)


def test_an_equal_head_beside_a_tied_embedding_is_a_warning(copied):
    path = copied("llama", "plain")
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / DIGESTS).unlink()
    assert [row["rule"] for row in check_checkpoint(path)] == ["C9"]
    assert not broken(path)


@pytest.mark.parametrize("damage", ["missing", "empty", "no config", "not JSON", "no weights"])
def test_a_path_without_a_checkpoint_is_rejected(tmp_path, damage, good):
    path = tmp_path / "model"
    if damage != "missing":
        path.mkdir()
    if damage == "no config":
        shutil.copy(good("llama", "plain") / "model.safetensors", path)
    if damage == "no weights":
        shutil.copy(good("llama", "plain") / "config.json", path)
    if damage == "not JSON":
        (path / "config.json").write_text("{")
    with pytest.raises(QCompressError, match="model"):
        check_checkpoint(path)


def test_the_module_table_has_shapes_biases_and_fused_layers(good):
    table = make_table(Checkpoint(good("qwen2", "plain")).config)
    assert len(table.linears) == 14
    assert table.linears[Q].bias and not table.linears["model.layers.0.mlp.down_proj"].bias
    assert (table.linears["model.layers.0.mlp.down_proj"].out, table.linears["model.layers.0.mlp.down_proj"].inn) == (
        64,
        128,
    )
    assert table.fused["model.layers.1.self_attn.qkv_proj"] == tuple(f"{Q[:-6]}{x}_proj" for x in "qkv")
    assert "model.layers.0.self_attn.o_proj" in table.row_parallel and Q not in table.row_parallel
    assert "lm_head.weight" in table.parameters
    assert "lm_head.weight" not in make_table(Checkpoint(good("llama", "plain")).config).parameters


def test_every_rule_of_the_contract_has_a_function():
    ids = {rule.id for rule in RULES} | {"T9"}
    assert ids >= {f"C{i}" for i in range(1, 10)} | {f"T{i}" for i in range(1, 13)} | {
        "TP",
        "O1",
        "O2",
        "O3",
        "D1",
        "D2",
    }
    assert all(rule.find.__doc__.startswith(f"{rule.id}: ") for rule in RULES)


def test_the_architectures_equal_those_of_the_installed_vllm():
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "model_executor/models/registry.py").read_text()
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("_TEXT_GENERATION_MODELS",)
    }
    assert set(tables["_TEXT_GENERATION_MODELS"]) == set(vllm_models.OWN_CODE.split())
