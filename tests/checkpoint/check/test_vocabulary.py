"""Packed heads and embeddings, which few loaders know, and what is doubtful but not wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.formats import FORMATS
from compress.checkpoint.record import DIGESTS
from compress.core.grid import Scheme
from compress.quantize.methods.rtn import rtn

Q, NORM = "model.layers.1.self_attn.q_proj", "model.layers.0.input_layernorm.weight"
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False}


class Model:
    """A copy without digests: `config`, `tensors`, and what the validator says of them."""

    def __init__(self, source: Path, folder: Path):
        self.path = Path(shutil.copytree(source, folder / "model"))
        (self.path / DIGESTS).unlink()
        self.config = json.loads((self.path / "config.json").read_text())
        self.tensors = load_file(self.path / "model.safetensors")

    @property
    def quant(self) -> dict[str, Any]:
        return self.config["quantization_config"]

    def pack(self, module: str, *, bits: int = 4, group_size: int = 32, sym: bool) -> None:
        """The module's plain weight rounded and packed in the checkpoint's own format."""
        row = FORMATS[self.quant["quant_method"]]
        weight = rtn(self.tensors.pop(f"{module}.weight"), Scheme(bits=bits, group_size=group_size, sym=sym))
        self.tensors |= {f"{module}.{suffix}": part for suffix, part in row.save(weight, torch.float16).items()}

    def target(self, name: str, **changes: Any) -> None:
        """One more compressed-tensors group for the target `name`."""
        group = {"targets": [name], "weights": WEIGHTS | changes, "input_activations": None, "output_activations": None}
        self.quant["config_groups"][f"group_{len(self.quant['config_groups'])}"] = group

    def found(self, level: str = "error", **options: Any) -> set[str]:
        (self.path / "config.json").write_text(json.dumps(self.config))
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, self.path / "model.safetensors")
        return {row["rule"] for row in check_checkpoint(self.path, **options) if row["level"] == level}


@pytest.fixture
def model(good, tmp_path):
    """model(name, kind): a copy of a good checkpoint to be changed."""
    return lambda name, kind: Model(good(name, kind), tmp_path)


@pytest.mark.parametrize(("kind", "sym"), [("awq", False), ("gptq", True)])
def test_a_packed_head_passes_with_its_flag_and_only_with_it(model, kind, sym):
    patient = model("qwen2", kind)
    patient.pack(HEAD, sym=sym)
    patient.quant["lm_head"] = True
    assert not patient.found()
    patient.quant["lm_head"] = False
    assert patient.found() == {"C9"}


def test_a_packed_head_of_compressed_tensors_needs_a_target_by_name(model):
    patient = model("qwen2", "ct")
    patient.pack(HEAD, sym=True)
    patient.quant["ignore"] = []
    assert "C9" in patient.found()
    patient.target("re:.*lm_head$")
    assert not patient.found() and "C9" not in patient.found("warning")
    patient.config["tie_word_embeddings"] = True
    assert not patient.found() and "C9" in patient.found("warning")


@pytest.mark.parametrize(("kind", "expected"), [("awq", {"C9"}), ("ct", set())])
def test_only_compressed_tensors_packs_a_head_of_any_vocabulary(model, kind, expected):
    patient = model("qwen2", kind)
    for name in (HEAD, EMBEDDING):
        patient.tensors[f"{name}.weight"] = patient.tensors[f"{name}.weight"][:96]
    patient.config["vocab_size"] = 96
    patient.pack(HEAD, sym=kind == "ct")
    patient.quant["lm_head"] = True
    if kind == "ct":
        del patient.quant["lm_head"]
        patient.quant["ignore"] = []
        patient.target(HEAD)
    assert patient.found() == expected


def test_a_head_is_not_packed_where_vllm_has_none(model):
    patient = model("qwen2", "awq")
    patient.pack(HEAD, sym=False)
    patient.quant["lm_head"] = True
    patient.config |= {"model_type": "cohere", "architectures": ["CohereForCausalLM"]}
    assert "C9" in patient.found()


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("qwen2", "re:.*embed_tokens$", set()),
        ("qwen2", "Embedding", set()),
        ("qwen2", "model.norm", {"C9"}),
    ],
)
def test_a_packed_embedding_needs_a_target_that_vllm_asks_about(model, name, target, expected):
    patient = model(name, "ct")
    patient.pack(EMBEDDING, bits=8, group_size=64, sym=True)
    patient.target(target, num_bits=8, strategy="channel", group_size=None)
    assert patient.found() == expected


def untied_llama(model) -> Model:
    patient = model("llama", "ct")
    patient.tensors["lm_head.weight"] = patient.tensors[f"{EMBEDDING}.weight"].flip(0)
    patient.config["tie_word_embeddings"] = False
    return patient


def test_llama_finds_a_packed_embedding_by_class_only(model):
    patient = untied_llama(model)
    patient.pack(EMBEDDING, sym=True)
    patient.target("re:.*embed_tokens$")
    assert patient.found() == {"C9"}
    patient.target("Embedding")
    assert not patient.found()


def test_a_packed_embedding_cannot_be_tied_asymmetric_or_of_another_format(model, good, tmp_path):
    patient = untied_llama(model)
    patient.pack(EMBEDDING, sym=True)
    patient.target("Embedding", symmetric=False)
    assert "C9" in patient.found()
    patient = Model(good("llama", "ct"), tmp_path / "tied")
    patient.pack(EMBEDDING, sym=True)
    patient.target("Embedding")
    assert patient.found() == {"C9"}
    patient = Model(good("qwen2", "awq"), tmp_path / "awq")
    patient.pack(EMBEDDING, sym=False)
    assert patient.found() == {"C9"}


def test_a_packed_embedding_is_refused_for_models_that_cannot_look_it_up(model):
    patient = model("qwen2", "ct")
    patient.pack(EMBEDDING, sym=True)
    patient.target("Embedding")
    patient.config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    assert "C9" in patient.found()


def test_text_config_may_not_tie_otherwise(model):
    patient = model("qwen2", "plain")
    patient.config["text_config"] = {"tie_word_embeddings": True}
    assert "C9" in patient.found()


@pytest.mark.parametrize("name", ["torch_dtype", "rope_theta"])
def test_a_plain_model_without_digests_passes_with_old_names_alone(model, name):
    patient = model("llama", "plain")
    if name == "torch_dtype":
        del patient.config["dtype"]
    else:
        del patient.config["rope_parameters"]
    assert not patient.found() and not patient.found("warning")


def forget(*keys: str):
    def act(patient: Model) -> None:
        for key in keys:
            patient.quant.pop(key, None) if key in patient.quant else patient.config.pop(key)

    return act


def double(patient: Model) -> None:
    patient.config |= {"dtype": "float32", "torch_dtype": "float32"}
    patient.tensors = {name: tensor.float() for name, tensor in patient.tensors.items()}


def odd_tokenizer(patient: Model) -> None:
    (patient.path / "tokenizer_config.json").write_text('{"tokenizer_class": "TinyTokenizerOfNobody"}')


def no_tokenizer(patient: Model) -> None:
    for file in patient.path.glob("tokenizer*"):
        file.unlink()


def pickles_too(patient: Model) -> None:
    (patient.path / "pytorch_model.bin").write_bytes(b"")


def subnormal_scale(patient: Model) -> None:
    patient.tensors[f"{Q}.scales"][0, 3] = 2.0**-15


def norm_of_zeros(patient: Model) -> None:
    patient.tensors[NORM].zero_()


def mild_rope(patient: Model) -> None:
    patient.config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000}
    del patient.config["rope_theta"]


def other_scales(patient: Model) -> None:
    patient.tensors[f"{Q}.scales"] = patient.tensors[f"{Q}.scales"].bfloat16()


def mild_transform(patient: Model) -> None:
    patient.quant["transform_config"] = {"config_groups": {}, "note": "hadamard"}


def plain_mlp(patient: Model) -> None:
    """One down_proj left as it was, and no rule that says so."""
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        del patient.tensors[f"model.layers.0.mlp.down_proj.{suffix}"]
    patient.tensors["model.layers.0.mlp.down_proj.weight"] = torch.randn(64, 128).half()


DOUBTS = {
    "float32 weights": ("plain", "C2", double),
    "awq without version": ("awq", "C4", forget("version")),
    "gptq without checkpoint_format": ("gptq", "C5", forget("checkpoint_format")),
    "a plain linear without a gptq rule": ("gptq", "C8", plain_mlp),
    "weights transformed": ("ct", "S10", mild_transform),
    "no rope_theta where it is the default": ("plain", "O1", mild_rope),
    "no torch_dtype": ("awq", "O2", forget("torch_dtype")),
    "no tokenizer": ("plain", "O3", no_tokenizer),
    "a tokenizer class of nobody": ("plain", "O3", odd_tokenizer),
    "scales of another dtype": ("awq", "T2", other_scales),
    "a scale below the normal numbers": ("awq", "T7", subnormal_scale),
    "pickles beside safetensors": ("plain", "T9", pickles_too),
    "a norm of zeros": ("plain", "T10", norm_of_zeros),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_is_only_doubtful_is_a_warning(model, name):
    kind, rule, act = DOUBTS[name]
    patient = model("llama", kind)
    act(patient)
    assert rule in patient.found("warning") and not patient.found("error")


def test_one_group_per_output_is_allowed_but_awq_cannot_share_it_among_ranks(model):
    for kind, broken in {"awq": {"TP"}, "gptq": set()}.items():
        patient = Model.__new__(Model)
        patient.__dict__.update(vars(model("llama", kind)))
        for module in [name.removesuffix(".scales") for name in patient.tensors if name.endswith(".scales")]:
            inn = 128 if module.endswith("down_proj") else 64
            out = patient.tensors[f"{module}.scales"].shape[1]
            for suffix in ("qweight", "qzeros", "scales", "g_idx"):
                patient.tensors.pop(f"{module}.{suffix}", None)
            patient.tensors[f"{module}.weight"] = torch.randn(out, inn) * 0.1
            patient.pack(module, group_size=inn, sym=kind == "gptq")
        patient.quant["group_size"] = -1
        assert not patient.found() and patient.found(tensor_parallel_size=2) == broken
        shutil.rmtree(patient.path)


def test_ranks_of_an_unknown_family_are_doubtful(model):
    patient = model("llama", "plain")
    patient.config |= {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    assert "TP" in patient.found("warning", tensor_parallel_size=2)


def test_an_empty_file_beside_the_index_is_only_doubtful(good, tmp_path):
    patient = Model(good("llama", "plain"), tmp_path)
    places = dict.fromkeys(patient.tensors, "model.safetensors")
    (patient.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file({}, patient.path / "empty.safetensors")
    assert patient.found("warning") == {"T9"} and not patient.found()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"dynamic": ["-:.*"]}, "C5"),
        ({"modules_in_block_to_quantize": ["lm_head"]}, "C8"),
        ({"modules_in_block_to_quantize": ["self_attn", "mlp"]}, None),
    ],
    ids=["rules as a list", "another module listed", "all modules listed"],
)
def test_gptq_lists_are_read_as_vllm_reads_them(model, changes, rule):
    patient = model("llama", "gptq")
    patient.quant.update(changes)
    assert patient.found() >= {rule} if rule else not patient.found()


def test_gptq_rules_may_give_a_whole_fused_layer_other_bits(model):
    patient = model("llama", "gptq")
    for letter in "qkv":
        module = f"model.layers.1.self_attn.{letter}_proj"
        out = patient.tensors[f"{module}.scales"].shape[1]
        for suffix in ("qweight", "qzeros", "scales", "g_idx"):
            del patient.tensors[f"{module}.{suffix}"]
        patient.tensors[f"{module}.weight"] = torch.randn(out, 64) * 0.1
        patient.pack(module, bits=8, group_size=64, sym=True)
    settings = {"bits": 8, "group_size": -1}
    patient.quant["dynamic"] = {r"+:.*layers\.1\.self_attn\.(q|k|v|qkv)_proj$": settings}
    assert not patient.found()
    patient.quant["dynamic"] = {r"+:.*layers\.1\.self_attn\.(q|k|v)_proj$": settings}
    assert "C8" in patient.found()


def test_a_plain_linear_that_a_gptq_list_claims_is_an_error(model):
    patient = model("llama", "gptq")
    plain_mlp(patient)
    patient.quant["modules_in_block_to_quantize"] = ["self_attn", "mlp"]
    assert "C8" in patient.found()


def test_ct_weights_that_are_no_object_are_an_error(model):
    patient = model("llama", "ct")
    patient.quant["config_groups"]["group_0"]["weights"] = None
    assert "C6" in patient.found()


def test_ct_groups_that_marlin_lacks_are_doubtful(model):
    patient = model("llama", "ct")
    patient.quant["config_groups"]["group_0"]["weights"]["group_size"] = 16
    assert "C6" in patient.found("warning")
