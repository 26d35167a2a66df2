"""Installing a backend: checks before any download, all or nothing, hashes."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

import compress.backends.install as install_module
from compress.backends.environment import MARKER, environment_path, find_interpreter
from compress.backends.install import check_python, install, uv_variables
from compress.backends.table import BACKENDS
from compress.core.errors import QCompressError

AWQ = BACKENDS["autoawq"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPRESS_BACKENDS", str(tmp_path / "backends"))
    return tmp_path / "backends"


def make_wheel(folder, text="VALUE = 1\n"):
    """A wheel of the package awq, version 1.0."""
    folder.mkdir(exist_ok=True)
    file = folder / "awq-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("awq.py", text)
        wheel.writestr("awq-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: awq\nVersion: 1.0\n")
        wheel.writestr("awq-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("awq-1.0.dist-info/RECORD", "awq.py,,\nawq-1.0.dist-info/METADATA,,\n")
    return file


def write_lock(drivers, wheel, digest=None):
    """A lock of this wheel alone, which needs no network."""
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    lines = ["--no-index", f"--find-links {wheel.parent}", f"awq==1.0 --hash=sha256:{digest}"]
    (drivers / "autoawq.lock").write_text("\n".join(lines) + "\n")


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".log"))


@pytest.mark.slow
def test_an_installed_backend_has_its_package_and_is_found(fake, folder, tmp_path):
    write_lock(fake("works"), make_wheel(tmp_path / "wheels"))
    rows = []
    path = install(AWQ, report=rows.append)
    assert path == environment_path(AWQ) and find_interpreter(AWQ) == path / "bin" / "python"
    assert list(path.glob("lib/python*/site-packages/awq.py"))
    assert [row["step"] for row in rows] == ["a new environment", "autoawq.lock", "import json, awq"]
    assert install(AWQ) == path  # again: nothing to do
    assert left(folder) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "digest", "message"),
    [
        ("VALUE = 1\n", "0" * 64, "(?i)hash"),
        ("raise ImportError('no such library')\n", None, "ImportError: no such library"),
    ],
)
def test_a_failed_installation_leaves_only_its_log(fake, folder, tmp_path, text, digest, message):
    write_lock(fake("works"), make_wheel(tmp_path / "wheels", text), digest)
    with pytest.raises(QCompressError, match=message) as error:
        install(AWQ)
    assert "\n" not in error.value.message and left(folder) == []
    with pytest.raises(QCompressError, match="is not installed"):
        find_interpreter(AWQ)


@pytest.mark.slow
def test_the_rest_of_a_killed_installation_is_replaced(fake, folder, tmp_path):
    write_lock(fake("works"), make_wheel(tmp_path / "wheels"))
    partial = environment_path(AWQ).with_name(f"{environment_path(AWQ).name}.tmp")
    partial.mkdir(parents=True)
    (partial / MARKER).write_text('{"backend": "autoawq", "lock": ""}')
    (partial / "half").touch()
    path = install(AWQ)
    assert left(folder) == [path.name] and not (path / "half").exists()


def test_a_foreign_folder_in_the_place_of_an_installation_stays(fake, folder):
    fake("works")
    partial = environment_path(AWQ).with_name(f"{environment_path(AWQ).name}.tmp")
    partial.mkdir(parents=True)
    (partial / "diary.txt").touch()
    with pytest.raises(QCompressError, match="another program made it"):
        install(AWQ)
    assert (partial / "diary.txt").exists()


def test_a_full_disk_is_refused_before_any_work(fake, folder, monkeypatch):
    fake("works")
    monkeypatch.setattr(install_module, "free_space", lambda path: (path.parent, 10**6))
    with pytest.raises(QCompressError, match=r"0\.0 GB free, but autoawq needs 1\.5 GB"):
        install(AWQ)
    assert left(folder) == []


def test_a_python_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(QCompressError, match=r"--python .*none: is not a Python that runs"):
        check_python(AWQ, tmp_path / "none")
    (tmp_path / "old").write_text("#!/bin/sh\necho 3.8.1\n")
    (tmp_path / "old").chmod(0o755)
    with pytest.raises(QCompressError, match=r"needs Python >=3\.10,<3\.13, but .*old is 3\.8\.1"):
        check_python(AWQ, tmp_path / "old")
    assert check_python(BACKENDS["llama.cpp"], Path(sys.executable)).startswith("3.")


def test_uv_gets_the_indexes_of_pip_unless_it_has_its_own(tmp_path, monkeypatch):
    (tmp_path / "python").write_text(
        "#!/bin/sh\necho \":env:.find-links='/wheels'\"\necho \"global.index-url='https://a/simple'\"\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    expected = {"UV_FIND_LINKS": "/wheels", "UV_DEFAULT_INDEX": "https://a/simple"}
    assert uv_variables(tmp_path / "python") == expected
    (tmp_path / "more").write_text("#!/bin/sh\necho \"global.extra-index-url='https://c https://d'\"\n")
    (tmp_path / "more").chmod(0o755)
    assert uv_variables(tmp_path / "more") == {
        "UV_INDEX": "https://c https://d",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://b/simple")
    assert uv_variables(tmp_path / "python") == {"UV_FIND_LINKS": "/wheels"}
