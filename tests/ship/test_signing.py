"""Signatures: a line if model-signing is missing, and with it a real signature that a change breaks."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from compress.core.errors import GateFailure, QCompressError
from compress.ship.signing import RECEIPT, SIGNATURE, last_line, run, sign, verify


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle" / "model").mkdir(parents=True)
    (tmp_path / "bundle" / "model" / "config.json").write_text("{}")
    (tmp_path / "bundle" / "model" / ".gitattributes").write_text("*.safetensors lfs\n")
    (tmp_path / "bundle" / "SHA256SUMS").write_text("sums\n")
    return tmp_path / "bundle"


@pytest.fixture
def keys(tmp_path):
    """(private, public) keys of an elliptic curve, made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)], check=True)
    return private, public


@pytest.fixture
def real():
    if shutil.which("model_signing") is None and find_spec("model_signing") is None:
        pytest.skip("needs model-signing")


def test_a_missing_key_is_named_before_anything_runs(bundle, tmp_path):
    with pytest.raises(QCompressError, match=r"--sign .*none\.pem: no such file"):
        sign(bundle, tmp_path / "none.pem")
    with pytest.raises(QCompressError, match=r"--public-key .*none\.pem: no such file"):
        verify(bundle, tmp_path / "none.pem")


def test_a_bundle_without_a_signature_fails_the_verification(bundle, keys):
    with pytest.raises(GateFailure, match=r"has no model\.sig") as caught:
        verify(bundle, keys[1])
    assert caught.value.exit_code == 3


def test_without_model_signing_one_line_names_the_package(bundle, keys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("compress.ship.signing.find_spec", lambda name: None)
    with pytest.raises(QCompressError, match="--sign: model-signing is not installed; install it with pip install"):
        sign(bundle, keys[0])
    assert not (bundle / SIGNATURE).exists()


def test_a_failure_of_the_program_is_one_line(bundle, keys, tmp_path, monkeypatch):
    program = tmp_path / "model_signing"
    program.write_text("#!/bin/sh\necho 'Signing failed with error: bad curve' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(QCompressError, match=r"--sign .*: bad curve; give a private key"):
        sign(bundle, keys[0])
    (bundle / SIGNATURE).write_text("{}")
    with pytest.raises(GateFailure, match="the signature does not match: bad curve; do not start it"):
        verify(bundle, keys[1])


def test_changed_files_are_named_without_their_digests():
    line = "Signature mismatch: ['Hash mismatch for \\'a/b.json\\': Expected \\'x\\'', \"Hash mismatch for 'c': ...\"]"
    done = subprocess.CompletedProcess([], 1, "", f"Verification failed with error: {line}\n")
    assert last_line(done) == "changed: a/b.json, c"


def test_the_module_is_used_if_the_program_is_not_in_the_path(monkeypatch):
    monkeypatch.setattr("compress.ship.signing.shutil.which", lambda name: None)
    monkeypatch.setattr("compress.ship.signing.find_spec", lambda name: object())
    monkeypatch.setattr("compress.ship.signing.sys.executable", sys.executable)
    assert "No module named model_signing" in run("--sign", "--version").stderr or run("--sign", "--version").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: (bundle / "model" / "config.json").write_text("{ }"),
        lambda bundle: (bundle / "model" / ".gitattributes").write_text("other\n"),
        lambda bundle: (bundle / "extra").write_text("new"),
        lambda bundle: (bundle / "SHA256SUMS").unlink(),
    ],
    ids=["changed", "git-file", "added", "removed"],
)
def test_a_signature_holds_until_a_file_changes(real, bundle, keys, change):
    assert sign(bundle, keys[0]) == bundle / SIGNATURE
    (bundle / RECEIPT).write_text("{}")  # the device writes it
    verify(bundle, keys[1])
    change(bundle)
    with pytest.raises(GateFailure, match="the signature does not match"):
        verify(bundle, keys[1])


@pytest.mark.slow
def test_another_key_does_not_verify(real, bundle, keys, tmp_path):
    sign(bundle, keys[0])
    other = tmp_path / "other.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(other)]
    subprocess.run(make, check=True, capture_output=True)
    public = tmp_path / "other-public.pem"
    subprocess.run(["openssl", "pkey", "-in", str(other), "-pubout", "-out", str(public)], check=True)
    with pytest.raises(GateFailure, match="the signature does not match"):
        verify(bundle, public)
