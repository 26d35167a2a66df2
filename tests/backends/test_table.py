"""The table of backends agrees with the settings, the drivers and the locks."""

import re

import pytest

from compress.backends.table import BACKENDS, find_backend, read_header
from compress.core.backend_config import BACKENDS as METHODS
from compress.core.errors import QCompressError

HASH = re.compile(r" --hash=sha256:[0-9a-f]{64}")


def test_the_settings_and_the_table_have_the_same_backends():
    assert list(BACKENDS) == list(METHODS)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_driver_has_a_function_and_pins_every_package(backend):
    assert "def quantize(request: dict[str, Any], windows: list[list[int]], report" in backend.driver.read_text()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in backend.pins["dependencies"])
    assert set(backend.needs_gpu) <= set(backend.methods)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_lock_has_the_pins_and_a_hash_for_every_package_but_torch(backend):
    text = backend.lock.read_text()
    packages = [line for line in text.splitlines() if re.match(r"[\w.-]+==", line)]
    assert len(packages) == len(re.findall(r"^[\w.-]+==.*(\n {4}--hash=sha256:[0-9a-f]{64}( \\)?)+$", text, re.M))
    names = {line.split(" ")[0] for line in packages}
    assert set(backend.pins["dependencies"]) - {backend.torch} <= names
    assert not any(re.match(r"(torch|triton|nvidia-|cuda-)", name) for name in names if not name.startswith("torchao"))
    assert backend.lock.with_suffix(".py").name in text.splitlines()[0]


def test_a_script_without_a_header_is_an_error(tmp_path):
    (tmp_path / "driver.py").write_text("import torch\n")
    with pytest.raises(ValueError, match="has no header"):
        read_header(tmp_path / "driver.py")


def test_an_unknown_backend_is_refused_with_all_names():
    with pytest.raises(QCompressError, match="'exllama' is unknown; choose autoawq, auto-gptq"):
        find_backend("exllama")
