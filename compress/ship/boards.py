"""The boards and GPUs that `ship` makes bundles for: a row of the hardware table, and the container image for it.

Images of vLLM:

- vllm/vllm-openai is built for the compute capabilities of VLLM_ARCHITECTURES (vLLM 0.32.0, docker/versions.json). It
  is pinned to the version whose loader `check` describes. Its CUDA 13 needs driver 580 or newer.
- Orin has compute capability 8.7, which that image lacks. NVIDIA's package for Jetson,
  https://github.com/orgs/NVIDIA-AI-IOT/packages/container/package/vllm, has two images, pinned here by digest. Public
  logs of both print vLLM 0.19.0, with JetPack 6 and CUDA 12.6 (Orin), and with JetPack 7 and CUDA 13.0 (Thor). The
  latest-* tags move: on a driver that is too old, their CUDA does not start.

None of the images was run by this project.
"""

from dataclasses import dataclass

from calibration.suggest import did_you_mean
from compress.checkpoint.vllm_models import VLLM_VERSION
from compress.core.errors import QCompressError
from compress.evaluate.speed.hardware import HARDWARE, Hardware

OFFICIAL = f"vllm/vllm-openai:v{VLLM_VERSION}"
VLLM_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 110, 120)  # compute capabilities of the official image, times ten
NVIDIA_PACKAGE = "ghcr.io/nvidia-ai-iot/vllm"
JETSON_VLLM = "0.19.0"
CAPABILITIES = "https://developer.nvidia.com/cuda-gpus"
IMAGE_DOCS = "https://docs.vllm.ai/en/stable/deployment/docker.html"
ORIN = "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
PACKAGE_PAGE = "https://github.com/orgs/NVIDIA-AI-IOT/packages/container/package/vllm"


@dataclass(frozen=True)
class Board:
    """A board or GPU with its container image.

    `image` is the reference to pull: with `image_digest`, or with a tag if that is None. `vllm` is the version inside,
    None if unknown. `runtime` is the container runtime to name, "nvidia" on Jetson. Elsewhere it is "", and GPUs are
    reserved as devices.
    `command` are the words before the model's path; they are empty if the image's entrypoint is `vllm serve`.
    `formats` are the layouts that a runtime for this hardware reads. `sources` are the pages of the figures.
    """

    hardware: Hardware
    image: str
    vllm: str | None
    formats: tuple[str, ...]
    sources: tuple[str, ...]
    image_digest: str | None = None
    runtime: str = ""
    command: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.hardware.name

    @property
    def title(self) -> str:
        return self.hardware.title

    @property
    def capability(self) -> int | None:
        """CUDA's compute capability times ten."""
        return self.hardware.capability

    @property
    def unified(self) -> bool:
        """Whether the memory is shared with the system."""
        return self.hardware.unified

    @property
    def gpus(self) -> int:
        return self.hardware.gpus


VLLM_FORMATS = ("awq", "gptq", "compressed-tensors")
ALL_FORMATS = (*VLLM_FORMATS, "gguf")  # llama.cpp reads gguf on every CUDA GPU
ORIN_DIGEST = "sha256:817f0f940d2d9c9067d861d2118d7bf58c40873598f0c35e19c8516269ebc4bd"
THOR_DIGEST = "sha256:b587dd56b4cb076209ad5156a626ac75f5a976d0e8e7d1e6a9fccd56d1bd65e8"
PAGES = {  # of the specification of each row in HARDWARE
    "orin-nano": ORIN,
    "orin-nx": ORIN,
    "agx-orin": ORIN,
    "agx-thor": "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-thor/",
    "t4": "https://www.nvidia.com/en-us/data-center/tesla-t4/",
    "l4": "https://www.nvidia.com/en-us/data-center/l4/",
    "a10": "https://www.nvidia.com/en-us/data-center/products/a10-gpu/",
    "rtx-3060": "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/",
    "rtx-4060": "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/",
    "rtx-4090": "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4090/",
    "4x-rtx-4090d": "https://www.nvidia.cn/geforce/graphics-cards/40-series/rtx-4090-d/",
    "rtx-5090": "https://www.nvidia.com/en-us/geforce/graphics-cards/50-series/rtx-5090/",
    "l40s": "https://www.nvidia.com/en-us/data-center/l40s/",
    "a100": "https://www.nvidia.com/en-us/data-center/a100/",
    "h100": "https://www.nvidia.com/en-us/data-center/h100/",
}


def make_board(hardware: Hardware) -> Board:
    """The board of a row of HARDWARE. Jetson boards have NVIDIA's image, others the vLLM project's."""
    page = PAGES[hardware.name]
    if not hardware.unified:
        return Board(hardware, OFFICIAL, VLLM_VERSION, ALL_FORMATS, (page, CAPABILITIES, IMAGE_DOCS))
    digest = ORIN_DIGEST if hardware.capability == 87 else THOR_DIGEST
    sources = (page, CAPABILITIES, PACKAGE_PAGE)
    command = ("vllm", "serve")
    return Board(hardware, f"{NVIDIA_PACKAGE}@{digest}", JETSON_VLLM, ALL_FORMATS, sources, digest, "nvidia", command)


BOARDS = {hardware.name: make_board(hardware) for hardware in HARDWARE}


def find_board(name: str) -> Board:
    """The board of this name. Raises QCompressError if there is none."""
    if name not in BOARDS:
        raise QCompressError(
            f"--hardware {name}: unknown name; use {', '.join(BOARDS)}{did_you_mean(name, list(BOARDS))}"
        )
    return BOARDS[name]
