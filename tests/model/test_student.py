"""Students equal the teacher if nothing is cut, lose the least important parts first, and can be loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.model.blocks import Weights, load_all, make_config
from compress.model.depth import choose_blocks, remaining_blocks, sweep_depth
from compress.model.shapes import parameter_shapes
from compress.model.student import cut, plan_size, shape_of, student_config, student_shape
from compress.model.width import head_channels

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
PLAIN = {key: value for key, value in SIZES.items() if key != "head_dim"}
SLIDING = {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 5}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "tied llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**PLAIN, **SLIDING),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES),
    "phi3": Phi3Config(**PLAIN),
}
NARROW = {"hidden_size": 24, "intermediate_size": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
IDS = torch.arange(24).view(2, 12) % 50
BLOCKS = (0, 3, 4)


def teacher(name: str) -> tuple[dict[str, Any], Weights]:
    """The config and the weights of a random model, with random norms and biases."""
    config = CONFIGS[name].to_dict()
    generator = torch.Generator().manual_seed(3)
    tensors = {n: 0.2 * torch.randn(s, generator=generator) for n, s in parameter_shapes(config).items()}
    return config, tensors.__getitem__


def logits(config: dict[str, Any], weights: Weights) -> Tensor:
    with torch.no_grad():
        return load_all(config, weights, torch.float32)(IDS, use_cache=False).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_a_student_with_all_blocks_and_channels_is_the_teacher(name):
    config, weights = teacher(name)
    same = cut(config, weights, student_shape(config), range(5))
    assert torch.equal(logits(*same), logits(config, weights))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shorter_student_is_the_teacher_without_those_blocks(name):
    config, weights = teacher(name)
    student = cut(config, weights, student_shape(config, num_layers=3), BLOCKS)
    pruned = load_all(config, weights, torch.float32)
    pruned.model.layers = torch.nn.ModuleList([pruned.model.layers[i] for i in BLOCKS])
    pruned.config.num_hidden_layers = 3
    for key in ("layer_types", "no_rope_layers"):
        if isinstance(getattr(pruned.config, key, None), list):
            setattr(pruned.config, key, [getattr(pruned.config, key)[i] for i in BLOCKS])
    with torch.no_grad():
        expected = pruned(IDS, use_cache=False).logits
    torch.testing.assert_close(logits(*student), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_narrower_student_has_every_parameter_of_its_config(name):
    config, weights = teacher(name)
    shape = student_shape(config, **NARROW)
    student, read = cut(config, weights, shape, BLOCKS)
    promised = parameter_shapes(student)
    assert {n: tuple(read(n).shape) for n in promised} == promised
    assert shape_of(student) == shape and logits(student, read).isfinite().all()


def test_lists_per_block_keep_the_entries_of_the_kept_blocks():
    config = CONFIGS["gemma2"].to_dict()
    types = student_config(config, student_shape(config, num_layers=3), BLOCKS)["layer_types"]
    assert types == [config["layer_types"][i] for i in BLOCKS] and len(types) == 3


def test_a_default_list_is_written_for_the_kept_blocks():
    config = CONFIGS["gemma2"].to_dict()
    bare = {key: value for key, value in config.items() if key != "layer_types"}
    student = student_config(bare, student_shape(bare, num_layers=3), (0, 1, 4))
    assert make_config(student).layer_types == [config["layer_types"][i] for i in (0, 1, 4)]


def test_max_window_layers_counts_the_kept_blocks_only():
    config = CONFIGS["qwen2"].to_dict()
    assert student_config(config, student_shape(config, num_layers=3), BLOCKS)["max_window_layers"] == 3


@pytest.mark.parametrize("name", ["tied llama", "qwen2"])
def test_channels_with_zero_weights_are_cut_first(name):
    config, weights = teacher(name)
    dead = {"hidden": [1, 7, 20], "mlp": [0, 30], "kv": [0]}

    def zeroed(parameter: str) -> Tensor:
        tensor = weights(parameter).clone()
        if "embed_tokens" in parameter:
            tensor[:, dead["hidden"]] = 0
        if parameter.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[dead["hidden"]] = 0
        if "up_proj" in parameter:
            tensor[dead["mlp"]] = 0
        return tensor

    narrow = {"hidden_size": 36, "intermediate_size": 62}
    _, read = cut(config, zeroed, student_shape(config, **narrow), range(5))
    assert read("model.embed_tokens.weight").abs().sum(0).all()
    assert read("model.layers.2.mlp.up_proj.weight").abs().sum(1).all()


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_cutting_dead_mlp_channels_never_changes_the_logits(name):
    config, weights = teacher(name)

    def dead(name: str) -> Tensor:
        tensor = weights(name).clone()
        if "down_proj" in name:
            tensor[:, [3, 40]] = 0
        return tensor

    student = cut(config, dead, student_shape(config, intermediate_size=62), range(5))
    torch.testing.assert_close(logits(*student), logits(config, dead))


def test_cutting_silent_heads_never_changes_the_logits():
    config, weights = teacher("llama")

    def silent(name: str) -> Tensor:
        tensor = weights(name).clone()
        if "o_proj" in name:
            tensor[:, 8 * 1 : 8 * 2] = 0  # head 1, of KV head 0
            tensor[:, 8 * 5 : 8 * 6] = 0  # head 5, of KV head 1
        return tensor

    student = cut(config, silent, student_shape(config, num_heads=4), range(5))
    torch.testing.assert_close(logits(*student), logits(config, silent))


@pytest.mark.parametrize("name", ["qwen3", "phi3"])
def test_cutting_a_silent_attention_group_never_changes_the_logits(name):
    config, weights = teacher(name)

    def silent(name: str) -> Tensor:
        tensor = weights(name).clone()
        if "o_proj" in name:
            tensor[:, : 8 * 3] = 0  # the heads of KV head 0
        return tensor

    student = cut(config, silent, student_shape(config, num_heads=3, num_kv_heads=1), range(5))
    torch.testing.assert_close(logits(*student), logits(config, silent))


def test_a_group_with_zero_values_is_cut_despite_large_output_weights():
    config, weights = teacher("llama")

    def deaf(name: str) -> Tensor:
        tensor = weights(name).clone()
        if "v_proj" in name:
            tensor[8:] = 0  # KV head 1
        if "o_proj" in name:
            tensor[:, 8 * 3 :] *= 9  # its query heads
        return tensor

    student = cut(config, deaf, student_shape(config, num_heads=3, num_kv_heads=1), range(5))
    torch.testing.assert_close(logits(*student), logits(config, deaf))


@pytest.mark.parametrize("width", [4, 6, 8, 10, 12, 16])
def test_heads_of_another_width_keep_rotary_pairs_of_the_nearest_frequency(width):
    channels = head_channels(8, width)
    first, second = channels.view(2, -1)
    assert torch.equal(second, first + 4) and (first.diff() >= 0).all()
    assert ((first / 8 - torch.arange(width // 2) / width).abs() <= 0.5 / 8 + 1e-6)[:-1].all()


def test_heads_of_another_width_keep_their_scores_without_rotation():
    config, weights = teacher("qwen2")
    shape = student_shape(config, num_heads=3, num_kv_heads=1)  # 48 / 3: heads of 16 out of heads of 8
    assert shape.head_dim == 16
    _, read = cut(config, weights, shape, range(5))
    prefix, x = "model.layers.1.self_attn.", torch.randn(7, 48, generator=torch.Generator().manual_seed(1))

    def scores(source: Weights, dim: int) -> Tensor:
        q, k = (x @ source(f"{prefix}{p}.weight").T + source(f"{prefix}{p}.bias") for p in ("q_proj", "k_proj"))
        return torch.einsum("qhd,kgd->hqgk", q.view(7, -1, dim), k.view(7, -1, dim)) / dim**0.5

    before = scores(weights, 8).movedim(2, 1).flatten(0, 1)  # (heads x groups, 7, 7)
    after = scores(read, 16).movedim(2, 1).flatten(0, 1)
    assert all((before - one).abs().flatten(1).amax(1).min() < 1e-4 for one in after)


def test_heads_of_another_width_keep_their_output():
    config, weights = teacher("qwen2")
    _, read = cut(config, weights, student_shape(config, num_heads=3, num_kv_heads=1), range(5))
    prefix, x = "model.layers.1.self_attn.", torch.randn(7, 48, generator=torch.Generator().manual_seed(1))

    def written(source: Weights, dim: int) -> Tensor:
        v = (x @ source(f"{prefix}v_proj.weight").T + source(f"{prefix}v_proj.bias")).view(7, -1, dim)
        o = source(f"{prefix}o_proj.weight").unflatten(1, (-1, dim))
        return torch.einsum("tgd,ohd->ghto", v, o).flatten(0, 1)

    before = written(weights, 8)
    assert all((before - one).abs().flatten(1).amax(1).min() < 1e-4 for one in written(read, 16))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("llama", {"num_heads": 5}, r"num_heads=5 .* num_kv_heads=2"),
        ("llama", {"hidden_size": 56}, r"hidden_size=56: .* which has 48"),
        ("llama", {"hidden_size": 40}, r"hidden size \(40\) is not a multiple .* \(6\)"),
        ("llama", {"num_layers": 6}, r"num_layers=6: .* which has 5"),
        ("llama", {"intermediate_size": 0}, r"intermediate_size=0: .* 1 to 64"),
        (
            "llama",
            {"num_heads": 6, "num_kv_heads": 1},
            r"6/1: .* serve 6 .* 3, as in the teacher \(6/2\); give num_kv_heads=2",
        ),
        ("qwen2", {"hidden_size": 40}, r"hidden_size=40 must be .* num_heads=6 .* num_heads=5, for heads of 8"),
    ],
)
def test_a_shape_that_cannot_be_cut_is_rejected_with_both_numbers(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        student_shape(CONFIGS[name].to_dict(), **sizes)


def test_narrowing_a_model_with_unsupported_modules_is_an_error():
    _, weights = teacher("llama")
    config = MixtralConfig(**SIZES).to_dict()
    with pytest.raises(ValueError, match=r"mlp.gate.weight: width pruning does not support"):
        cut(config, weights, student_shape(config, hidden_size=24), range(5))


def test_planned_sizes_equal_those_of_the_stored_model(tiny_llama: Path):
    checkpoint = Checkpoint(tiny_llama)
    size = plan_size(checkpoint.config)
    assert size["parameters"] == sum(info.bytes for info in checkpoint.tensors.values()) // 2
    assert size["float16_bytes"] == sum(info.bytes for info in checkpoint.tensors.values())


def test_a_narrow_qwen2_student_has_a_qwen2_config():
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ).to_dict()
    shape = student_shape(config, hidden_size=2560, intermediate_size=6912, num_layers=20, num_heads=16, num_kv_heads=4)
    student = student_config(config, shape, remaining_blocks(28, 18, 8))
    assert student["model_type"] == "qwen2" and "head_dim" not in student and shape.head_dim == 160
    assert len(student["layer_types"]) == 20 and 1.5e9 < plan_size(student)["parameters"] < 2.7e9


def deep_llama() -> tuple[dict[str, Any], Weights]:
    config, weights = teacher("tied llama")
    return config, lambda name: weights(name) * 2 if "layers.2" in name else weights(name)


def test_a_sweep_measures_the_kl_of_the_model_without_those_blocks():
    config, weights = deep_llama()
    mask = torch.arange(24).view(2, 12) % 3 > 0
    kl_by_start = sweep_depth(config, weights, 2, IDS, mask)
    target = logits(config, weights).log_softmax(-1)
    assert list(kl_by_start) == [1, 2]
    for start, kl in kl_by_start.items():
        student = cut(config, weights, student_shape(config, num_layers=3), remaining_blocks(5, start, 2))
        each = (target.exp() * (target - logits(*student).log_softmax(-1))).sum(-1)[:, :-1][mask[:, 1:]]
        assert kl == pytest.approx(each.mean().item(), rel=1e-4)


def test_the_removed_blocks_have_the_lowest_kl():
    config, weights = deep_llama()
    kl_by_start = sweep_depth(config, weights, 1, IDS, torch.ones_like(IDS, dtype=torch.bool))
    assert sorted(kl_by_start) == [1, 2, 3]
    kept = choose_blocks(kl_by_start, 5, 1)
    (removed,) = set(range(5)) - set(kept)
    assert kl_by_start[removed] == min(kl_by_start.values()) < max(kl_by_start.values())


def test_a_sweep_is_deterministic():
    config, weights = deep_llama()
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert sweep_depth(config, weights, 2, IDS, mask) == sweep_depth(config, weights, 2, IDS, mask)


def test_the_first_and_last_block_are_kept_unless_only_one_remains():
    config, weights = deep_llama()
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert [list(sweep_depth(config, weights, removed, IDS, mask)) for removed in (3, 4)] == [[1], [0, 1]]


@pytest.mark.parametrize("removed", [0, 5])
def test_removing_no_block_or_all_blocks_is_an_error(removed):
    config, weights = deep_llama()
    with pytest.raises(ValueError, match=f"cannot remove {removed} of 5"):
        sweep_depth(config, weights, removed, IDS, torch.ones_like(IDS, dtype=torch.bool))


def test_a_mask_without_tokens_is_an_error():
    config, weights = deep_llama()
    with pytest.raises(ValueError, match="all 24 tokens are masked"):
        sweep_depth(config, weights, 1, IDS, torch.zeros_like(IDS, dtype=torch.bool))


def test_a_checkpoint_on_disk_is_cut_like_one_in_memory(tiny_qwen2: Path):
    checkpoint = Checkpoint(tiny_qwen2)
    same = cut(checkpoint.config, weight_reader(checkpoint), student_shape(checkpoint.config), range(2))
    expected = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(logits(*same), expected(IDS, use_cache=False).logits)
