"""Write a bundle as an OCI layout by CNCF ModelPack, and push it to a registry with oras or skopeo.

Layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md. Media types:
https://github.com/modelpack/model-spec/blob/main/docs/spec.md. Every file is a raw layer of its own: a registry stores
it once, whatever else changes, and `oras pull` restores the bundle under the same names. There are no times and no
owners, so the same bundle gives the same digests.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.atomic import check_no_link, check_parent, file_errors
from compress.core.errors import QCompressError

Json = dict[str, Any]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
LAYER = "application/vnd.cncf.model.{kind}.v1.raw"
TAG = "latest"  # of the manifest in the layout
FILEPATH, TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"  # ModelPack's and oras's key of a name
DOCUMENTS = (".md", ".txt", ".html")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Layout:
    """An OCI layout on disk, and the digest of its manifest as "sha256:HEX"."""

    folder: Path
    digest: str
    bytes: int


def write_layout(bundle: Path, out: Path, model: Mapping[str, Any]) -> Layout:
    """Write all files of a bundle to `out`, a new or empty folder.

    `model` is the model's description: `name`, `family`, `licenses`, `format`, `paramSize`, `precision` and
    `quantization`, each optional. Files are linked where the file system allows it, so that weights need no second
    copy. Raises QCompressError if `out` has files, or if the bundle has links.
    """
    check_out(out)
    partial = out.with_name(f".{out.name}.partial")
    check_no_link(partial)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with file_errors(out):
            layout = fill(bundle, partial, model)
            if out.is_dir():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Layout(out, layout.digest, layout.bytes)


def check_out(out: Path) -> None:
    check_parent(out)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise QCompressError(f"{out}: exists already; give a new or empty folder as --oci")


def fill(bundle: Path, folder: Path, model: Mapping[str, Any]) -> Layout:
    """Write blobs, index.json and oci-layout to `folder`."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [add_file(path, path.relative_to(bundle).as_posix(), blobs) for path in bundle_files(bundle)]
    config = add_bytes(encode(make_config(model, [layer["digest"] for layer in layers])), CONFIG, blobs)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": config,
        "layers": layers,
    }
    described = add_bytes(encode(manifest), MANIFEST, blobs)
    entry = described | {"artifactType": ARTIFACT, "annotations": {"org.opencontainers.image.ref.name": TAG}}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (folder / "index.json").write_bytes(encode(index))
    (folder / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
    return Layout(folder, described["digest"], sum(layer["size"] for layer in layers))


def bundle_files(bundle: Path) -> list[Path]:
    """All files of a bundle in the order of their names. Raises QCompressError for a link, which would lead outside."""
    paths = sorted(bundle.rglob("*"), key=lambda path: path.relative_to(bundle).as_posix())
    for path in paths:
        if path.is_symlink():
            raise QCompressError(f"{path}: is a link; a bundle has regular files only; make it again with ship")
    files = [path for path in paths if path.is_file()]
    if not files:
        raise QCompressError(f"{bundle}: has no files; give a bundle that ship wrote")
    return files


def kind_of(name: str) -> str:
    """ModelPack's kind of a file: weight, weight.config, doc or code."""
    path = Path(name)
    if path.suffix in (".safetensors", ".gguf"):
        return "weight"
    if path.suffix in DOCUMENTS or path.name.startswith(("LICENSE", "NOTICE")) or path.parts[0] == "LICENSES":
        return "doc"
    return "weight.config" if path.parts[0] == "model" else "code"


def add_file(path: Path, name: str, blobs: Path) -> Json:
    """Link or copy a file into `blobs`. Returns its descriptor."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = blobs / digest
    if not target.exists():
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(path, target)
    annotations = {FILEPATH: name, TITLE: name}
    media_type = LAYER.format(kind=kind_of(name))
    return descriptor(media_type, digest, path.stat().st_size) | {"annotations": annotations}


def add_bytes(content: bytes, media_type: str, blobs: Path) -> Json:
    """Write `content` to `blobs`. Returns its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return descriptor(media_type, digest, len(content))


def descriptor(media_type: str, digest: str, size: int) -> Json:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def make_config(model: Mapping[str, Any], digests: Sequence[str]) -> Json:
    """ModelPack's config: what the model is, and the digest of each layer's content."""
    named = {key: model[key] for key in ("name", "family", "licenses") if model.get(key)}
    technical = {key: model[key] for key in ("format", "paramSize", "precision", "quantization") if model.get(key)}
    return {
        "descriptor": named,
        "config": {
            "architecture": "transformer",
            **technical,
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": list(digests)},
    }


def encode(value: Json) -> bytes:
    """JSON with sorted keys and without spaces, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def push(layout: Layout, reference: str) -> str:
    """Copy a layout to a registry with oras, or with skopeo. Returns the digest there, which equals the layout's.

    Raises QCompressError if neither is installed, if the copy fails, or if the registry has another digest.
    """
    check_reference(reference)
    check_program(reference)
    source, local = f"{layout.folder}:{TAG}", is_loopback(reference)
    if shutil.which("oras"):
        run("oras", "cp", *["--to-plain-http"] * local, "--from-oci-layout", source, reference)
        digest = run("oras", "resolve", *["--plain-http"] * local, reference).decode().strip()
    else:
        remote = f"docker://{reference}"
        run("skopeo", "copy", "--quiet", *["--dest-tls-verify=false"] * local, f"oci:{source}", remote)
        manifest = run("skopeo", "inspect", "--raw", *["--tls-verify=false"] * local, remote)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if digest != layout.digest:
        raise QCompressError(f"--push {reference}: the registry has {digest}, not {layout.digest}; push it again")
    return digest


def check_reference(reference: str) -> None:
    """Raises QCompressError unless the reference is REGISTRY/REPO:TAG."""
    registry, _, rest = reference.partition("/")
    if not registry or registry.startswith("-") or ":" not in rest or rest.endswith(":") or "@" in rest:
        raise QCompressError(f"--push {reference}: give REGISTRY/REPO:TAG, such as localhost:5000/qwen-awq:v1")


def check_program(reference: str) -> None:
    """Raises QCompressError unless oras or skopeo is installed."""
    if not shutil.which("oras") and not shutil.which("skopeo"):
        raise QCompressError(
            f"--push {reference}: neither oras nor skopeo is installed; install one of them (https://oras.land)"
        )


def is_loopback(reference: str) -> bool:
    """Whether the registry is on this machine, which is reached without TLS."""
    host = reference.partition("/")[0]
    return any(host == name or host.startswith(f"{name}:") for name in LOOPBACK)


def run(program: str, *arguments: str) -> bytes:
    """The output of a command. Raises QCompressError with its last line if it fails."""
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no message"]
        raise QCompressError(f"--push: {program} {arguments[0]} failed: {lines[-1]}")
    return done.stdout
