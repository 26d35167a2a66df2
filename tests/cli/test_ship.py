import json

import pytest
from click.testing import CliRunner

from compress import quantize
from compress.cli import cli


@pytest.fixture(scope="module")
def checkpoint(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("ship-cli") / "awq"
    quantize(tiny_llama, out, method="rtn", format="awq", group_size=32)
    return out


def call(*arguments):
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("ship-cli") / "bundle"
    code, output, errors = call("ship", checkpoint, "--hardware", "orin-nano", "--context", 512, "-o", out, "--json")
    assert code == 0, errors
    row = json.loads(output)
    assert row["out"] == str(out) and row["hardware"] == "orin-nano" and row["bytes"] > 0
    return out


def test_a_bundle_verifies(bundle):
    code, output, _ = call("ship", "--verify", bundle)
    assert code == 0 and output.endswith("every file has its digest, and the model runs on its board\n")
    assert call("ship", "--verify", bundle, "--json")[:2] == (0, "[]\n")


def test_each_fault_is_one_line_and_the_exit_code_is_3(bundle, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "SHA256SUMS").write_bytes((bundle / "SHA256SUMS").read_bytes())
    code, output, errors = call("ship", "--verify", copy)
    assert code == 3 and len(output.splitlines()) == len((copy / "SHA256SUMS").read_text().splitlines())
    assert "faults; do not start it" in errors


def test_a_folder_that_is_no_bundle_gives_exit_code_1(tmp_path):
    code, output, errors = call("ship", "--verify", tmp_path)
    assert code == 1 and output == "" and "give a folder that qcompress ship wrote" in errors


def test_what_does_not_fit_gives_exit_code_3_and_no_folder(checkpoint, tmp_path):
    sizes = ("--hardware", "orin-nano", "--context", 512, "--requests", 1_000_000)
    code, output, errors = call("ship", checkpoint, *sizes, "-o", tmp_path / "out")
    assert code == 3 and output == "" and "too much" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["-o", "out"], ["--hardware", "orin-nano"]])
def test_a_missing_option_is_named(checkpoint, options):
    code, _, errors = call("ship", checkpoint, *options)
    assert code == 2 and "Give CKPT, --hardware NAME and --out BUNDLE" in errors


def test_verify_takes_no_checkpoint(checkpoint, bundle):
    code, _, errors = call("ship", checkpoint, "--verify", bundle)
    assert code == 2 and "--verify takes neither CKPT nor --out" in errors
