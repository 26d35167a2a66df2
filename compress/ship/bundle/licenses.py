"""LICENSES/: the licence texts of the checkpoint, and what is known of the licence of each model it was made from."""

import shutil
from pathlib import Path

from compress.checkpoint.model_card import find_license
from compress.checkpoint.read import Checkpoint
from compress.ship.bundle.lineage import ancestors
from compress.ship.bundle.model_files import is_license

FOLDER, OVERVIEW = "LICENSES", "README.md"
SPDX = {  # name on the hub, in lower case -> SPDX identifier
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc0-1.0": "CC0-1.0",
    "gpl-3.0": "GPL-3.0-only",
}


def write_licenses(checkpoint: Checkpoint, folder: Path) -> None:
    """Write LICENSES/ below the folder of a bundle."""
    place = folder / FOLDER
    place.mkdir()
    texts = sorted(path for path in checkpoint.path.iterdir() if is_license(path))
    for path in texts:
        shutil.copyfile(path, place / path.name)
    (place / OVERVIEW).write_text(overview(checkpoint, [path.name for path in texts]), encoding="utf-8")


def spdx(name: str) -> str | None:
    """The SPDX identifier of a licence's name on the hub, or None."""
    return SPDX.get(name.lower())


def overview(checkpoint: Checkpoint, texts: list[str]) -> str:
    """The text of LICENSES/README.md."""
    rows = [{"role": "this model", "name": checkpoint.path.absolute().name, "license": find_license(checkpoint.path)}]
    rows += ancestors(checkpoint.record)
    lines = [f"| {row['role']} | {row['name']} | {row['license'] or 'unknown'} |" for row in rows]
    parts = [
        "# Licences\n",
        "| | model | licence |\n|---|---|---|\n" + "\n".join(lines) + "\n",
        f"Texts that came with the model: {', '.join(texts) or 'none'}.\n",
        "Unknown means: neither a model card nor a licence file of that model names one. Find out before you ship.\n",
        "smoke.py and install.sh are part of qcompress, under Apache-2.0.",
    ]
    return "\n".join(parts) + "\n"
