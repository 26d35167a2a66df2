import json

import pytest

from compress.core.errors import QCompressError
from compress.ship.bundle.distribute import Distribution, describe, distribute
from compress.ship.bundle.verify import verify_bundle


def test_a_layout_holds_every_file_of_the_bundle(bundle, tmp_path):
    row = distribute(bundle, Distribution(oci=tmp_path / "oci"))
    name = row["oci_digest"].removeprefix("sha256:")
    manifest = json.loads((tmp_path / "oci" / "blobs" / "sha256" / name).read_text())
    assert len(manifest["layers"]) == len([path for path in bundle.rglob("*") if path.is_file()])
    assert verify_bundle(bundle) == []


def test_a_signature_is_no_further_file(bundle):
    (bundle / "model.sig").write_text("{}")
    assert verify_bundle(bundle) == []


def test_the_description_names_format_and_family(session_bundle, gguf_bundle):
    assert describe(session_bundle)["quantization"] == "awq"
    assert describe(session_bundle)["family"] == "LlamaForCausalLM"
    assert describe(gguf_bundle)["format"] == "gguf"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"push": "localhost:5000/a:v1"}, "add --oci DIR"),
        ({"oci": "out", "push": "nowhere"}, "give REGISTRY/REPO:TAG"),
        ({"sign": "missing.pem"}, "no such file"),
        ({"sign": "key.pem"}, "model-signing is not installed"),
        ({"oci": "out", "push": "localhost:5000/a:v1"}, "neither oras nor skopeo is installed"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("compress.ship.oci.shutil.which", lambda name: None)
    monkeypatch.setattr("compress.ship.signing.find_spec", lambda name: None)
    (tmp_path / "key.pem").touch()
    paths = {key: tmp_path / value if key != "push" else value for key, value in settings.items()}
    with pytest.raises(QCompressError, match=message):
        Distribution(**paths).check()
