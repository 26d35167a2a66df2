"""The OCI layout of a bundle: digests, media types, determinism, and a registry on loopback where the tools exist."""

import hashlib
import json
import shutil
import socket
import subprocess
import time

import pytest

from compress.core.errors import QCompressError
from compress.ship.oci import FILEPATH, bundle_files, is_loopback, kind_of, push, write_layout

MODEL = {"name": "tiny", "family": "llama", "format": "safetensors", "quantization": "awq", "licenses": ["MIT"]}
FILES = {
    "README.md": b"read me",
    "SHA256SUMS": b"sums",
    "compose.yaml": b"services: {}\n",
    "sbom.cdx.json": b"{}",
    "model/config.json": b'{"a": 1}',
    "model/model.safetensors": bytes(range(256)) * 40,
    "model/tokenizer.json": b"{}",
    "LICENSES/model.txt": b"MIT",
}


@pytest.fixture
def bundle(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "bundle"


def read(folder, digest):
    content = (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    return content


def test_every_file_is_a_layer_whose_digest_is_its_content(bundle, tmp_path):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    index = json.loads((layout.folder / "index.json").read_bytes())
    (entry,) = index["manifests"]
    assert entry["digest"] == layout.digest and entry["annotations"] == {"org.opencontainers.image.ref.name": "latest"}
    manifest = json.loads(read(layout.folder, layout.digest))
    layers = {layer["annotations"][FILEPATH]: layer for layer in manifest["layers"]}
    assert {name: read(layout.folder, layer["digest"]) for name, layer in layers.items()} == FILES
    assert all(layer["size"] == len(FILES[name]) for name, layer in layers.items())
    assert layout.bytes == sum(map(len, FILES.values()))
    assert json.loads((layout.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


def test_media_types_are_those_of_modelpack(bundle, tmp_path):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    manifest = json.loads(read(layout.folder, layout.digest))
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {layer["annotations"][FILEPATH]: layer["mediaType"] for layer in manifest["layers"]}
    assert kinds["model/model.safetensors"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["model/config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert kinds["README.md"] == kinds["LICENSES/model.txt"] == "application/vnd.cncf.model.doc.v1.raw"
    assert kinds["compose.yaml"] == "application/vnd.cncf.model.code.v1.raw"
    config = json.loads(read(layout.folder, manifest["config"]["digest"]))
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert config["descriptor"] == {"name": "tiny", "family": "llama", "licenses": ["MIT"]}
    assert config["config"]["quantization"] == "awq" and "precision" not in config["config"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.gguf", "weight"), ("model/LICENSE", "doc"), ("model/chat_template.jinja", "weight.config")],
)
def test_the_kind_follows_from_the_name(name, kind):
    assert kind_of(name) == kind


def test_equal_bundles_have_equal_layouts(bundle, tmp_path):
    first = write_layout(bundle, tmp_path / "a", MODEL)
    copied = shutil.copytree(bundle, tmp_path / "copy")
    second = write_layout(copied, tmp_path / "b", dict(reversed(MODEL.items())))
    assert first.digest == second.digest
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()
    (copied / "model" / "config.json").write_bytes(b'{"a": 2}')
    assert write_layout(copied, tmp_path / "c", MODEL).digest != first.digest


def test_weights_need_no_second_copy(bundle, tmp_path):
    write_layout(bundle, tmp_path / "oci", MODEL)
    assert (bundle / "model" / "model.safetensors").stat().st_nlink == 2


def test_files_and_links_in_the_way_are_refused(bundle, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("keep")
    with pytest.raises(QCompressError, match="exists already; give a new or empty folder as --oci"):
        write_layout(bundle, tmp_path / "full", MODEL)
    assert (tmp_path / "full" / "file").read_text() == "keep"
    (bundle / "outside").symlink_to("/etc/hostname")
    with pytest.raises(QCompressError, match="is a link"):
        write_layout(bundle, tmp_path / "oci", MODEL)
    assert not (tmp_path / "oci").exists() and not (tmp_path / ".oci.partial").exists()
    with pytest.raises(QCompressError, match="has no files"):
        bundle_files(tmp_path / "nothing")


@pytest.mark.parametrize(
    "reference", ["qwen", "/qwen:1", "localhost:5000/qwen", "host/qwen:", "-x/qwen:1", "h/q@sha256:0"]
)
def test_a_reference_without_registry_and_tag_is_refused(bundle, tmp_path, reference):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    with pytest.raises(QCompressError, match="give REGISTRY/REPO:TAG"):
        push(layout, reference)


def test_only_registries_on_this_machine_are_reached_without_tls():
    assert is_loopback("localhost:5000/a:1") and is_loopback("127.0.0.1/a:1")
    assert not is_loopback("localhost.example.org/a:1") and not is_loopback("ghcr.io/localhost/a:1")


def test_without_oras_and_skopeo_one_line_names_both(bundle, tmp_path, monkeypatch):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(QCompressError, match="neither oras nor skopeo is installed"):
        push(layout, "localhost:5000/tiny:v1")


def fake_oras(folder, digest):
    program = folder / "oras"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ "$1" = resolve ] && echo {digest}\nexit 0\n')
    program.chmod(0o755)
    return folder


def test_oras_is_preferred_and_its_digest_is_compared(bundle, tmp_path, monkeypatch):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    folder = fake_oras(tmp_path / "bin", layout.digest)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert push(layout, "localhost:5000/tiny:v1") == layout.digest
    copy, resolve = (folder / "calls").read_text().splitlines()
    assert copy == f"cp --to-plain-http --from-oci-layout {layout.folder}:latest localhost:5000/tiny:v1"
    assert resolve == "resolve --plain-http localhost:5000/tiny:v1"
    monkeypatch.setenv("PATH", f"{fake_oras(tmp_path / 'other', 'sha256:0')}:/usr/bin:/bin")
    with pytest.raises(QCompressError, match="the registry has sha256:0"):
        push(layout, "ghcr.io/me/tiny:v1")


@pytest.fixture
def registry(tmp_path):
    """The address of a registry on loopback. Skips without docker-registry and skopeo."""
    program = shutil.which("docker-registry")
    if program is None or shutil.which("skopeo") is None:
        pytest.skip("needs docker-registry and skopeo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = tmp_path / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    settings.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))
    process = subprocess.Popen([program, "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.partition(":")[2]))) == 0:
                break
        time.sleep(0.1)
    yield address
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_a_registry_returns_the_pushed_digests(bundle, tmp_path, registry, monkeypatch):
    layout = write_layout(bundle, tmp_path / "oci", MODEL)
    skopeo = shutil.which("skopeo")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "skopeo").symlink_to(skopeo)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert push(layout, f"{registry}/qcompress/tiny:v1") == layout.digest
    back = tmp_path / "back"
    command = [skopeo, "copy", "--quiet", "--src-tls-verify=false", f"docker://{registry}/qcompress/tiny:v1"]
    subprocess.run([*command, f"oci:{back}:latest"], check=True)
    names = [sorted(path.name for path in (folder / "blobs" / "sha256").iterdir()) for folder in (back, layout.folder)]
    assert names[0] == names[1]
    assert read(back, layout.digest) == read(layout.folder, layout.digest)
