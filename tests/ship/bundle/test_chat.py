import io
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compress.ship.bundle.chat import PACKAGES, wheel_bytes


def test_the_page_is_a_service_that_waits_for_the_model(tiny_awq, make_bundle, tmp_path):
    bundle = make_bundle(tiny_awq, tmp_path / "out", chat=True)
    services = yaml.safe_load((bundle / "compose.yaml").read_text())["services"]
    chat = services["chat"]
    assert chat["command"][:2] == ["--upstream", "http://model:8000"]
    assert chat["depends_on"] == {"model": {"condition": "service_healthy"}}
    assert chat["ports"] == ["${QCOMPRESS_BIND:-127.0.0.1}:7860:7860"]
    assert chat["environment"]["QCOMPRESS_SERVE_TOKEN"].startswith("${QCOMPRESS_SERVE_TOKEN:?")
    [wheel] = [path.name for path in (bundle / "chat").glob("*.whl")]
    assert wheel in (bundle / "chat" / "Dockerfile").read_text()
    assert len((bundle / "chat" / "requirements.txt").read_text().splitlines()) == len(PACKAGES)


def test_without_chat_there_is_one_service(session_bundle):
    assert list(yaml.safe_load((session_bundle / "compose.yaml").read_text())["services"]) == ["model"]
    assert not (session_bundle / "chat").exists()


def test_the_wheel_has_equal_bytes_and_every_file_of_the_page():
    assert wheel_bytes() == wheel_bytes()
    with zipfile.ZipFile(io.BytesIO(wheel_bytes())) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert {"compress/serve/page/page.html", "compress/ship/device/install.sh"} <= {*names}
    assert not [name for name in names if "__pycache__" in name]


CODE = """
import sys
from importlib.metadata import packages_distributions
import compress.cli.serve, compress.serve.run, compress.serve.documents.parse
tops = {name.partition(".")[0] for name in sys.modules}
print(*sorted({one for top, names in packages_distributions().items() if top in tops for one in names}))
"""


def closure(names, extras=("",)):
    """The packages, and all that they require for these extras, by their normalized names."""
    found, queue = set(), list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in found:
            found.add(name)
            needed = map(Requirement, requirements(name))
            queue += [one.name for one in needed if one.marker is None or holds(one.marker, extras)]
    return found


def requirements(name):
    try:
        return requires(name) or ()
    except PackageNotFoundError:  # a package of an extra that is not installed
        return ()


def holds(marker, extras):
    return any(marker.evaluate({"extra": extra}) for extra in extras)


@pytest.mark.slow
def test_the_page_imports_nothing_else_than_the_listed_packages_require():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    imported = {canonicalize_name(name) for name in result.stdout.split()}
    optional = closure(("jsonschema", "lark"), ("", "format", "format-nongpl", "regex"))  # imported where they exist
    assert imported - {"qcompress", "setuptools"} - closure(PACKAGES) <= optional
    assert not {"torch", "transformers"} & closure(PACKAGES)
