"""qcompress backends, and the options of backends in quantize and run."""

import json
import sys

import pytest
from click.testing import CliRunner

from compress.backends.environment import MARKER, environment_path, interpreter_of
from compress.backends.table import BACKENDS
from compress.cli import cli
from compress.core.errors import QCompressError
from compress.recipe import load_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPRESS_BACKENDS", str(tmp_path / "backends"))
    return tmp_path / "backends"


def call(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def place():
    """An environment of autoawq that looks installed."""
    path = environment_path(BACKENDS["autoawq"])
    interpreter_of(path).parent.mkdir(parents=True)
    interpreter_of(path).symlink_to(sys.executable)
    (path / MARKER).write_text(json.dumps({"backend": "autoawq", "lock": "sha256:0"}))
    return path


def test_backends_are_listed_with_and_without_the_word_list():
    rows = json.loads(call("backends", "list", "--json").stdout)
    assert [row["backend"] for row in rows] == list(BACKENDS)
    assert all(name in call("backends").stdout for name in BACKENDS)


def test_a_path_is_printed_only_for_an_installed_backend():
    missing = call("backends", "path", "autoawq")
    assert missing.exit_code == 1 and "qcompress backends install autoawq" in missing.stderr
    path = place()
    assert call("backends", "path", "autoawq").stdout.strip() == str(path / "bin" / "python")


def test_a_removed_backend_is_gone_and_cannot_be_removed_again():
    path = place()
    assert call("backends", "remove", "autoawq").exit_code == 0 and not path.exists()
    again = call("backends", "remove", "autoawq")
    assert again.exit_code == 1 and "nothing was removed" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--install"], "--install and --backend-python need --backend"),
        (["--backend", "autoawq", "--install", "--backend-python", "python"], "exclude each other"),
        (["--backend", "autoawq", "--tune"], "--tune: has no effect with --backend autoawq"),
        (["--backend", "autoawq", "--method", "gptq"], "--backend autoawq has no such method; choose awq"),
        (["--backend", "autoawq"], "is not installed; run `qcompress backends install autoawq`"),
    ],
)
def test_wrong_options_of_backends_are_refused_before_any_work(tiny_llama, tmp_path, options, message):
    result = call("quantize", tiny_llama, *options, "-o", tmp_path / "out")
    assert result.exit_code in (1, 2) and message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_the_plan_of_a_backend_has_its_method_format_and_groups(tiny_llama, tmp_path):
    result = call("quantize", tiny_llama, "--backend", "auto-round", "--dry-run", "--json", "-o", tmp_path / "out")
    row = json.loads(result.stdout)
    assert (row["backend"], row["method"], row["format"], row["group_size"]) == ("auto-round", "auto-round", "gptq", 64)


def test_a_recipe_runs_a_backend_only_if_it_is_installed(tiny_llama, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    variant = "{name: other, backend: autoawq, method: awq}"
    recipe.write_text(f"teacher: {tiny_llama}\nout: {tmp_path / 'run'}\nquantize:\n  - {variant}\n")
    result = call("run", recipe)
    assert result.exit_code == 1 and "qcompress backends install autoawq" in result.stderr
    plan = json.loads(call("run", recipe, "--dry-run", "--json").stdout)
    assert next(row for row in plan if row["stage"] == "other")["backend"] == "autoawq"


def test_a_recipe_with_a_wrong_backend_names_the_nearest_one(tiny_llama, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"teacher: {tiny_llama}\nout: x\nquantize:\n  - {{name: a, backend: auto-awq}}\n")
    with pytest.raises(QCompressError, match=r"--backend auto-awq is not supported.*did you mean autoawq"):
        load_recipe(recipe)
