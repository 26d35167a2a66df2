"""The container image of a bundle: the board's, the user's, or one in an archive that the bundle carries."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import QCompressError
from compress.ship.boards import Board
from compress.ship.bundle.settings import IMAGE, ShipConfig

LLAMA_CPP = "ghcr.io/ggml-org/llama.cpp:server-cuda"  # https://github.com/ggml-org/llama.cpp/blob/master/docs/docker.md
LLAMA_CPP_JETSON = "ghcr.io/nvidia-ai-iot/llama_cpp:latest-jetson-orin"  # https://www.jetson-ai-lab.com/models
MANIFEST, MANIFEST_BYTES = "manifest.json", 1_000_000


@dataclass(frozen=True)
class Image:
    """An image: its reference, the digest that pins it, and the archive that holds it.

    Without a digest, the registry may change the image. An archive needs none: SHA256SUMS pins its bytes.
    """

    reference: str
    digest: str | None = None
    archive: Path | None = None

    @property
    def pinned(self) -> str:
        """The reference with its digest, if there is one."""
        plain = self.reference.partition("@")[0]
        return f"{plain}@{self.digest}" if self.digest else plain


def choose_image(config: ShipConfig, board: Board) -> Image:
    """The image that the settings name, or that of the board. Raises QCompressError if the archive names none."""
    if config.image_file is not None:
        return Image(archived_reference(config.image_file), archive=config.image_file)
    if config.image is not None:
        return Image(config.image, config.image.partition("@")[2] or None)
    if config.runtime == "llama.cpp":
        return Image(LLAMA_CPP_JETSON if board.runtime == "nvidia" else LLAMA_CPP)
    return Image(board.image, board.image_digest)


def archived_reference(archive: Path) -> str:
    """The first tag in an archive of `docker save`. Raises QCompressError if the file is no such archive."""
    try:
        with tarfile.open(archive) as tar:
            member = tar.getmember(MANIFEST)
            stream = tar.extractfile(member) if member.size <= MANIFEST_BYTES else None
            tags = json.loads(stream.read())[0]["RepoTags"] if stream else None
    except OSError as error:
        raise QCompressError(
            f"--image-file {archive}: {error.strerror or error}; give a file of `docker save`"
        ) from None
    except (tarfile.TarError, KeyError, IndexError, TypeError, ValueError):
        raise QCompressError(f"--image-file {archive}: is no archive of `docker save`; make it so") from None
    if not isinstance(tags, list) or not tags or not IMAGE.fullmatch(str(tags[0])):
        raise QCompressError(f"--image-file {archive}: its image has no tag; save it by `docker save NAME:TAG`")
    return str(tags[0])
