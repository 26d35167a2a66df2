"""Models by their name on the Hugging Face hub: ORG/NAME or ORG/NAME@REVISION becomes a local folder.

Only config, tokenizer and safetensors files are fetched, into the hub's cache. Pickled weights are never fetched.
"""

import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from compress.core.errors import QCompressError

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
FILE_SUFFIXES = (".json", ".gguf", ".safetensors")
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
OTHER_COPIES = ["*/*", "consolidated*.safetensors"]  # the same weights in other formats: original/, onnx/, Mistral's


def resolve_model(text: str | os.PathLike[str]) -> Path:
    """The local folder of a model: a path as it is, or the downloaded files of a hub id.

    An existing path wins over a hub id. Raises QCompressError, with the `hf download` command, if the hub cannot be
    reached or has no such model.
    """
    path, match = Path(text), HUB_ID.fullmatch(os.fspath(text))
    if match is None or path.exists() or path.suffix in FILE_SUFFIXES:
        return path
    return download(match["repo"], match["revision"])


def download(repo: str, revision: str | None) -> Path:
    """The folder of a hub model in the local cache. Files that the cache lacks are downloaded."""
    from huggingface_hub import errors, snapshot_download

    name = f"{repo}@{revision}" if revision else repo
    command = f"hf download {repo}{f' --revision {revision}' if revision else ''} --local-dir {repo.partition('/')[2]}"
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns=OTHER_COPIES)
        )
    except errors.RevisionNotFoundError:
        reason = f"the hub has no revision {revision} of this model; check it at https://huggingface.co/{repo}"
    except errors.RepositoryNotFoundError:
        reason = "no such folder, and the hub has no such public model; for a private or gated one run `hf auth login`"
    except Exception as error:  # the hub's client passes on any error of the network below it
        reason = f"no such folder, and the hub cannot be reached ({type(error).__name__})"
        reason += f"; where there is a network, run: {command}"
    raise QCompressError(f"{name}: {reason}")


def hub_name(path: Path) -> str | None:
    """ORG/NAME of a folder in the hub's cache (models--ORG--NAME/snapshots/REVISION), else None."""
    folder = path.resolve()
    cached = folder.parents[1].name if folder.parent.name == "snapshots" else ""
    return cached.removeprefix("models--").replace("--", "/", 1) if cached.startswith("models--") else None


def model_name(path: Path) -> str:
    """The short name of a checkpoint: the name of its folder, or NAME of a hub model ORG/NAME."""
    return (hub_name(path) or path.resolve().name).rpartition("/")[2]


def numbered_names(names: Sequence[str]) -> list[str]:
    """The names, all different: one that occurs several times is followed by the first free number."""
    taken = {name for name in names if names.count(name) == 1}
    result = []
    for name in names:
        if names.count(name) > 1:
            name = next(new for number in count(1) if (new := f"{name}-{number}") not in taken)
            taken.add(name)
        result.append(name)
    return result
