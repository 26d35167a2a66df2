import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPOSE = """#!/bin/sh
echo "$@" >>"$CALLS"
"""


@pytest.fixture
def install(bundle, tmp_path):
    """install(*options, **variables) runs install.sh. Its `compose` writes its arguments to tmp_path/calls."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "compose").write_text(COMPOSE)
    (tools / "compose").chmod(0o755)

    def run(*options, **variables):
        path = f"{tools}:{os.environ['PATH']}"
        variables = {"PATH": path, "COMPOSE": "compose", "CALLS": str(tmp_path / "calls")} | variables
        command = [str(bundle / "install.sh"), *options]
        result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        calls = tmp_path / "calls"
        return result.returncode, result.stdout + result.stderr, calls.read_text() if calls.exists() else ""

    return run


def test_an_unchanged_bundle_passes_the_check_and_starts_nothing(install):
    assert install("--check") == (0, "every file has its digest\n", "")


def flip_nibble(bundle: Path) -> None:
    file = bundle / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x10
    file.write_bytes(content)


def add_file(bundle: Path) -> None:
    (bundle / "model" / "extra weights.safetensors").write_bytes(b"")


def link_file(bundle: Path) -> None:
    (bundle / "README.md").rename(bundle.parent / "README.md")
    (bundle / "README.md").symlink_to(bundle.parent / "README.md")


def remove_file(bundle: Path) -> None:
    (bundle / "model" / "config.json").unlink()


@pytest.mark.parametrize("change", [flip_nibble, add_file, link_file, remove_file])
def test_a_changed_bundle_is_refused_before_anything_starts(install, bundle, change):
    change(bundle)
    code, output, calls = install()
    assert code == 1 and calls == ""
    assert "copy the bundle again" in output


def test_too_little_memory_is_refused_before_anything_starts(install, bundle):
    file = bundle / "bundle.json"
    value = json.loads(file.read_text())
    value["predicted"]["bytes"]["needed"] = 10**15
    file.write_text(json.dumps(value))
    rewrite_sums(bundle)
    code, output, calls = install()
    assert code == 1 and calls == "" and "kB of memory" in output


def rewrite_sums(bundle: Path) -> None:
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    names.remove("SHA256SUMS")
    with (bundle / "SHA256SUMS").open("w") as file:
        subprocess.run(["sha256sum", *names], cwd=bundle, stdout=file, check=True)


@pytest.mark.slow
def test_a_server_that_answers_as_the_weights_should_keeps_running(install, bundle, serve):
    code, output, calls = install(QCOMPRESS_PORT=serve(bundle / "model").url.rpartition(":")[2])
    assert code == 0 and calls == "up --detach\n" and "smoke test: passed" in output


@pytest.mark.slow
def test_a_server_with_other_weights_is_stopped(install, bundle, serve):
    server = serve(bundle / "model", change=lambda model: model.model.layers[0].mlp.up_proj.weight.neg_())
    code, output, calls = install(QCOMPRESS_PORT=server.url.rpartition(":")[2])
    assert code == 1 and calls == "up --detach\nstop\n" and "does not answer as its weights should" in output


def test_no_answer_in_time_is_a_failure(install):
    code, output, _ = install(QCOMPRESS_PORT="1", QCOMPRESS_START_SECONDS="0")
    assert code == 1 and "no answer after 0 s" in output


def test_a_missing_program_is_named(install, tmp_path):
    assert shutil.which("no-such-compose") is None
    code, output, _ = install(COMPOSE="no-such-compose up")
    assert code == 1 and "no-such-compose is missing" in output
