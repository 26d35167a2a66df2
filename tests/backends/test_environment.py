"""Environments of backends: where they lie, which one is used, and what may be removed."""

import json
import sys
from pathlib import Path

import pytest

from compress.backends.environment import (
    MARKER,
    environment_path,
    find_interpreter,
    installed,
    interpreter_of,
    list_backends,
    remove,
)
from compress.backends.table import BACKENDS
from compress.core.errors import QCompressError

AWQ = BACKENDS["autoawq"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPRESS_BACKENDS", str(tmp_path / "backends"))
    return tmp_path / "backends"


def place(path):
    """An environment with a marker and an interpreter that is a link."""
    interpreter_of(path).parent.mkdir(parents=True)
    interpreter_of(path).symlink_to(sys.executable)
    (path / MARKER).write_text(json.dumps({"backend": "autoawq", "lock": "sha256:0"}))
    return path


def test_an_environment_is_named_after_lock_python_and_platform(fake, folder):
    drivers = fake("works")
    names = {environment_path(AWQ, "3.11"), environment_path(AWQ, "3.12")}
    (drivers / "autoawq.lock").write_text("another lock")
    names.add(environment_path(AWQ, "3.11"))
    assert len(names) == 3 and all(path.parent == folder and path.name.startswith("autoawq-") for path in names)


def test_only_an_environment_of_the_present_lock_is_used(fake, folder):
    drivers = fake("works")
    path = place(environment_path(AWQ))
    assert installed(AWQ) == [path] and find_interpreter(AWQ) == interpreter_of(path)
    (drivers / "autoawq.lock").write_text("another lock")
    assert installed(AWQ) == []
    with pytest.raises(QCompressError, match="qcompress backends install autoawq"):
        find_interpreter(AWQ)


def test_an_environment_for_another_python_is_used_too(folder):
    path = place(environment_path(AWQ, "3.9"))
    assert find_interpreter(AWQ) == interpreter_of(path)


def test_an_interpreter_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "python").write_text("")
    for path in (tmp_path / "python", tmp_path, tmp_path / "none"):
        with pytest.raises(QCompressError, match=r"--backend-python .* is not a program"):
            find_interpreter(AWQ, path)
    assert find_interpreter(AWQ, Path(sys.executable)) == Path(sys.executable)


def test_optimum_and_gptqmodel_share_an_environment():
    assert environment_path(BACKENDS["optimum"]) == environment_path(BACKENDS["gptqmodel"])


def test_removal_takes_all_environments_of_a_backend_and_no_others(folder):
    ours, older, other = (place(folder / name) for name in ("autoawq-0a1b", "autoawq-ffff", "auto-gptq-0a1b"))
    (folder / "autoawq-mine").mkdir()
    assert remove(AWQ) == [ours, older]
    assert sorted(path.name for path in folder.iterdir()) == ["auto-gptq-0a1b", "autoawq-mine"]
    assert other.is_dir()
    with pytest.raises(QCompressError, match="no environment of autoawq"):
        remove(AWQ)


def test_the_list_has_a_row_per_backend_and_the_size_of_installed_ones():
    place(environment_path(AWQ))
    rows = {row["backend"]: row for row in list_backends()}
    assert list(rows) == list(BACKENDS)
    assert rows["autoawq"]["installed"] and rows["autoawq"]["size"] < 10_000
    assert not rows["llama.cpp"]["installed"] and rows["llama.cpp"]["size"] > 1e8
