import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import partial_path
from compress.core.config import METHODS, QuantizeConfig, parse_size
from compress.core.errors import QCompressError
from compress.quantize.job import RunOptions, quantize_checkpoint
from compress.quantize.layout.job_plan import plan_quantize


def settings(method="gptq", format="gptq", **changes):
    return QuantizeConfig(**({"method": method, "format": format, "samples": 8, "seq_len": 32} | changes))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ALL = [(m, "awq", None) for m in METHODS] + [(m, "gptq", None) for m in METHODS]
ALL += [(m, "compressed-tensors", sym) for m in ("rtn", "awq+gptq") for sym in (True, False)]


@pytest.mark.parametrize(("method", "format", "sym"), ALL)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_every_method_passes_check_loads_and_has_the_planned_bytes(request, tmp_path, model, method, format, sym):
    source, out, config = request.getfixturevalue(model), tmp_path / "out", settings(method, format, sym=sym)
    row = quantize_checkpoint(source, out, config)
    assert [r for r in check_checkpoint(out, source=source) if r["level"] == "error"] == []
    assert row["bytes"] == Checkpoint(out).bytes == plan_quantize(source, config)[1].bytes
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert load_model(out)(ids).logits.isfinite().all()
    assert not partial_path(out).exists()


LAYOUTS = [
    ("tiny_qwen2", "awq", {"head_bits": 4}),
    ("tiny_qwen2", "gptq", {"head_bits": 4}),
    ("tiny_qwen2", "gptq", {"head_bits": 8, "eight_bit": ("layers.0.mlp",)}),
    ("tiny_qwen2", "compressed-tensors", {"head_bits": 4}),
    ("tiny_qwen2", "compressed-tensors", {"embedding_bits": 8, "sym": True}),
    ("tiny_qwen2", "compressed-tensors", {"head_bits": 4, "embedding_bits": 8}),
    ("tiny_qwen2", "compressed-tensors", {"head_bits": 8, "embedding_bits": 8, "eight_bit": ("k_proj", "down_proj")}),
    ("tiny_llama", "compressed-tensors", {"head_bits": 4, "embedding_bits": 8}),
    ("tiny_llama", "compressed-tensors", {"eight_bit": ("layers.1",), "sym": True}),
]


@pytest.mark.parametrize(("model", "format", "changes"), LAYOUTS)
@pytest.mark.parametrize("method", ["rtn", "awq+gptq"])
def test_every_layout_passes_check_loads_and_has_the_planned_bytes(request, tmp_path, method, model, format, changes):
    source, out, config = request.getfixturevalue(model), tmp_path / "out", settings(method, format, **changes)
    row = quantize_checkpoint(source, out, config)
    assert [r for r in check_checkpoint(out, source=source) if r["level"] == "error"] == []
    assert row["bytes"] == Checkpoint(out).bytes == plan_quantize(source, config)[1].bytes
    ids = torch.arange(32)[None]
    with torch.no_grad():
        quantized, plain = load_model(out)(ids).logits, load_model(source)(ids).logits
    assert (quantized - plain).square().mean() < 0.3 * plain.square().mean()


@pytest.mark.parametrize(("model", "format", "changes"), [each for each in LAYOUTS if each[1] == "compressed-tensors"])
def test_transformers_gives_our_logits_unless_the_embedding_is_packed(request, tmp_path, model, format, changes):
    from transformers import AutoModelForCausalLM

    quantize_checkpoint(request.getfixturevalue(model), tmp_path / "out", settings("rtn", format, **changes))
    if "embedding_bits" in changes:  # transformers 5.19 initializes the weight that it has taken away
        with pytest.raises(AttributeError, match="no attribute 'weight'"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        return
    ids = torch.arange(4, 24)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(tmp_path / "out")(ids).logits, atol=2e-3, rtol=2e-3)


def test_the_same_command_writes_the_same_bytes(tiny_llama, tmp_path):
    for name in ("a", "b"):
        quantize_checkpoint(tiny_llama, tmp_path / name, settings())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_gptq_and_compressed_tensors_store_the_same_weights(tiny_llama, tmp_path):
    weights = []
    for format, sym in (("gptq", None), ("compressed-tensors", True)):
        quantize_checkpoint(tiny_llama, tmp_path / format, settings("rtn", format, sym=sym))
        weights.append(quantized_weight(Checkpoint(tmp_path / format), "model.layers.0.mlp.up_proj").dequantize())
    assert torch.equal(*weights)


def test_the_record_has_the_settings_the_text_and_a_row_per_linear(tiny_llama, tmp_path):
    quantize_checkpoint(tiny_llama, tmp_path / "out", settings())
    record = Checkpoint(tmp_path / "out").record
    assert record["command"] == "quantize" and record["settings"]["group_size"] == 64
    assert record["calibration"]["sources"][0]["digest"].startswith("sha256:")
    assert "token" in record["calibration"]["start"]
    assert len(record["rows"]) == 14 and record["source"]["digest"].startswith("sha256:")


def with_tensors(source, out, **changes):
    """A copy of a checkpoint in which some tensors are replaced."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    save_file(tensors | {name: change(tensors[name]) for name, change in changes.items()}, out / "model.safetensors")
    (out / "qcompress.sha256.json").unlink(missing_ok=True)
    return out


NAME = "model.layers.1.mlp.up_proj.weight"


def poisoned(value):
    def change(tensor):
        tensor = tensor.float() if abs(value) > 1e4 else tensor.clone()
        tensor[0, 0] = value
        return tensor

    return change


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_nan_or_infinite_weight_is_named_and_nothing_is_written(tiny_llama, tmp_path, value, words):
    source = with_tensors(tiny_llama, tmp_path / "source", **{NAME: poisoned(value)})
    with pytest.raises(QCompressError, match=rf"{NAME}.*{words}"):
        quantize_checkpoint(source, tmp_path / "out", settings("rtn"))
    assert not (tmp_path / "out").exists()


def test_the_error_for_a_float16_overflow_suggests_bfloat16(tiny_llama, tmp_path):
    name = "model.embed_tokens.weight"
    source = with_tensors(tiny_llama, tmp_path / "source", **{name: poisoned(1e6)})
    with pytest.raises(QCompressError, match=rf"{name}: 1e\+06 overflows.*--dtype bfloat16"):
        quantize_checkpoint(source, tmp_path / "out", settings("rtn"))
    quantize_checkpoint(source, tmp_path / "bf16", settings("rtn", dtype="bfloat16"))
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_refused_as_a_source(tiny_llama, tmp_path):
    quantize_checkpoint(tiny_llama, tmp_path / "out", settings("rtn"))
    with pytest.raises(QCompressError, match="already quantized"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "twice", settings("rtn"))


def test_a_group_size_that_does_not_divide_names_the_linear(tiny_llama):
    with pytest.raises(
        QCompressError, match=r"q_proj: --group-size 128 does not divide the 64 inputs of this linear; use 64, 32"
    ):
        plan_quantize(tiny_llama, settings(group_size=128))


def test_the_default_group_size_is_the_largest_legal_one(tiny_llama):
    assert plan_quantize(tiny_llama, settings())[1].scheme.group_size == 64


def test_the_reason_for_a_group_size_below_128_is_reported(tiny_llama, tmp_path):
    lines = []
    quantize_checkpoint(tiny_llama, tmp_path / "out", settings("rtn"), RunOptions(report=lines.append))
    reasons = [line["group_size"] for line in lines if set(line) == {"group_size"}]
    assert reasons == ["auto chose 64: 128 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(("module", "name"), [("psutil", "virtual_memory"), ("shutil", "disk_usage")])
def test_too_little_memory_or_disk_is_an_error_before_any_work(tiny_llama, tmp_path, monkeypatch, module, name):
    little = SimpleNamespace(available=1000, free=1000)
    monkeypatch.setattr(f"{module}.{name}", lambda *arguments: little)
    with pytest.raises(QCompressError, match=r"needs .*(available|free)"):
        quantize_checkpoint(tiny_llama, tmp_path / "out", settings("rtn"))
    assert list(tmp_path.iterdir()) == []


def test_an_exceeded_budget_reports_the_excess_bytes(tiny_llama):
    size = plan_quantize(tiny_llama, settings())[1].bytes
    plan_quantize(tiny_llama, settings(max_size=size))
    with pytest.raises(QCompressError, match=r" 1 over --max-size"):
        plan_quantize(tiny_llama, settings(max_size=size - 1))


def test_an_output_folder_with_files_is_refused(tiny_llama, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(QCompressError, match="not empty"):
        quantize_checkpoint(tiny_llama, tmp_path, settings("rtn"))
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_float16_on_a_cpu_is_refused_with_the_dtypes_to_use(tiny_llama, tmp_path):
    config = QuantizeConfig(method="gptq", format="gptq", compute_dtype="float16")
    with pytest.raises(QCompressError, match=r"--compute-dtype float16.*use bfloat16 or float32"):
        quantize_checkpoint(tiny_llama, tmp_path / "out", config)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_no_causal_lm_is_refused(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "bert")
    config = json.loads((tmp_path / "bert/config.json").read_text()) | {
        "model_type": "bert",
        "architectures": ["BertModel"],
    }
    (tmp_path / "bert/config.json").write_text(json.dumps(config))
    with pytest.raises(QCompressError, match="not a causal language model"):
        plan_quantize(tmp_path / "bert", settings())


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 8 * 10**8), ("12B", 12)]
)
def test_sizes_are_parsed_with_decimal_and_binary_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "changes", [{"group_size": 48}, {"bits": 3}, {"sym": False}, {"damp_percent": 0.0}, {"samples": 0}]
)
def test_impossible_settings_raise_a_value_error(changes):
    with pytest.raises(ValueError):
        settings(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("method", ["gptq", "awq+gptq"])
def test_errors_on_a_gpu_differ_from_the_cpu_by_at_most_a_tenth(method, tiny_qwen2, tmp_path):
    config = QuantizeConfig(method=method, format="awq", samples=32, seq_len=32)
    rows = {}
    for device in ("cpu", "cuda"):
        quantize_checkpoint(tiny_qwen2, tmp_path / device, config, RunOptions(device=device))
        rows[device] = Checkpoint(tmp_path / device).record["rows"]
    for ours, theirs in zip(rows["cpu"], rows["cuda"], strict=True):
        assert theirs["error"] == pytest.approx(ours["error"], rel=0.1), ours["linear"]
