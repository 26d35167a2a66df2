"""Correct tiny checkpoints with one damage each: every damage is reported, by the expected rule.

Each damage is checked twice: with digests, which must differ, and without them, where a static rule must report it.
Damage that leaves a checkpoint plausible (one nibble, one scale) is reported by the digest only: rule D1.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.check.candidate import Candidate
from compress.checkpoint.check.digest_rules import config_matches_digests
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.check.table import EMPTY_TABLE
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import DIGESTS

Q, V, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj"
NORM = "model.layers.0.input_layernorm.weight"
CT_PARTS = ("packed", "scale", "shape")
EMBEDDING = "model.embed_tokens"
FIFTEEN = -1  # the int32 word of eight codes 15


@dataclass
class CheckpointCopy:
    """A copy of a good checkpoint: change `config`, `quant`, `tensors`, or the files in `path`."""

    path: Path
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((self.path / "config.json").read_text())
        self.tensors = load_file(self.path / "model.safetensors")

    @property
    def quant(self) -> dict[str, Any]:
        return self.config["quantization_config"]

    @property
    def group(self) -> dict[str, Any]:
        return self.quant["config_groups"]["group_0"]

    def edit_json(self, name: str, **changes: Any) -> None:
        value = json.loads((self.path / name).read_text())
        (self.path / name).write_text(json.dumps(value | changes))

    def save(self) -> None:
        (self.path / "config.json").write_text(json.dumps(self.config))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, self.path / "model.safetensors", metadata={"format": "pt"})


Change = Callable[[CheckpointCopy], Any]


@dataclass(frozen=True)
class Damage:
    """A change of a checkpoint of `kind`, and the static rule that must report it; None if only the digest does."""

    name: str
    kind: str
    rule: str | None
    apply: Change
    model: str = "llama"
    digest: bool = True  # False for damage outside the tensors and config.json


def put(name: str, place: tuple[int, ...], value: float) -> Change:
    def apply(copied: CheckpointCopy) -> None:
        copied.tensors[name][place] = value

    return apply


def change(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(copied: CheckpointCopy) -> None:
        copied.tensors[name] = function(copied.tensors[name])

    return apply


def drop(*names: str) -> Change:
    def apply(copied: CheckpointCopy) -> None:
        for name in names:
            del copied.tensors[name]

    return apply


def add(name: str, tensor: torch.Tensor) -> Change:
    def apply(copied: CheckpointCopy) -> None:
        copied.tensors[name] = tensor

    return apply


def config(**values: Any) -> Change:
    """Set keys of config.json; None removes one."""

    def apply(copied: CheckpointCopy) -> None:
        copied.config = {key: value for key, value in (copied.config | values).items() if value is not None}

    return apply


def quant(**values: Any) -> Change:
    """Set keys of the quantization_config; None removes one."""

    def apply(copied: CheckpointCopy) -> None:
        merged = copied.quant | values
        copied.config["quantization_config"] = {key: value for key, value in merged.items() if value is not None}

    return apply


def weights(**values: Any) -> Change:
    """Set keys of the first group's `weights`; the string "absent" removes one."""

    def apply(copied: CheckpointCopy) -> None:
        merged = copied.group["weights"] | values
        copied.group["weights"] = {key: value for key, value in merged.items() if value != "absent"}

    return apply


def group(**values: Any) -> Change:
    return lambda copied: copied.group.update(values)


def flip(words: torch.Tensor) -> torch.Tensor:
    """One bit of one nibble."""
    words[0, 0] ^= 1 << 9
    return words


def plain_nibble_order(words: torch.Tensor) -> torch.Tensor:
    """The nibbles of every word in plain order instead of AWQ's."""
    nibbles = [(words >> (4 * i)) & 15 for i in range(8)]
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    plain = torch.zeros_like(words)
    for place, column in enumerate(order):
        plain |= nibbles[place] << (4 * column)
    return plain


def unpacked(module: str, out: int, inn: int) -> Change:
    """Replace the packed tensors of a module by a plain .weight."""

    def apply(copied: CheckpointCopy) -> None:
        for name in [name for name in copied.tensors if name.startswith(f"{module}.") and name[-5:] != ".bias"]:
            del copied.tensors[name]
        copied.tensors[f"{module}.weight"] = torch.randn(out, inn).half()

    return apply


def both(*changes: Change) -> Change:
    return lambda copied: [apply(copied) for apply in changes]


def cut_file(copied: CheckpointCopy) -> None:
    file = copied.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(copied: CheckpointCopy) -> None:
    file = copied.path / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def extra_file(copied: CheckpointCopy) -> None:
    save_file({"model.layers.9.stray.weight": torch.ones(2)}, copied.path / "extra.safetensors")


def split_files(copied: CheckpointCopy) -> dict[str, str]:
    """The same tensors in two files with an index; returns the index's weight_map."""
    names = sorted(copied.tensors)
    halves = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, part in halves.items():
        save_file({name: copied.tensors[name] for name in part}, copied.path / file)
    (copied.path / "model.safetensors").unlink()
    places = {name: file for file, part in halves.items() for name in part}
    write_index(copied, places)
    return places


def write_index(copied: CheckpointCopy, places: dict[str, str]) -> None:
    (copied.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def index_misses_entry(copied: CheckpointCopy) -> None:
    places = split_files(copied)
    del places[Q + ".qweight"]
    write_index(copied, places)


def index_swaps(copied: CheckpointCopy) -> None:
    places = split_files(copied)
    places[NORM] = next(file for file in places.values() if file != places[NORM])
    write_index(copied, places)


def index_leads_out(copied: CheckpointCopy) -> None:
    places = split_files(copied)
    places[NORM] = "../elsewhere.safetensors"
    write_index(copied, places)


def index_lists_more(copied: CheckpointCopy) -> None:
    write_index(copied, split_files(copied) | {"model.ghost": "model-00001-of-00002.safetensors"})


def index_missing(copied: CheckpointCopy) -> None:
    split_files(copied)
    (copied.path / "model.safetensors.index.json").unlink()


def shard_missing(copied: CheckpointCopy) -> None:
    split_files(copied)
    (copied.path / "model-00002-of-00002.safetensors").unlink()


def unlisted_shard(copied: CheckpointCopy) -> None:
    split_files(copied)
    extra_file(copied)


def tensor_twice(copied: CheckpointCopy) -> None:
    save_file({NORM: copied.tensors[NORM]}, copied.path / "more.safetensors")


def stray_modelopt(copied: CheckpointCopy) -> None:
    (copied.path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')


def new_tokenizer(copied: CheckpointCopy) -> None:
    copied.edit_json("tokenizer_config.json", tokenizer_class="TokenizersBackend")


TENSOR_DAMAGES = [
    Damage("one nibble of an awq code", "awq", None, change(f"{Q}.qweight", flip)),
    Damage("one nibble of a gptq code", "gptq", None, change(f"{Q}.qweight", flip)),
    Damage("one nibble of a ct code", "ct", None, change(f"{Q}.weight_packed", flip)),
    Damage("one awq zero word", "awq", None, change(f"{DOWN}.qzeros", flip)),
    Damage("one ct zero word", "ct-asym", None, change(f"{DOWN}.weight_zero_point", flip)),
    Damage("one scale doubled", "awq", None, change(f"{Q}.scales", lambda s: s.index_fill(1, torch.tensor([3]), 0.02))),
    Damage("one norm weight", "gptq", None, put(NORM, (5,), 1.5)),
    Damage("one bias", "awq", None, put(f"{Q}.bias", (5,), 1.5), "qwen2"),
    Damage("one embedding value of a plain model", "plain", None, put("model.embed_tokens.weight", (3, 5), 0.5)),
    Damage("awq scale NaN", "awq", "T7", put(f"{Q}.scales", (0, 3), float("nan"))),
    Damage("awq scale infinite", "awq", "T7", put(f"{Q}.scales", (0, 3), float("inf"))),
    Damage("gptq scale 0", "gptq", "T7", put(f"{Q}.scales", (0, 3), 0.0)),
    Damage("gptq scale of the other sign", "gptq", None, put(f"{Q}.scales", (1, 3), -0.01)),
    Damage("awq scale negative", "awq", "T7", put(f"{Q}.scales", (1, 3), -0.01)),
    Damage("ct scale NaN", "ct", "T7", put(f"{Q}.weight_scale", (3, 0), float("nan"))),
    Damage("ct scale at the end of float16", "ct-asym", "T7", put(f"{Q}.weight_scale", (3, 0), 65504.0)),
    Damage("gptq zero word", "gptq", "T5", put(f"{Q}.qzeros", (0, 2), 0x77777776)),
    Damage("gptq zeros in the v2 layout", "gptq", "T5", change(f"{Q}.qzeros", lambda z: z + 0x11111111)),
    Damage("one g_idx", "gptq", "T5", put(f"{Q}.g_idx", (40,), 0)),
    Damage("g_idx in act order", "gptq", "T5", change(f"{DOWN}.g_idx", lambda g: g.flip(0))),
    Damage("awq codes in plain order", "awq", "T12", change(f"{Q}.qweight", plain_nibble_order)),
    Damage("awq zeros in plain order", "awq", "T12", change(f"{DOWN}.qzeros", plain_nibble_order)),
    Damage("ct codes as two's complement", "ct", "T12", change(f"{Q}.weight_packed", lambda w: w ^ -0x77777778)),
    Damage("all codes 15", "ct-asym", "T12", change(f"{Q}.weight_packed", lambda w: torch.full_like(w, FIFTEEN))),
    Damage("codes never written", "gptq", "T12", change(f"{Q}.qweight", torch.zeros_like)),
    Damage("awq qweight missing", "awq", "T1", drop(f"{Q}.qweight")),
    Damage("awq scales missing", "awq", "T1", drop(f"{V}.scales")),
    Damage("awq qzeros missing", "awq", "T6", drop(f"{Q}.qzeros")),
    Damage("gptq qzeros missing", "gptq", "T1", drop(f"{Q}.qzeros")),
    Damage("gptq g_idx missing", "gptq", "T1", drop(f"{Q}.g_idx")),
    Damage("ct shape missing", "ct", "T1", drop(f"{Q}.weight_shape")),
    Damage("ct zeros missing", "ct-asym", "T1", drop(f"{Q}.weight_zero_point")),
    Damage(
        "all tensors of a linear missing", "ct", "T1", drop(*(f"{Q}.weight_{s}" for s in ("packed", "scale", "shape")))
    ),
    Damage("a weight beside its codes", "gptq", "T1", add(f"{Q}.weight", torch.ones(64, 64).half())),
    Damage("qweight as int64", "gptq", "T2", change(f"{Q}.qweight", torch.Tensor.long)),
    Damage("scales as float32", "awq", "T2", change(f"{Q}.scales", torch.Tensor.float)),
    Damage("weight_shape as int32", "ct", "T2", change(f"{Q}.weight_shape", torch.Tensor.int)),
    Damage("awq qweight transposed", "awq", "T3", change(f"{Q}.qweight", torch.Tensor.t)),
    Damage("gptq scales transposed", "gptq", "T3", change(f"{Q}.scales", torch.Tensor.t)),
    Damage("ct codes transposed", "ct", "T3", change(f"{DOWN}.weight_packed", torch.Tensor.t)),
    Damage("scales one group short", "awq", "T3", change(f"{DOWN}.scales", lambda s: s[:-1])),
    Damage("weight_shape of another matrix", "ct", "T3", change(f"{Q}.weight_shape", lambda s: s * 2)),
    Damage("one shard of a fused layer plain", "awq", "T8", unpacked(Q, 64, 64)),
    Damage("bias missing", "gptq", "T8", drop(f"{V}.bias"), "qwen2"),
    Damage("bias too short", "ct", "T8", change(f"{V}.bias", lambda b: b[:-1]), "qwen2"),
    Damage("bias where llama has none", "awq", "T8", add(f"{Q}.bias", torch.ones(64).half())),
    Damage("norm missing", "ct", "T10", drop(NORM)),
    Damage("norm too long", "awq", "T10", change(NORM, lambda w: torch.cat([w, w]))),
    Damage("norm of integers", "gptq", "T10", change(NORM, torch.Tensor.int)),
    Damage("embedding NaN", "plain", "T10", put("model.embed_tokens.weight", (3, 5), float("nan"))),
    Damage("linear of a plain model missing", "plain", "T10", drop(f"{Q}.weight")),
    Damage("linear of a plain model transposed", "plain", "T10", change(f"{DOWN}.weight", torch.Tensor.t)),
    Damage("head missing", "gptq", "T10", drop("lm_head.weight"), "qwen2"),
    Damage("unknown tensor", "awq", "T11", add("model.layers.0.mlp.extra_proj.weight", torch.ones(8, 8).half())),
    Damage("g_idx in an awq checkpoint", "awq", "T11", add(f"{Q}.g_idx", torch.zeros(64, dtype=torch.int32))),
    Damage("zeros in a symmetric ct checkpoint", "ct", "T11", add(f"{Q}.weight_zero_point", torch.zeros(8, 2).int())),
    Damage("another head under a tied flag", "awq", "C9", add("lm_head.weight", torch.ones(128, 64).half())),
]

CONFIG_DAMAGES = [
    Damage("no quantization_config", "awq", "C1", config(quantization_config=None)),
    Damage("no quant_method", "gptq", "C1", quant(quant_method=None)),
    Damage("unknown quant_method", "awq", "C1", quant(quant_method="awq_gemv")),
    Damage("no architectures", "awq", "C2", config(architectures=None)),
    Damage("unknown architecture", "plain", "C2", config(architectures=["LlamaForSequenceRanking"])),
    Damage("unknown model_type", "gptq", "C2", config(model_type="lama")),
    Damage("no dtype", "plain", "C2", config(dtype=None, torch_dtype=None)),
    Damage("quantized float32", "ct", "C2", config(dtype="float32", torch_dtype="float32")),
    Damage("text_config disagrees", "awq", "C3", config(text_config={"quantization_config": {"quant_method": "gptq"}})),
    Damage("compression_config disagrees", "ct", "C3", config(compression_config={"format": "dense"})),
    Damage("awq of 8 bits", "awq", "C4", quant(bits=8)),
    Damage("awq without bits", "awq", "C4", quant(bits=None)),
    Damage("awq without group_size", "awq", "C4", quant(group_size=None)),
    Damage("awq of odd groups", "awq", "C4", quant(group_size=48)),
    Damage("awq of other groups", "awq", "T3", quant(group_size=64)),
    Damage("awq groups wider than the matrix", "awq", "T4", quant(group_size=128)),
    Damage("awq without zero_point", "awq", "C4", quant(zero_point=None)),
    Damage("awq with zero_point false", "awq", "C4", quant(zero_point=False)),
    Damage("awq as gemv", "awq", "C4", quant(version="gemv")),
    Damage("gptq of 3 bits", "gptq", "C5", quant(bits=3)),
    Damage("gptq without bits", "gptq", "C5", quant(bits=None)),
    Damage("gptq of other bits", "gptq", "T3", quant(bits=8)),
    Damage("gptq without group_size", "gptq", "C5", quant(group_size=None)),
    Damage("gptq of groups Marlin lacks", "gptq", "C5", quant(group_size=16)),
    Damage("gptq without desc_act", "gptq", "C5", quant(desc_act=None)),
    Damage("gptq with desc_act", "gptq", "C5", quant(desc_act=True)),
    Damage("gptq without sym", "gptq", "C5", quant(sym=None)),
    Damage("gptq asymmetric", "gptq", "C5", quant(sym=False)),
    Damage("gptq v2", "gptq", "T5", quant(checkpoint_format="gptq_v2")),
    Damage("gptq rule of 3 bits", "gptq", "C5", quant(dynamic={r".*layers\.7\..*": {"bits": 3}})),
    Damage("ct without groups", "ct", "C6", quant(config_groups=None)),
    Damage("ct of another format", "ct", "C6", quant(format="int-quantized")),
    Damage("ct ignores nothing", "ct", "C6", quant(ignore=[])),
    Damage("ct ignores a packed linear", "ct", "C6", quant(ignore=["lm_head", DOWN])),
    Damage("ct ignores by a broken pattern", "ct", "C6", quant(ignore=["lm_head", "re:*_proj"])),
    Damage("ct leaves a plain linear unignored", "ct", "C6", unpacked(DOWN, 64, 128)),
    Damage("ct targets nothing", "ct", "C6", group(targets=[])),
    Damage("ct targets other modules", "ct", "C6", group(targets=["Conv2d"])),
    Damage("ct quantizes activations", "ct", "C6", group(input_activations={"num_bits": 8})),
    Damage("ct with an unknown key", "ct", "C6", weights(zero_points="int8")),
    Damage("ct in act order", "ct", "C6", weights(actorder="group")),
    Damage("ct without num_bits", "ct", "C6", weights(num_bits="absent")),
    Damage("ct without symmetric", "ct-asym", "C6", weights(symmetric="absent")),
    Damage("ct declared asymmetric", "ct", "T1", weights(symmetric=False)),
    Damage("ct declared symmetric", "ct-asym", "T11", weights(symmetric=True)),
    Damage("ct of floats", "ct", "C6", weights(type="float")),
    Damage("ct dynamic", "ct", "C6", weights(dynamic=True)),
    Damage("ct per tensor", "ct", "C6", weights(strategy="tensor")),
    Damage("ct groups without a size", "ct", "C6", weights(group_size=None)),
    Damage("ct channels with a size", "ct", "C6", weights(strategy="channel")),
    Damage("ct of other groups", "ct", "T3", weights(group_size=64)),
    Damage("ct groups that do not divide the inputs", "ct", "T4", weights(group_size=48)),
    Damage("ct sparse", "ct", "C6", quant(sparsity_config={"targets": ["Linear"], "format": "dense"})),
    Damage("skip list hits by substring", "awq", "C7", quant(modules_to_not_convert=["model.layers.1"])),
    Damage("skip list hits one shard", "awq", "C7", quant(modules_to_not_convert=["k_proj"])),
    Damage(
        "skip list misses a plain linear",
        "awq",
        "C7",
        both(unpacked(DOWN, 64, 128), quant(modules_to_not_convert=["lm_head"])),
    ),
    Damage("rule splits a fused layer", "gptq", "C8", quant(dynamic={r"-:.*q_proj$": {}})),
    Damage("rule that vLLM never matches", "gptq", "C8", quant(dynamic={r"+:.*\.k_proj$": {"bits": 8}})),
    Damage("rule skips a packed linear", "gptq", "C8", quant(dynamic={r"-:.*down_proj$": {}})),
    Damage("rule is no pattern", "gptq", "C8", quant(dynamic={"-:*down_proj": {}})),
    Damage("list leaves out packed linears", "gptq", "C8", quant(modules_in_block_to_quantize=[["self_attn.q_proj"]])),
    Damage("lm_head flag without codes", "awq", "C9", quant(lm_head=True)),
    Damage("lm_head flag without codes, gptq", "gptq", "C9", quant(lm_head=True), "qwen2"),
    Damage("tied flag over two tables", "ct", "C9", config(tie_word_embeddings=True), "qwen2"),
    Damage("untied flag without a head", "awq", "T10", config(tie_word_embeddings=False)),
    Damage("rotated weights", "gptq", "S10", quant(rotation="hadamard")),
    Damage("no rope_theta", "plain", "O1", config(rope_theta=None)),
    Damage("another rope_theta", "awq", "O1", config(rope_theta=10000.0)),
    Damage("no rope_scaling", "awq", "O1", config(rope_parameters={"rope_type": "linear", "factor": 2.0})),
    Damage("another torch_dtype", "awq", "O2", config(torch_dtype="bfloat16")),
    Damage("config with one block more", "awq", "T1", config(num_hidden_layers=3)),
    Damage("config with one block less", "gptq", "T11", config(num_hidden_layers=1)),
    Damage("wider mlp", "ct", "T3", config(intermediate_size=256)),
    Damage("more kv heads", "plain", "T10", config(num_key_value_heads=4)),
    Damage("larger vocabulary", "awq", "T10", config(vocab_size=192)),
    Damage(
        "qwen2 declared as llama", "awq", "T8", config(model_type="llama", architectures=["LlamaForCausalLM"]), "qwen2"
    ),
]

QKV_RULE = r"model\.layers\.1\.self_attn\.(q_proj|k_proj|v_proj|qkv_proj)$"
BY_LINEARS = [f"model.layers.1.self_attn.{letter}_proj" for letter in "qkv"]


def other_group(**values: Any) -> Change:
    """Set keys of the second group, which has the 8-bit modules."""
    return lambda copied: copied.quant["config_groups"]["group_1"].update(values)


def rules(*patterns: str) -> Change:
    """Set the `dynamic` rules of gptq: 8 bits for modules that a + pattern matches."""
    return quant(dynamic={pattern: {"bits": 8} if pattern.startswith("+") else {} for pattern in patterns})


def eight_bits_asymmetric(copied: CheckpointCopy) -> None:
    copied.quant["config_groups"]["group_1"]["weights"]["symmetric"] = False


def eight_bits_called_four(copied: CheckpointCopy) -> None:
    copied.quant["config_groups"]["group_1"]["weights"]["num_bits"] = 4


END_DAMAGES = [
    Damage(name, kind, rule, apply, "qwen2")
    for name, kind, rule, apply in (
        ("one nibble of a packed head", "ct-ends", None, change("lm_head.weight_packed", flip)),
        ("one code of a packed embedding", "ct-ends", None, change(f"{EMBEDDING}.weight_packed", flip)),
        ("head without a group", "ct-ends", "C9", group(targets=["Linear"])),
        ("head that is ignored", "ct-ends", "C9", quant(ignore=["lm_head"])),
        ("embedding without a group", "ct-ends", "C9", other_group(targets=[f"re:{QKV_RULE}"])),
        ("embedding declared asymmetric", "ct-ends", "C9", eight_bits_asymmetric),
        ("eight bits declared as four", "ct-ends", "T3", eight_bits_called_four),
        ("eight bits without a group", "ct-ends", "T3", other_group(targets=["Embedding"])),
        (
            "eight bits by unfused names",
            "ct-ends",
            "C8",
            other_group(targets=["Embedding", *BY_LINEARS]),
        ),
        ("eight bits of one shard", "ct-ends", "C8", other_group(targets=["Embedding", BY_LINEARS[0]])),
        ("tied flag over a packed embedding", "ct-ends", "C9", config(tie_word_embeddings=True)),
        ("packed embedding of an unsupported model", "ct-ends", "C9", config(model_type="olmo2")),
        ("packed embedding missing", "ct-ends", "T10", drop(*(f"{EMBEDDING}.weight_{s}" for s in CT_PARTS))),
        ("scales of a packed embedding missing", "ct-ends", "T1", drop(f"{EMBEDDING}.weight_scale")),
        ("embedding beside its codes", "ct-ends", "T1", add(f"{EMBEDDING}.weight", torch.ones(128, 64).half())),
        ("embedding scale NaN", "ct-ends", "T7", put(f"{EMBEDDING}.weight_scale", (3, 0), float("nan"))),
        (
            "packed embedding never written",
            "ct-ends",
            "T12",
            change(f"{EMBEDDING}.weight_packed", torch.zeros_like),
        ),
        ("packed head never written", "gptq-ends", "T12", change("lm_head.qweight", torch.zeros_like)),
        ("packed head without its flag", "gptq-ends", "C9", quant(lm_head=False)),
        (
            "packed head skipped by a rule",
            "gptq-ends",
            "C9",
            rules("-:lm_head", f"+:{QKV_RULE}"),
        ),
        ("packed head without scales", "gptq-ends", "T1", drop("lm_head.scales")),
        ("eight bits without their rule", "gptq-ends", "T3", quant(dynamic={})),
        (
            "a rule for eight bits by unfused names",
            "gptq-ends",
            "C8",
            rules(r"+:.*1.*\.[qkv]_proj$"),
        ),
        ("zero of eight bits off by one", "gptq-ends", "T5", put(f"{Q}.qzeros", (0, 2), 0x7F7F7F7E)),
    )
]

FILE_DAMAGES = [
    Damage("file cut short", "awq", "T9", cut_file, digest=False),
    Damage("header damaged", "gptq", "T9", damage_header, digest=False),
    Damage("extra file", "awq", "T9", extra_file, digest=False),
    Damage("index misses an entry", "awq", "T9", index_misses_entry, digest=False),
    Damage("index swaps files", "awq", "T9", index_swaps, digest=False),
    Damage("index leads out of the directory", "awq", "T9", index_leads_out, digest=False),
    Damage("index lists a missing tensor", "awq", "T9", index_lists_more, digest=False),
    Damage("index lost", "awq", "T9", index_missing, digest=False),
    Damage("shard lost", "awq", "T9", shard_missing, digest=False),
    Damage("shard missing from the index", "awq", "T9", unlisted_shard, digest=False),
    Damage("tensor in two files", "awq", "T1", tensor_twice, digest=False),
    Damage("stray hf_quant_config.json", "awq", "C3", stray_modelopt, digest=False),
    Damage("tokenizer class of transformers 5 only", "plain", "O3", new_tokenizer, digest=False),
]

DAMAGES = TENSOR_DAMAGES + CONFIG_DAMAGES + END_DAMAGES + FILE_DAMAGES


def make_damaged(damage: Damage, good: Callable[[str, str], Path], folder: Path) -> Path:
    """The path of a damaged copy. Its files are saved again, unless the damage is in the files."""
    path = folder / "copied"
    shutil.copytree(good(damage.model, damage.kind), path)
    copied = CheckpointCopy(path)
    damage.apply(copied)
    if damage not in FILE_DAMAGES:
        copied.save()
    return path


def errors(path: Path) -> set[str]:
    """The rules with errors, after a check of the rows."""
    rows = check_checkpoint(path)
    for row in rows:
        assert {"rule", "value", "expected", "consequence", "level"} <= row.keys()
        assert row.keys() & {"tensor", "key", "file"} and json.dumps(row)
    return {row["rule"] for row in rows if row["level"] == "error"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_every_kind_of_damage_is_reported(damage, good, tmp_path):
    path = make_damaged(damage, good, tmp_path)
    rules = errors(path)
    assert rules & {"D1", "D2"} if damage.digest else rules
    (path / DIGESTS).unlink()
    if damage.rule is None:
        assert not errors(path), "a static rule reports it: enter the rule"
    else:
        assert damage.rule in errors(path)


def test_there_are_more_than_thirty_kinds_of_damage():
    assert len(DAMAGES) > 30 and len({damage.name for damage in DAMAGES}) == len(DAMAGES)


@pytest.mark.parametrize("value", [None, "other"], ids=["lost", "changed"])
@pytest.mark.parametrize("kind", ["awq", "gptq", "ct", "ct-asym"])
def test_removing_or_changing_any_quantization_key_is_reported(kind, value, good):
    checkpoint = Checkpoint(good("llama", kind))
    config_json = checkpoint.config
    for key, old in config_json["quantization_config"].items():
        others = {k: v for k, v in config_json["quantization_config"].items() if k != key}
        checkpoint.stored_config = config_json | {
            "quantization_config": others if value is None else others | {key: value}
        }
        rows = list(config_matches_digests(Candidate(checkpoint, EMPTY_TABLE)))
        assert [row["key"] for row in rows] == ["quantization_config"], f"{key}: {old} -> {value}"


@pytest.mark.parametrize("kind", ["plain", "awq"])
def test_removing_adding_or_changing_any_config_key_is_reported(kind, good):
    checkpoint = Checkpoint(good("qwen2", kind))
    config_json = checkpoint.config
    for key in config_json:
        for config in ({k: v for k, v in config_json.items() if k != key}, config_json | {key: "other"}):
            checkpoint.stored_config = config
            assert [row["key"] for row in config_matches_digests(Candidate(checkpoint, EMPTY_TABLE))] == [key]
    checkpoint.stored_config = config_json | {"new_key": 1}
    assert [row["key"] for row in config_matches_digests(Candidate(checkpoint, EMPTY_TABLE))] == ["new_key"]
