"""The public functions: `from compress import quantize, distill, check, verify, compare`."""

import inspect
import subprocess
import sys

import pytest
import torch

import compress
from compress import api
from compress.core.errors import QCompressError

SMALL = {"samples": 8, "seq_len": 32}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 40)
    return path


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_compress_loads_neither_torch_nor_transformers():
    assert run_python("import sys, compress; print({'torch', 'transformers', 'click'} & sys.modules.keys())") == "set()"


@pytest.mark.parametrize("name", compress.__all__)
def test_a_public_function_documents_arguments_result_and_errors(name):
    function = getattr(api, name)
    parts = ("Args:", "Returns:", "Raises:", "Example:")
    places = [function.__doc__.index(f"\n    {part}") for part in parts]
    assert places == sorted(places)
    assert all(f"        {argument}: " in function.__doc__ for argument in inspect.signature(function).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", compress.__all__)
def test_a_public_function_stays_callable_after_its_package_is_imported(name):
    code = "import compress.quantize.methods.rtn, compress.distill.config, compress.checkpoint.check.run\n"
    code += f"from compress import {name}; import compress.distill.config as config; print(callable({name}), "
    code += "config.__name__, compress.quantize.methods.rtn.__name__)"
    assert run_python(code) == "True compress.distill.config compress.quantize.methods.rtn"


def test_a_model_is_quantized_checked_verified_and_compared(tiny_llama, tmp_path, text):
    from compress import check, compare, quantize, verify

    out = tmp_path / "out"
    rows = []
    row = quantize(
        tiny_llama, out, method="gptq", group_size=32, device="cpu", report=rows.append, samples=8, seq_len=32
    )
    assert row["bytes"] == (out / "model.safetensors").stat().st_size and rows
    assert {row["level"] for row in check(out, source=str(tiny_llama))} <= {"warning"}
    verdict = verify(tiny_llama, out, eval_text=str(text), max_kl=0.0, **SMALL)
    assert verdict["kl"] > 0 and verdict["passed"] is False and "above the limit" in verdict["reason"]
    page = tmp_path / "report.html"
    reference, candidate = compare(tiny_llama, [out], eval_text=str(text), html=page, **SMALL)
    assert reference["role"] == "reference" and candidate["kl"] == verdict["kl"]
    assert page.read_text().startswith("<!")


def test_a_student_is_distilled(tiny_llama, tmp_path):
    from compress import distill

    row = distill(tiny_llama, tmp_path / "student", blocks=1, steps=1, batch_size=2, seq_len=32)
    assert row["kl_after"] < row["kl_before"]


def test_a_misspelled_setting_is_named_with_the_nearest():
    with pytest.raises(TypeError, match=r"quantize: 'grup_size' is not a setting; did you mean group_size\?"):
        api.quantize("model", "out", grup_size=64)


def test_a_missing_model_is_a_qcompress_error(tmp_path):
    with pytest.raises(QCompressError, match="no such directory"):
        api.check(tmp_path / "none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_verify_and_compare_run_on_the_requested_device(tiny_llama, text):
    for run in (lambda **on: api.verify(tiny_llama, tiny_llama, **on), lambda **on: api.compare(tiny_llama, [], **on)):
        with pytest.raises(QCompressError, match="--device cuda: torch finds no GPU"):
            run(eval_text=str(text), device="cuda", **SMALL)
