"""What a bundle will be, before any file is written: the model, the board, the image and the server's command line."""

from dataclasses import dataclass

from compress.checkpoint.hub import model_name
from compress.checkpoint.read import Checkpoint
from compress.evaluate.speed.hardware import BFLOAT16
from compress.evaluate.speed.kv_cache import served_dtype
from compress.ship.boards import Board
from compress.ship.bundle.image import Image, choose_image
from compress.ship.bundle.settings import ShipConfig
from compress.ship.gate import Fit

MODEL = "model"  # folder in the bundle; mounted as /model
PORT = 8000  # in the container, and on the device unless QCOMPRESS_PORT is set
CACHE = "/cache"
PLACE = "/opt/qcompress"  # the units expect the bundle in PLACE/NAME
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
CACHES = {
    "VLLM_CACHE_ROOT": CACHE,
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
}


@dataclass(frozen=True)
class BundlePlan:
    """A checkpoint, the board that will serve it, and the answer of the gate."""

    name: str
    checkpoint: Checkpoint
    board: Board
    fit: Fit
    config: ShipConfig
    image: Image

    @property
    def dtype(self) -> str:
        """The dtype in which the server computes. GPUs without bfloat16 use float16."""
        name = str(served_dtype(self.checkpoint.config))
        old = self.board.capability is not None and self.board.capability < BFLOAT16
        return "float16" if old and name == "bfloat16" else name

    @property
    def place(self) -> str:
        """The folder on the device in which the units look for the bundle."""
        return f"{PLACE}/{self.name}"

    @property
    def gguf(self) -> str:
        """The name of the .gguf file in the folder MODEL."""
        return f"{self.name}.gguf"

    @property
    def for_vllm(self) -> bool:
        return self.config.runtime == "vllm"

    @property
    def entrypoint(self) -> list[str] | None:
        """The program in the container; None for the image's own."""
        if self.for_vllm:
            return ["vllm", "serve"]
        return ["llama-server"] if self.board.runtime == "nvidia" else None

    @property
    def arguments(self) -> list[str]:
        """The arguments of the server."""
        return [text for pair in self.options for text in pair]

    @property
    def options(self) -> list[tuple[str, ...]]:
        """The options of the server, with their values."""
        listen = [("--host", "0.0.0.0"), ("--port", str(PORT))]
        if self.for_vllm:
            return [(f"/{MODEL}",), ("--served-model-name", self.name), *listen, *self.vllm_options]
        config = self.config
        file = [("--model", f"/{MODEL}/{self.gguf}"), ("--alias", self.name)]
        sizes = [("--ctx-size", str(config.context * config.requests)), ("--parallel", str(config.requests))]
        return [*file, *listen, *sizes, ("--n-gpu-layers", "999")]

    @property
    def vllm_options(self) -> list[tuple[str, ...]]:
        flags = self.fit.flags
        dtype = [] if "--dtype" in flags else [("--dtype", self.dtype)]
        return [flags, *dtype, ("--generation-config", "vllm")]

    @property
    def gpus(self) -> int:
        """The number of GPUs that share the model."""
        return self.config.tensor_parallel_size or self.board.gpus

    @property
    def environment(self) -> dict[str, str]:
        return OFFLINE | CACHES if self.for_vllm else {"HF_HUB_OFFLINE": "1"}

    @property
    def health(self) -> list[str]:
        """A command in the container that fails unless the server answers on /health."""
        url = f"http://127.0.0.1:{PORT}/health"
        if not self.for_vllm:
            return ["curl", "--fail", "--silent", "--max-time", "5", url]
        return ["python3", "-c", f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"]


def make_plan(checkpoint: Checkpoint, board: Board, fit: Fit, config: ShipConfig) -> BundlePlan:
    """The plan of a bundle. Raises QCompressError if there is no image."""
    name = config.name or model_name(checkpoint.path)
    return BundlePlan(name, checkpoint, board, fit, config, choose_image(config, board))
