"""Packed heads and embeddings, which few loaders support, and checkpoints that get only a warning."""

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
    """A copy without digests: `config`, `tensors`, and the rules that they break."""

    def __init__(self, source: Path, folder: Path):
        self.path = Path(shutil.copytree(source, folder / "model"))
        (self.path / DIGESTS).unlink()
        self.config = json.loads((self.path / "config.json").read_text())
        self.tensors = load_file(self.path / "model.safetensors")

    @property
    def quant(self) -> dict[str, Any]:
        return self.config["quantization_config"]

    def pack(self, module: str, *, bits: int = 4, group_size: int = 32, sym: bool) -> None:
        """The module's plain weight rounded and packed in the checkpoint's format."""
        row = FORMATS[self.quant["quant_method"]]
        weight = rtn(self.tensors.pop(f"{module}.weight"), Scheme(bits=bits, group_size=group_size, sym=sym))
        self.tensors |= {f"{module}.{suffix}": part for suffix, part in row.save(weight, torch.float16).items()}

    def target(self, name: str, **changes: Any) -> None:
        """One more compressed-tensors group for the target `name`."""
        group = {"targets": [name], "weights": WEIGHTS | changes, "input_activations": None, "output_activations": None}
        self.quant["config_groups"][f"group_{len(self.quant['config_groups'])}"] = group

    def rules(self, level: str = "error", **options: Any) -> set[str]:
        """The rules that the saved copy breaks at this level."""
        (self.path / "config.json").write_text(json.dumps(self.config))
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, self.path / "model.safetensors")
        return {row["rule"] for row in check_checkpoint(self.path, **options) if row["level"] == level}


@pytest.fixture
def model(good, tmp_path):
    """model(name, kind): a copy of a good checkpoint to be changed."""
    return lambda name, kind: Model(good(name, kind), tmp_path)


@pytest.mark.parametrize(("kind", "sym"), [("awq", False), ("gptq", True)])
def test_a_packed_head_passes_only_with_its_flag(model, kind, sym):
    copied = model("qwen2", kind)
    copied.pack(HEAD, sym=sym)
    copied.quant["lm_head"] = True
    assert not copied.rules()
    copied.quant["lm_head"] = False
    assert copied.rules() == {"C9"}


def test_a_packed_head_of_compressed_tensors_needs_a_target_by_name(model):
    copied = model("qwen2", "ct")
    copied.pack(HEAD, sym=True)
    copied.quant["ignore"] = []
    assert "C9" in copied.rules()
    copied.target("re:.*lm_head$")
    assert not copied.rules() and "C9" not in copied.rules("warning")
    copied.config["tie_word_embeddings"] = True
    assert not copied.rules() and "C9" in copied.rules("warning")


@pytest.mark.parametrize(("kind", "expected"), [("awq", {"C9"}), ("ct", set())])
def test_only_compressed_tensors_packs_a_head_of_any_vocabulary_size(model, kind, expected):
    copied = model("qwen2", kind)
    for name in (HEAD, EMBEDDING):
        copied.tensors[f"{name}.weight"] = copied.tensors[f"{name}.weight"][:96]
    copied.config["vocab_size"] = 96
    copied.pack(HEAD, sym=kind == "ct")
    copied.quant["lm_head"] = True
    if kind == "ct":
        del copied.quant["lm_head"]
        copied.quant["ignore"] = []
        copied.target(HEAD)
    assert copied.rules() - {"P2"} == expected  # the tokenizer keeps its 128 tokens


def test_a_packed_head_is_an_error_for_models_without_one_in_vllm(model):
    copied = model("qwen2", "awq")
    copied.pack(HEAD, sym=False)
    copied.quant["lm_head"] = True
    copied.config |= {"model_type": "cohere", "architectures": ["CohereForCausalLM"]}
    assert "C9" in copied.rules()


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("qwen2", "re:.*embed_tokens$", set()),
        ("qwen2", "Embedding", set()),
        ("qwen2", "model.norm", {"C9"}),
    ],
)
def test_a_packed_embedding_needs_a_target_that_vllm_matches(model, name, target, expected):
    copied = model(name, "ct")
    copied.pack(EMBEDDING, bits=8, group_size=64, sym=True)
    copied.target(target, num_bits=8, strategy="channel", group_size=None)
    assert copied.rules() == expected


def untied_llama(model) -> Model:
    copied = model("llama", "ct")
    copied.tensors["lm_head.weight"] = copied.tensors[f"{EMBEDDING}.weight"].flip(0)
    copied.config["tie_word_embeddings"] = False
    return copied


def test_llama_matches_a_packed_embedding_by_class_only(model):
    copied = untied_llama(model)
    copied.pack(EMBEDDING, sym=True)
    copied.target("re:.*embed_tokens$")
    assert copied.rules() == {"C9"}
    copied.target("Embedding")
    assert not copied.rules()


def test_a_packed_embedding_cannot_be_tied_asymmetric_or_of_another_format(model, good, tmp_path):
    copied = untied_llama(model)
    copied.pack(EMBEDDING, sym=True)
    copied.target("Embedding", symmetric=False)
    assert "C9" in copied.rules()
    copied = Model(good("llama", "ct"), tmp_path / "tied")
    copied.pack(EMBEDDING, sym=True)
    copied.target("Embedding")
    assert copied.rules() == {"C9"}
    copied = Model(good("qwen2", "awq"), tmp_path / "awq")
    copied.pack(EMBEDDING, sym=False)
    assert copied.rules() == {"C9"}


def test_an_unsupported_model_with_a_packed_embedding_is_an_error(model):
    copied = model("qwen2", "ct")
    copied.pack(EMBEDDING, sym=True)
    copied.target("Embedding")
    copied.config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    assert "C9" in copied.rules()


def test_text_config_with_another_tie_flag_is_an_error(model):
    copied = model("qwen2", "plain")
    copied.config["text_config"] = {"tie_word_embeddings": True}
    assert "C9" in copied.rules()


@pytest.mark.parametrize("name", ["torch_dtype", "rope_theta"])
def test_a_plain_model_passes_with_the_old_config_keys_only(model, name):
    copied = model("llama", "plain")
    if name == "torch_dtype":
        del copied.config["dtype"]
    else:
        del copied.config["rope_parameters"]
    assert not copied.rules() and not copied.rules("warning")


def remove_keys(*keys: str):
    def change(copied: Model) -> None:
        for key in keys:
            copied.quant.pop(key, None) if key in copied.quant else copied.config.pop(key)

    return change


def double(copied: Model) -> None:
    copied.config |= {"dtype": "float32", "torch_dtype": "float32"}
    copied.tensors = {name: tensor.float() for name, tensor in copied.tensors.items()}


def odd_tokenizer(copied: Model) -> None:
    (copied.path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')


def no_tokenizer(copied: Model) -> None:
    for file in copied.path.glob("tokenizer*"):
        file.unlink()


def pickles_too(copied: Model) -> None:
    (copied.path / "pytorch_model.bin").write_bytes(b"")


def subnormal_scale(copied: Model) -> None:
    copied.tensors[f"{Q}.scales"][0, 3] = 2.0**-15


def norm_of_zeros(copied: Model) -> None:
    copied.tensors[NORM].zero_()


def mild_rope(copied: Model) -> None:
    copied.config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000}
    del copied.config["rope_theta"]


def other_scales(copied: Model) -> None:
    copied.tensors[f"{Q}.scales"] = copied.tensors[f"{Q}.scales"].bfloat16()


def mild_transform(copied: Model) -> None:
    copied.quant["transform_config"] = {"config_groups": {}, "note": "hadamard"}


def plain_mlp(copied: Model) -> None:
    """Unpack one down_proj without a rule that skips it."""
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        del copied.tensors[f"model.layers.0.mlp.down_proj.{suffix}"]
    copied.tensors["model.layers.0.mlp.down_proj.weight"] = torch.randn(64, 128).half()


DOUBTS = {
    "float32 weights": ("plain", "C2", double),
    "awq without version": ("awq", "C4", remove_keys("version")),
    "gptq without checkpoint_format": ("gptq", "C5", remove_keys("checkpoint_format")),
    "a plain linear without a gptq rule": ("gptq", "C8", plain_mlp),
    "weights transformed": ("ct", "S10", mild_transform),
    "no rope_theta where it is the default": ("plain", "O1", mild_rope),
    "no torch_dtype": ("awq", "O2", remove_keys("torch_dtype")),
    "no tokenizer": ("plain", "O3", no_tokenizer),
    "an unknown tokenizer class": ("plain", "O3", odd_tokenizer),
    "scales of another dtype": ("awq", "T2", other_scales),
    "a scale below the normal numbers": ("awq", "T7", subnormal_scale),
    "pickles beside safetensors": ("plain", "T9", pickles_too),
    "a norm of zeros": ("plain", "T10", norm_of_zeros),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_a_doubtful_checkpoint_gives_a_warning_and_no_error(model, name):
    kind, rule, change = DOUBTS[name]
    copied = model("llama", kind)
    change(copied)
    assert rule in copied.rules("warning") and not copied.rules("error")


def test_awq_with_one_group_per_output_cannot_be_split_over_ranks(model):
    for kind, broken in {"awq": {"TP"}, "gptq": set()}.items():
        copied = Model.__new__(Model)
        copied.__dict__.update(vars(model("llama", kind)))
        for module in [name.removesuffix(".scales") for name in copied.tensors if name.endswith(".scales")]:
            inn = 128 if module.endswith("down_proj") else 64
            out = copied.tensors[f"{module}.scales"].shape[1]
            for suffix in ("qweight", "qzeros", "scales", "g_idx"):
                copied.tensors.pop(f"{module}.{suffix}", None)
            copied.tensors[f"{module}.weight"] = torch.randn(out, inn) * 0.1
            copied.pack(module, group_size=inn, sym=kind == "gptq")
        copied.quant["group_size"] = -1
        assert not copied.rules() and copied.rules(tensor_parallel_size=2) == broken
        shutil.rmtree(copied.path)


def test_several_ranks_of_an_unknown_family_are_a_warning(model):
    copied = model("llama", "plain")
    copied.config |= {"model_type": "helium", "architectures": ["HeliumForCausalLM"]}
    assert "TP" in copied.rules("warning", tensor_parallel_size=2)


def test_an_empty_unlisted_file_is_a_warning(good, tmp_path):
    copied = Model(good("llama", "plain"), tmp_path)
    places = dict.fromkeys(copied.tensors, "model.safetensors")
    (copied.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file({}, copied.path / "empty.safetensors")
    assert copied.rules("warning") == {"T9"} and not copied.rules()


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
    copied = model("llama", "gptq")
    copied.quant.update(changes)
    assert copied.rules() >= {rule} if rule else not copied.rules()


def test_gptq_rules_may_set_other_bits_for_a_fused_layer(model):
    copied = model("llama", "gptq")
    for letter in "qkv":
        module = f"model.layers.1.self_attn.{letter}_proj"
        out = copied.tensors[f"{module}.scales"].shape[1]
        for suffix in ("qweight", "qzeros", "scales", "g_idx"):
            del copied.tensors[f"{module}.{suffix}"]
        copied.tensors[f"{module}.weight"] = torch.randn(out, 64) * 0.1
        copied.pack(module, bits=8, group_size=64, sym=True)
    settings = {"bits": 8, "group_size": -1}
    copied.quant["dynamic"] = {r"+:.*layers\.1\.self_attn\.(q|k|v|qkv)_proj$": settings}
    assert not copied.rules()
    copied.quant["dynamic"] = {r"+:.*layers\.1\.self_attn\.(q|k|v)_proj$": settings}
    assert "C8" in copied.rules()


def test_a_plain_linear_in_a_gptq_list_is_an_error(model):
    copied = model("llama", "gptq")
    plain_mlp(copied)
    copied.quant["modules_in_block_to_quantize"] = ["self_attn", "mlp"]
    assert "C8" in copied.rules()


def test_ct_weights_that_are_no_object_are_an_error(model):
    copied = model("llama", "ct")
    copied.quant["config_groups"]["group_0"]["weights"] = None
    assert "C6" in copied.rules()


def test_a_group_size_without_a_marlin_kernel_is_a_warning(model):
    copied = model("llama", "ct")
    copied.quant["config_groups"]["group_0"]["weights"]["group_size"] = 16
    assert "C6" in copied.rules("warning")
