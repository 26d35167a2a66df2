"""Good tiny checkpoints with one wound each: every wound must be seen, and by the rule that names it.

A wound is tried twice: as it is, where a digest must have noticed it, and with the digests taken away, where the
static rule must. Wounds that leave a checkpoint plausible (one nibble, one scale) can only be seen by digest: rule D1.
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

from compress.checkpoint.check.candidate import EMPTY_TABLE, Candidate
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.check.value_rules import config_matches_digests
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import DIGESTS

Q, V, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj"
NORM = "model.layers.0.input_layernorm.weight"
CT_PARTS = ("packed", "scale", "shape")
EMBEDDING = "model.embed_tokens"
FIFTEEN = -1  # the int32 word of eight codes 15


@dataclass
class Patient:
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


Act = Callable[[Patient], Any]


@dataclass(frozen=True)
class Wound:
    """What is done to a checkpoint of `kind`, and the static rule that must see it; None when only the digest can."""

    name: str
    kind: str
    rule: str | None
    act: Act
    model: str = "llama"
    digest: bool = True  # False for wounds outside the tensors and config.json


def put(name: str, place: tuple[int, ...], value: float) -> Act:
    def act(patient: Patient) -> None:
        patient.tensors[name][place] = value

    return act


def change(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Act:
    def act(patient: Patient) -> None:
        patient.tensors[name] = function(patient.tensors[name])

    return act


def drop(*names: str) -> Act:
    def act(patient: Patient) -> None:
        for name in names:
            del patient.tensors[name]

    return act


def add(name: str, tensor: torch.Tensor) -> Act:
    def act(patient: Patient) -> None:
        patient.tensors[name] = tensor

    return act


def config(**values: Any) -> Act:
    """Set keys of config.json; None removes one."""

    def act(patient: Patient) -> None:
        patient.config = {key: value for key, value in (patient.config | values).items() if value is not None}

    return act


def quant(**values: Any) -> Act:
    """Set keys of the quantization_config; None removes one."""

    def act(patient: Patient) -> None:
        merged = patient.quant | values
        patient.config["quantization_config"] = {key: value for key, value in merged.items() if value is not None}

    return act


def weights(**values: Any) -> Act:
    """Set keys of the one group's weights; the string "absent" removes one."""

    def act(patient: Patient) -> None:
        merged = patient.group["weights"] | values
        patient.group["weights"] = {key: value for key, value in merged.items() if value != "absent"}

    return act


def group(**values: Any) -> Act:
    return lambda patient: patient.group.update(values)


def flip(words: torch.Tensor) -> torch.Tensor:
    """One bit of one nibble."""
    words[0, 0] ^= 1 << 9
    return words


def eights_other_way(words: torch.Tensor) -> torch.Tensor:
    """The nibbles of every word in plain order instead of AWQ's."""
    nibbles = [(words >> (4 * i)) & 15 for i in range(8)]
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    plain = torch.zeros_like(words)
    for place, column in enumerate(order):
        plain |= nibbles[place] << (4 * column)
    return plain


def unpacked(module: str, out: int, inn: int) -> Act:
    """The module as a plain .weight, its packed tensors gone."""

    def act(patient: Patient) -> None:
        for name in [name for name in patient.tensors if name.startswith(f"{module}.") and name[-5:] != ".bias"]:
            del patient.tensors[name]
        patient.tensors[f"{module}.weight"] = torch.randn(out, inn).half()

    return act


def both(*acts: Act) -> Act:
    return lambda patient: [act(patient) for act in acts]


def cut_file(patient: Patient) -> None:
    file = patient.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def spoil_header(patient: Patient) -> None:
    file = patient.path / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def extra_file(patient: Patient) -> None:
    save_file({"model.layers.9.stray.weight": torch.ones(2)}, patient.path / "extra.safetensors")


def split_files(patient: Patient) -> dict[str, str]:
    """The same tensors in two files with an index; returns the index's weight_map."""
    names = sorted(patient.tensors)
    halves = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, part in halves.items():
        save_file({name: patient.tensors[name] for name in part}, patient.path / file)
    (patient.path / "model.safetensors").unlink()
    places = {name: file for file, part in halves.items() for name in part}
    write_index(patient, places)
    return places


def write_index(patient: Patient, places: dict[str, str]) -> None:
    (patient.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def index_forgets(patient: Patient) -> None:
    places = split_files(patient)
    del places[Q + ".qweight"]
    write_index(patient, places)


def index_swaps(patient: Patient) -> None:
    places = split_files(patient)
    places[NORM] = next(file for file in places.values() if file != places[NORM])
    write_index(patient, places)


def index_leads_out(patient: Patient) -> None:
    places = split_files(patient)
    places[NORM] = "../elsewhere.safetensors"
    write_index(patient, places)


def index_lists_more(patient: Patient) -> None:
    write_index(patient, split_files(patient) | {"model.ghost": "model-00001-of-00002.safetensors"})


def index_lost(patient: Patient) -> None:
    split_files(patient)
    (patient.path / "model.safetensors.index.json").unlink()


def shard_lost(patient: Patient) -> None:
    split_files(patient)
    (patient.path / "model-00002-of-00002.safetensors").unlink()


def unlisted_shard(patient: Patient) -> None:
    split_files(patient)
    extra_file(patient)


def tensor_twice(patient: Patient) -> None:
    save_file({NORM: patient.tensors[NORM]}, patient.path / "more.safetensors")


def stray_modelopt(patient: Patient) -> None:
    (patient.path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')


def new_tokenizer(patient: Patient) -> None:
    patient.edit_json("tokenizer_config.json", tokenizer_class="TokenizersBackend")


TENSOR_WOUNDS = [
    Wound("one nibble of an awq code", "awq", None, change(f"{Q}.qweight", flip)),
    Wound("one nibble of a gptq code", "gptq", None, change(f"{Q}.qweight", flip)),
    Wound("one nibble of a ct code", "ct", None, change(f"{Q}.weight_packed", flip)),
    Wound("one awq zero word", "awq", None, change(f"{DOWN}.qzeros", flip)),
    Wound("one ct zero word", "ct-asym", None, change(f"{DOWN}.weight_zero_point", flip)),
    Wound("one scale doubled", "awq", None, change(f"{Q}.scales", lambda s: s.index_fill(1, torch.tensor([3]), 0.02))),
    Wound("one norm weight", "gptq", None, put(NORM, (5,), 1.5)),
    Wound("one bias", "awq", None, put(f"{Q}.bias", (5,), 1.5), "qwen2"),
    Wound("one embedding value of a plain model", "plain", None, put("model.embed_tokens.weight", (3, 5), 0.5)),
    Wound("awq scale NaN", "awq", "T7", put(f"{Q}.scales", (0, 3), float("nan"))),
    Wound("awq scale infinite", "awq", "T7", put(f"{Q}.scales", (0, 3), float("inf"))),
    Wound("gptq scale 0", "gptq", "T7", put(f"{Q}.scales", (0, 3), 0.0)),
    Wound("gptq scale turned round", "gptq", None, put(f"{Q}.scales", (1, 3), -0.01)),
    Wound("awq scale negative", "awq", "T7", put(f"{Q}.scales", (1, 3), -0.01)),
    Wound("ct scale NaN", "ct", "T7", put(f"{Q}.weight_scale", (3, 0), float("nan"))),
    Wound("ct scale at the end of float16", "ct-asym", "T7", put(f"{Q}.weight_scale", (3, 0), 65504.0)),
    Wound("gptq zero word", "gptq", "T5", put(f"{Q}.qzeros", (0, 2), 0x77777776)),
    Wound("gptq zeros of the v2 kind", "gptq", "T5", change(f"{Q}.qzeros", lambda z: z + 0x11111111)),
    Wound("one g_idx", "gptq", "T5", put(f"{Q}.g_idx", (40,), 0)),
    Wound("g_idx in act order", "gptq", "T5", change(f"{DOWN}.g_idx", lambda g: g.flip(0))),
    Wound("awq codes in plain order", "awq", "T12", change(f"{Q}.qweight", eights_other_way)),
    Wound("awq zeros in plain order", "awq", "T12", change(f"{DOWN}.qzeros", eights_other_way)),
    Wound("ct codes as two's complement", "ct", "T12", change(f"{Q}.weight_packed", lambda w: w ^ -0x77777778)),
    Wound("all codes 15", "ct-asym", "T12", change(f"{Q}.weight_packed", lambda w: torch.full_like(w, FIFTEEN))),
    Wound("codes never written", "gptq", "T12", change(f"{Q}.qweight", torch.zeros_like)),
    Wound("awq qweight missing", "awq", "T1", drop(f"{Q}.qweight")),
    Wound("awq scales missing", "awq", "T1", drop(f"{V}.scales")),
    Wound("awq qzeros missing", "awq", "T6", drop(f"{Q}.qzeros")),
    Wound("gptq qzeros missing", "gptq", "T1", drop(f"{Q}.qzeros")),
    Wound("gptq g_idx missing", "gptq", "T1", drop(f"{Q}.g_idx")),
    Wound("ct shape missing", "ct", "T1", drop(f"{Q}.weight_shape")),
    Wound("ct zeros missing", "ct-asym", "T1", drop(f"{Q}.weight_zero_point")),
    Wound("a whole linear missing", "ct", "T1", drop(*(f"{Q}.weight_{s}" for s in ("packed", "scale", "shape")))),
    Wound("a weight beside its codes", "gptq", "T1", add(f"{Q}.weight", torch.ones(64, 64).half())),
    Wound("qweight as int64", "gptq", "T2", change(f"{Q}.qweight", torch.Tensor.long)),
    Wound("scales as float32", "awq", "T2", change(f"{Q}.scales", torch.Tensor.float)),
    Wound("weight_shape as int32", "ct", "T2", change(f"{Q}.weight_shape", torch.Tensor.int)),
    Wound("awq qweight transposed", "awq", "T3", change(f"{Q}.qweight", torch.Tensor.t)),
    Wound("gptq scales transposed", "gptq", "T3", change(f"{Q}.scales", torch.Tensor.t)),
    Wound("ct codes transposed", "ct", "T3", change(f"{DOWN}.weight_packed", torch.Tensor.t)),
    Wound("scales one group short", "awq", "T3", change(f"{DOWN}.scales", lambda s: s[:-1])),
    Wound("weight_shape of another matrix", "ct", "T3", change(f"{Q}.weight_shape", lambda s: s * 2)),
    Wound("one shard of a fused layer plain", "awq", "T8", unpacked(Q, 64, 64)),
    Wound("bias missing", "gptq", "T8", drop(f"{V}.bias"), "qwen2"),
    Wound("bias too short", "ct", "T8", change(f"{V}.bias", lambda b: b[:-1]), "qwen2"),
    Wound("bias where llama has none", "awq", "T8", add(f"{Q}.bias", torch.ones(64).half())),
    Wound("norm missing", "ct", "T10", drop(NORM)),
    Wound("norm too long", "awq", "T10", change(NORM, lambda w: torch.cat([w, w]))),
    Wound("norm of integers", "gptq", "T10", change(NORM, torch.Tensor.int)),
    Wound("embedding NaN", "plain", "T10", put("model.embed_tokens.weight", (3, 5), float("nan"))),
    Wound("linear of a plain model missing", "plain", "T10", drop(f"{Q}.weight")),
    Wound("linear of a plain model transposed", "plain", "T10", change(f"{DOWN}.weight", torch.Tensor.t)),
    Wound("head missing", "gptq", "T10", drop("lm_head.weight"), "qwen2"),
    Wound("unknown tensor", "awq", "T11", add("model.layers.0.mlp.extra_proj.weight", torch.ones(8, 8).half())),
    Wound("g_idx in an awq checkpoint", "awq", "T11", add(f"{Q}.g_idx", torch.zeros(64, dtype=torch.int32))),
    Wound("zeros in a symmetric ct checkpoint", "ct", "T11", add(f"{Q}.weight_zero_point", torch.zeros(8, 2).int())),
    Wound("another head under a tied flag", "awq", "C9", add("lm_head.weight", torch.ones(128, 64).half())),
]

CONFIG_WOUNDS = [
    Wound("no quantization_config", "awq", "C1", config(quantization_config=None)),
    Wound("no quant_method", "gptq", "C1", quant(quant_method=None)),
    Wound("unknown quant_method", "awq", "C1", quant(quant_method="awq_gemv")),
    Wound("no architectures", "awq", "C2", config(architectures=None)),
    Wound("unknown architecture", "plain", "C2", config(architectures=["LlamaForSequenceRanking"])),
    Wound("unknown model_type", "gptq", "C2", config(model_type="lama")),
    Wound("no dtype", "plain", "C2", config(dtype=None, torch_dtype=None)),
    Wound("quantized float32", "ct", "C2", config(dtype="float32", torch_dtype="float32")),
    Wound("text_config disagrees", "awq", "C3", config(text_config={"quantization_config": {"quant_method": "gptq"}})),
    Wound("compression_config disagrees", "ct", "C3", config(compression_config={"format": "dense"})),
    Wound("awq of 8 bits", "awq", "C4", quant(bits=8)),
    Wound("awq without bits", "awq", "C4", quant(bits=None)),
    Wound("awq without group_size", "awq", "C4", quant(group_size=None)),
    Wound("awq of odd groups", "awq", "C4", quant(group_size=48)),
    Wound("awq of other groups", "awq", "T3", quant(group_size=64)),
    Wound("awq groups wider than the matrix", "awq", "T4", quant(group_size=128)),
    Wound("awq without zero_point", "awq", "C4", quant(zero_point=None)),
    Wound("awq with zero_point false", "awq", "C4", quant(zero_point=False)),
    Wound("awq as gemv", "awq", "C4", quant(version="gemv")),
    Wound("gptq of 3 bits", "gptq", "C5", quant(bits=3)),
    Wound("gptq without bits", "gptq", "C5", quant(bits=None)),
    Wound("gptq of other bits", "gptq", "T3", quant(bits=8)),
    Wound("gptq without group_size", "gptq", "C5", quant(group_size=None)),
    Wound("gptq of groups Marlin lacks", "gptq", "C5", quant(group_size=16)),
    Wound("gptq without desc_act", "gptq", "C5", quant(desc_act=None)),
    Wound("gptq with desc_act", "gptq", "C5", quant(desc_act=True)),
    Wound("gptq without sym", "gptq", "C5", quant(sym=None)),
    Wound("gptq asymmetric", "gptq", "C5", quant(sym=False)),
    Wound("gptq v2", "gptq", "C5", quant(checkpoint_format="gptq_v2")),
    Wound("gptq rule of 3 bits", "gptq", "C5", quant(dynamic={r".*layers\.7\..*": {"bits": 3}})),
    Wound("ct without groups", "ct", "C6", quant(config_groups=None)),
    Wound("ct of another format", "ct", "C6", quant(format="int-quantized")),
    Wound("ct ignores nothing", "ct", "C6", quant(ignore=[])),
    Wound("ct ignores a packed linear", "ct", "C6", quant(ignore=["lm_head", DOWN])),
    Wound("ct ignores by a broken pattern", "ct", "C6", quant(ignore=["lm_head", "re:*_proj"])),
    Wound("ct leaves a plain linear unignored", "ct", "C6", unpacked(DOWN, 64, 128)),
    Wound("ct targets nothing", "ct", "C6", group(targets=[])),
    Wound("ct targets other modules", "ct", "C6", group(targets=["Conv2d"])),
    Wound("ct quantizes activations", "ct", "C6", group(input_activations={"num_bits": 8})),
    Wound("ct with an unknown key", "ct", "C6", weights(zero_points="int8")),
    Wound("ct in act order", "ct", "C6", weights(actorder="group")),
    Wound("ct without num_bits", "ct", "C6", weights(num_bits="absent")),
    Wound("ct without symmetric", "ct-asym", "C6", weights(symmetric="absent")),
    Wound("ct called asymmetric", "ct", "T1", weights(symmetric=False)),
    Wound("ct called symmetric", "ct-asym", "T11", weights(symmetric=True)),
    Wound("ct of floats", "ct", "C6", weights(type="float")),
    Wound("ct dynamic", "ct", "C6", weights(dynamic=True)),
    Wound("ct per tensor", "ct", "C6", weights(strategy="tensor")),
    Wound("ct groups without a size", "ct", "C6", weights(group_size=None)),
    Wound("ct channels with a size", "ct", "C6", weights(strategy="channel")),
    Wound("ct of other groups", "ct", "T3", weights(group_size=64)),
    Wound("ct groups that do not divide the inputs", "ct", "T4", weights(group_size=48)),
    Wound("ct sparse", "ct", "C6", quant(sparsity_config={"targets": ["Linear"], "format": "dense"})),
    Wound("skip list hits by substring", "awq", "C7", quant(modules_to_not_convert=["model.layers.1"])),
    Wound("skip list hits one shard", "awq", "C7", quant(modules_to_not_convert=["k_proj"])),
    Wound(
        "skip list misses a plain linear",
        "awq",
        "C7",
        both(unpacked(DOWN, 64, 128), quant(modules_to_not_convert=["lm_head"])),
    ),
    Wound("rule splits a fused layer", "gptq", "C8", quant(dynamic={r"-:.*q_proj$": {}})),
    Wound("rule that vLLM never asks", "gptq", "C8", quant(dynamic={r"+:.*\.k_proj$": {"bits": 8}})),
    Wound("rule skips a packed linear", "gptq", "C8", quant(dynamic={r"-:.*down_proj$": {}})),
    Wound("rule is no pattern", "gptq", "C8", quant(dynamic={"-:*down_proj": {}})),
    Wound("list leaves out packed linears", "gptq", "C8", quant(modules_in_block_to_quantize=[["self_attn.q_proj"]])),
    Wound("lm_head flag without codes", "awq", "C9", quant(lm_head=True)),
    Wound("lm_head flag without codes, gptq", "gptq", "C9", quant(lm_head=True), "qwen2"),
    Wound("tied flag over two tables", "ct", "C9", config(tie_word_embeddings=True), "qwen2"),
    Wound("untied flag without a head", "awq", "T10", config(tie_word_embeddings=False)),
    Wound("rotated weights", "gptq", "S10", quant(rotation="hadamard")),
    Wound("no rope_theta", "plain", "O1", config(rope_theta=None)),
    Wound("another rope_theta", "awq", "O1", config(rope_theta=10000.0)),
    Wound("no rope_scaling", "awq", "O1", config(rope_parameters={"rope_type": "linear", "factor": 2.0})),
    Wound("another torch_dtype", "awq", "O2", config(torch_dtype="bfloat16")),
    Wound("one block too many", "awq", "T1", config(num_hidden_layers=3)),
    Wound("one block too few", "gptq", "T11", config(num_hidden_layers=1)),
    Wound("wider mlp", "ct", "T3", config(intermediate_size=256)),
    Wound("more kv heads", "plain", "T10", config(num_key_value_heads=4)),
    Wound("larger vocabulary", "awq", "T10", config(vocab_size=192)),
    Wound("qwen2 called llama", "awq", "T8", config(model_type="llama", architectures=["LlamaForCausalLM"]), "qwen2"),
]

QKV_RULE = r"model\.layers\.1\.self_attn\.(q_proj|k_proj|v_proj|qkv_proj)$"
BY_LINEARS = [f"model.layers.1.self_attn.{letter}_proj" for letter in "qkv"]


def other_group(**values: Any) -> Act:
    """Set keys of the second group: that of the 8-bit modules."""
    return lambda patient: patient.quant["config_groups"]["group_1"].update(values)


def rules(*patterns: str) -> Act:
    """gptq's `dynamic` rules: 8 bits for what a + pattern matches."""
    return quant(dynamic={pattern: {"bits": 8} if pattern.startswith("+") else {} for pattern in patterns})


def eight_bits_asymmetric(patient: Patient) -> None:
    patient.quant["config_groups"]["group_1"]["weights"]["symmetric"] = False


def eight_bits_called_four(patient: Patient) -> None:
    patient.quant["config_groups"]["group_1"]["weights"]["num_bits"] = 4


END_WOUNDS = [
    Wound(name, kind, rule, act, "qwen2")
    for name, kind, rule, act in (
        ("one nibble of a packed head", "ct-ends", None, change("lm_head.weight_packed", flip)),
        ("one code of a packed embedding", "ct-ends", None, change(f"{EMBEDDING}.weight_packed", flip)),
        ("head that no group takes", "ct-ends", "C9", group(targets=["Linear"])),
        ("head that is ignored", "ct-ends", "C9", quant(ignore=["lm_head"])),
        ("embedding that no group takes", "ct-ends", "C9", other_group(targets=[f"re:{QKV_RULE}"])),
        ("embedding called asymmetric", "ct-ends", "C9", eight_bits_asymmetric),
        ("eight bits called four", "ct-ends", "T3", eight_bits_called_four),
        ("eight bits that no group takes", "ct-ends", "T3", other_group(targets=["Embedding"])),
        (
            "eight bits by unfused names",
            "ct-ends",
            "C8",
            other_group(targets=["Embedding", *BY_LINEARS]),
        ),
        ("eight bits of one shard", "ct-ends", "C8", other_group(targets=["Embedding", BY_LINEARS[0]])),
        ("tied flag over a packed embedding", "ct-ends", "C9", config(tie_word_embeddings=True)),
        ("packed embedding of a model that cannot look it up", "ct-ends", "C9", config(model_type="olmo2")),
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
        ("zeros of eight bits one of", "gptq-ends", "T5", put(f"{Q}.qzeros", (0, 2), 0x7F7F7F7E)),
    )
]

FILE_WOUNDS = [
    Wound("file cut short", "awq", "T9", cut_file, digest=False),
    Wound("header spoilt", "gptq", "T9", spoil_header, digest=False),
    Wound("extra file", "awq", "T9", extra_file, digest=False),
    Wound("index misses an entry", "awq", "T9", index_forgets, digest=False),
    Wound("index swaps files", "awq", "T9", index_swaps, digest=False),
    Wound("index leads out of the directory", "awq", "T9", index_leads_out, digest=False),
    Wound("index lists a ghost", "awq", "T9", index_lists_more, digest=False),
    Wound("index lost", "awq", "T9", index_lost, digest=False),
    Wound("shard lost", "awq", "T9", shard_lost, digest=False),
    Wound("shard that the index does not know", "awq", "T9", unlisted_shard, digest=False),
    Wound("tensor in two files", "awq", "T1", tensor_twice, digest=False),
    Wound("stray hf_quant_config.json", "awq", "C3", stray_modelopt, digest=False),
    Wound("tokenizer that only transformers 5 has", "plain", "O3", new_tokenizer, digest=False),
]

WOUNDS = TENSOR_WOUNDS + CONFIG_WOUNDS + END_WOUNDS + FILE_WOUNDS


def hurt(wound: Wound, good: Callable[[str, str], Path], folder: Path) -> Path:
    """A wounded copy; files are laid anew unless the wound is in them."""
    path = folder / "patient"
    shutil.copytree(good(wound.model, wound.kind), path)
    patient = Patient(path)
    wound.act(patient)
    if wound not in FILE_WOUNDS:
        patient.save()
    return path


def errors(path: Path) -> set[str]:
    """The rules broken, after a look at the rows themselves."""
    rows = check_checkpoint(path)
    for row in rows:
        assert {"rule", "value", "expected", "consequence", "level"} <= row.keys()
        assert row.keys() & {"tensor", "key", "file"} and json.dumps(row)
    return {row["rule"] for row in rows if row["level"] == "error"}


@pytest.mark.parametrize("wound", WOUNDS, ids=lambda wound: wound.name)
def test_every_kind_of_damage_is_reported(wound, good, tmp_path):
    path = hurt(wound, good, tmp_path)
    found = errors(path)
    assert found & {"D1", "D2"} if wound.digest else found
    (path / DIGESTS).unlink()
    if wound.rule is None:
        assert not errors(path), "a static rule sees it after all: name the rule"
    else:
        assert wound.rule in errors(path)


def test_there_are_more_than_thirty_kinds_of_damage():
    assert len(WOUNDS) > 30 and len({wound.name for wound in WOUNDS}) == len(WOUNDS)


@pytest.mark.parametrize("value", [None, "other"], ids=["lost", "changed"])
@pytest.mark.parametrize("kind", ["awq", "gptq", "ct", "ct-asym"])
def test_losing_or_changing_any_quantization_key_is_seen(kind, value, good):
    checkpoint = Checkpoint(good("llama", kind))
    whole = checkpoint.config
    for key, old in whole["quantization_config"].items():
        others = {k: v for k, v in whole["quantization_config"].items() if k != key}
        checkpoint.config = whole | {"quantization_config": others if value is None else others | {key: value}}
        found = list(config_matches_digests(Candidate(checkpoint, EMPTY_TABLE)))
        assert [row["key"] for row in found] == ["quantization_config"], f"{key}: {old} -> {value}"


@pytest.mark.parametrize("kind", ["plain", "awq"])
def test_losing_adding_or_changing_any_config_key_is_seen(kind, good):
    checkpoint = Checkpoint(good("qwen2", kind))
    whole = checkpoint.config
    for key in whole:
        for config in ({k: v for k, v in whole.items() if k != key}, whole | {key: "other"}):
            checkpoint.config = config
            assert [row["key"] for row in config_matches_digests(Candidate(checkpoint, EMPTY_TABLE))] == [key]
    checkpoint.config = whole | {"new_key": 1}
    assert [row["key"] for row in config_matches_digests(Candidate(checkpoint, EMPTY_TABLE))] == ["new_key"]
