"""What may follow after a bundle is written: its signature, its OCI layout, and a push to a registry, in this order."""

import json
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import QCompressError
from compress.core.options import option
from compress.core.report import Row
from compress.ship import oci, signing
from compress.ship.bundle.licenses import spdx
from compress.ship.bundle.manifest import MANIFEST


@dataclass(frozen=True)
class Distribution:
    """How a bundle reaches the board."""

    sign: Path | None = option(
        None, "Private key (PEM, elliptic curve) that signs the bundle, by model-signing.", metavar="KEY", is_path=True
    )
    oci: Path | None = option(
        None, "Also write the bundle to this folder as an OCI layout, by CNCF ModelPack.", metavar="DIR", is_path=True
    )
    push: str | None = option(
        None, "Copy the OCI layout to a registry, such as localhost:5000/qwen-awq:v1.", metavar="REFERENCE"
    )

    def check(self) -> None:
        """Raises QCompressError, before any work, for a setting that cannot be used."""
        if self.push is not None and self.oci is None:
            raise QCompressError(f"--push {self.push}: copies the OCI layout; add --oci DIR")
        if self.sign is not None:
            signing.check_key("--sign", self.sign)
            signing.check_installed("--sign")
        if self.oci is not None:
            oci.check_out(self.oci)
        if self.push is not None:
            oci.check_reference(self.push)
            oci.check_program(self.push)


def distribute(bundle: Path, distribution: Distribution) -> Row:
    """Sign, lay out and push a complete bundle. Returns the places and digests, by the names of the settings.

    Raises QCompressError if a step fails. The bundle stays.
    """
    row: Row = {}
    if distribution.sign is not None:
        row["signature"] = str(signing.sign(bundle, distribution.sign))
    if distribution.oci is not None:
        layout = oci.write_layout(bundle, distribution.oci, describe(bundle))
        row |= {"oci": str(layout.folder), "oci_digest": layout.digest}
        if distribution.push is not None:
            row |= {"pushed": distribution.push, "oci_digest": oci.push(layout, distribution.push)}
    return row


def describe(bundle: Path) -> Row:
    """The description of the model for its OCI config."""
    value = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    model, licenses = value["model"], sorted({one["license"] for one in value["ancestors"] if one["license"]})
    quantization = {} if model["format"] == "16 bits" else {"quantization": model["format"]}
    stored = "gguf" if model["format"] == "gguf" else "safetensors"
    return {
        "name": value["name"],
        "family": model["architecture"],
        "format": stored,
        "precision": value["request"]["dtype"],
        "licenses": [spdx(name) or name for name in licenses],
        **quantization,
    }
