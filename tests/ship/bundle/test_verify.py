import json
import subprocess

import pytest

from compress.core.errors import QCompressError
from compress.ship.bundle.verify import verify_bundle


def rewrite_sums(bundle):
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    names.remove("SHA256SUMS")
    with (bundle / "SHA256SUMS").open("w") as file:
        subprocess.run(["sha256sum", *names], cwd=bundle, stdout=file, check=True)


def change_manifest(bundle, change):
    value = json.loads((bundle / "bundle.json").read_text())
    change(value)
    (bundle / "bundle.json").write_text(json.dumps(value))
    rewrite_sums(bundle)


def test_a_new_bundle_has_no_fault(session_bundle):
    assert verify_bundle(session_bundle) == []


def test_a_changed_byte_is_one_fault_and_nothing_is_read_any_further(bundle):
    (bundle / "bundle.json").write_text("{")
    assert verify_bundle(bundle) == [("bundle.json", "has another content than SHA256SUMS states")]


def test_a_file_that_every_bundle_has_may_not_be_dropped_from_the_sums(bundle):
    (bundle / "smoke.py").unlink()
    rewrite_sums(bundle)
    assert [file for file, _ in verify_bundle(bundle)] == ["smoke.py"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda value: value.update(schema=2), "schema: 1 was expected"),
        (lambda value: value.pop("runtime"), "top level: 'runtime' is a required property"),
        (lambda value: value.update(extra=1), "'extra' was unexpected"),
        (lambda value: value["request"].update(context="long"), "request.context: 'long' is not of type 'integer'"),
        (lambda value: value["model"].update(path="../model"), "model.path: '../model' does not match"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_a_fault(bundle, change, fault):
    change_manifest(bundle, change)
    [(file, text)] = verify_bundle(bundle)
    assert file == "bundle.json" and fault in text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda value: value["model"].update(digest=f"sha256:{'0' * 64}"), "is another model than bundle.json states"),
        (lambda value: value["board"].update(name="toaster"), "--hardware toaster: unknown name"),
        (lambda value: value["request"].update(context=4096), "has a context of 1,024 tokens"),
    ],
)
def test_a_model_that_does_not_belong_to_the_manifest_is_a_fault(bundle, change, fault):
    change_manifest(bundle, change)
    assert [fault in text for _, text in verify_bundle(bundle)] == [True]


def test_weights_that_break_a_rule_of_check_are_a_fault(bundle):
    file = bundle / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    rewrite_sums(bundle)
    faults = [text for _, text in verify_bundle(bundle)]
    assert any(text.startswith("D1: ") for text in faults)
    assert any("is another model" in text for text in faults)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, tiny_awq):
    for folder in (tmp_path / "missing", tmp_path, tiny_awq):
        with pytest.raises(QCompressError, match="give a folder that qcompress ship wrote"):
            verify_bundle(folder)
