"""The public functions: `from compress import quantize, distill, check, verify, compare`."""

import errno
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


@pytest.mark.parametrize("name", compress.FUNCTIONS)
def test_a_public_function_documents_arguments_result_and_errors(name):
    function = getattr(api, name)
    parts = ("Args:", "Returns:", "Raises:", "Example:")
    places = [function.__doc__.index(f"\n    {part}") for part in parts]
    assert places == sorted(places)
    assert all(f"        {argument}: " in function.__doc__ for argument in inspect.signature(function).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", compress.FUNCTIONS)
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


def user_errors(folder):
    """Calls with one mistake of the user each: (function, arguments, what the error says)."""
    model, out, lost = folder / "model", folder / "out", str(folder / "lost.txt")
    pickle, empty = folder / "text.pickle", folder / "empty.txt"
    pickle.write_bytes(b"not a text")
    empty.touch()
    return [
        (api.quantize, (model, out), {"text": [lost]}, "lost.txt: "),
        (api.quantize, (model, out), {"text": str(empty)}, "empty.txt: "),
        (
            api.quantize,
            (model, out),
            {"grup_size": 64},
            "quantize: 'grup_size' is not a setting; did you mean group_size?",
        ),
        (api.quantize, (model, out), {"method": "best"}, "method='best': must be one of rtn, "),
        (api.quantize, (model, out), {"samples": "8"}, "samples='8': must be an integer"),
        (api.quantize, (model, out), {"seq_len": True}, "seq_len=True: must be an integer"),
        (api.quantize, (model, out), {"damp_percent": 2}, "damp_percent=2: must be below 1"),
        (api.quantize, (model, out), {"text": None}, "text=None: must be a text"),
        (api.quantize, (model, out), {"max_size": "1"}, "add a unit"),
        (api.quantize, (model, out), {"device": "gpu"}, "--device gpu: choose auto, cpu, cuda"),
        (api.quantize, (folder / "lost", out), {}, "lost: "),
        (api.quantize, (model, folder), {"method": "rtn"}, "is not empty"),
        (api.distill, (model, out), {"blocks": 1, "text": lost}, "lost.txt: "),
        (api.distill, (model, out), {"blocks": 1, "eval_text": lost}, "lost.txt: "),
        (api.distill, (model, out), {"blocks": 9}, "9"),
        (api.distill, (model, out), {"blocks": "one"}, "blocks='one': must be an integer"),
        (api.distill, (model, out), {"step": 3}, "distill: 'step' is not a setting; did you mean steps?"),
        (api.distill, (folder / "lost", out), {"blocks": 1}, "lost: "),
        (api.check, (folder / "lost",), {}, "lost: "),
        (api.check, (model,), {"source": folder / "lost"}, "lost: "),
        (api.check, (model,), {"tensor_parallel_size": 0}, "tensor_parallel_size=0: must be 1 or more"),
        (api.verify, (model, model), {"eval_text": lost}, "lost.txt: "),
        (api.verify, (model, model), {"eval_text": str(pickle)}, "text.pickle: "),
        (api.verify, (model, model), {"samples": 0}, "samples=0: must be at least 1"),
        (api.verify, (model, model), {"max_kl": "small"}, "max_kl='small': must be a number"),
        (api.verify, (model, folder / "lost"), {}, "lost: "),
        (api.compare, (model, [model]), {"eval_text": lost}, "lost.txt: "),
        (api.compare, (model, [model]), {"seq_len": 2}, "seq_len=2: must be at least 8"),
        (api.compare, (model, [model]), {"device": "gpu"}, "--device gpu: choose auto, cpu, cuda"),
        (api.compare, (model, [folder / "lost"]), {}, "lost: "),
        (api.compare, (model, [model]), {"html": model / "config.json"}, "qcompress did not write it"),
    ]


def test_every_error_of_a_user_is_a_qcompress_error_of_one_line(tiny_llama, tmp_path):
    (tmp_path / "model").symlink_to(tiny_llama)
    unexpected = []
    for function, arguments, settings, words in user_errors(tmp_path):
        with pytest.raises(compress.QCompressError) as caught:
            function(*arguments, **settings)
        if words not in str(caught.value) or "\n" in str(caught.value):
            unexpected.append((function.__name__, settings, str(caught.value)))
    assert unexpected == [] and not (tmp_path / "out").exists()


def test_errors_of_settings_are_python_errors_too():
    with pytest.raises(TypeError):
        api.quantize("model", "out", grup_size=64)
    with pytest.raises(ValueError, match="--group-size 48"):
        api.quantize("model", "out", group_size=48)


def test_a_text_setting_is_parsed_as_on_the_command_line(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match=r"max-size|largest|bytes"):
        api.quantize(tiny_llama, tmp_path / "out", method="rtn", group_size="32", max_size="1KB")


def test_an_error_of_the_system_is_a_qcompress_error(monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(errno.EACCES, "Permission denied", "/model/config.json")

    monkeypatch.setattr("compress.checkpoint.check.run.check_checkpoint", refuse)
    with pytest.raises(QCompressError, match=r"^/model/config.json: permission denied; "):
        api.check("model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_verify_and_compare_run_on_the_requested_device(tiny_llama, text):
    for run in (lambda **on: api.verify(tiny_llama, tiny_llama, **on), lambda **on: api.compare(tiny_llama, [], **on)):
        with pytest.raises(QCompressError, match="--device cuda: torch finds no GPU"):
            run(eval_text=str(text), device="cuda", **SMALL)


def test_ship_writes_a_bundle(tiny_llama, tmp_path):
    row = compress.ship(tiny_llama, tmp_path / "bundle", "orin-nano", context=512)
    assert row["hardware"] == "orin-nano" and (tmp_path / "bundle" / "SHA256SUMS").is_file()
    with pytest.raises(QCompressError, match="is not a setting; did you mean context"):
        compress.ship(tiny_llama, tmp_path / "other", "orin-nano", contexts=512)
