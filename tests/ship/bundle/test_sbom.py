import hashlib
import json

import pytest

from compress.ship.bundle.licenses import spdx
from compress.ship.bundle.sbom import ancestor_component, licenses, metrics_of


@pytest.fixture
def sbom(session_bundle):
    return json.loads((session_bundle / "sbom.cdx.json").read_text())


def test_cyclonedx_accepts_the_bill_of_materials(session_bundle):
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert validator.validate_str((session_bundle / "sbom.cdx.json").read_text()) is None


def test_every_file_of_the_model_is_listed_with_its_digest(session_bundle, sbom):
    listed = {one["name"]: one["hashes"][0]["content"] for one in sbom["components"] if one["type"] == "file"}
    files = {f"model/{path.name}": path for path in (session_bundle / "model").iterdir()}
    assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_the_model_names_its_base_and_its_digest(sbom, tiny_llama):
    model = sbom["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["version"].startswith("sha256:")
    [base] = model["pedigree"]["ancestors"]
    assert base["name"] == tiny_llama.name
    assert {"name": "qcompress:role", "value": "base"} in base["properties"]
    assert {"name": "qcompress:license", "value": "unknown"} in base["properties"] and "licenses" not in base


def test_it_has_no_time_and_no_serial_number(sbom):
    assert "timestamp" not in sbom["metadata"] and "serialNumber" not in sbom


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("apache-2.0", {"license": {"id": "Apache-2.0"}}),
        ("Apache-2.0", {"license": {"id": "Apache-2.0"}}),
        ("llama3.2", {"license": {"name": "llama3.2"}}),
    ],
)
def test_a_licence_has_an_identifier_only_if_spdx_lists_it(name, value):
    assert licenses(name) == {"licenses": [value]}
    assert (spdx(name) is not None) == ("id" in value["license"])


def test_an_unknown_licence_is_stated():
    row = {"role": "teacher", "name": "t", "digest": None, "license": None}
    assert {"name": "qcompress:license", "value": "unknown"} in ancestor_component(row)["properties"]


def test_figures_become_performance_metrics():
    row = {"from": "verify", "kl": 0.0412345678, "reference": "qwen", "passed": True}
    assert metrics_of(row) == [{"type": "verify: kl", "value": "0.0412346", "slice": "qwen"}]
