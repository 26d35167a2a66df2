"""Checkpoints of real sizes: headers without data, in any layout. And bundles of the tiny llama, made once per session.

A test that changes a bundle copies it first.
"""

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from compress import quantize
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import refresh_file_digests
from compress.ship.bundle.settings import ShipConfig
from compress.ship.bundle.write import ship
from tests.ship.gguf.test_export import SIZES, THETA, write_tokenizer
from tests.ship.model_server import ModelServer

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
CONFIG = ShipConfig(hardware="orin-nano", name="tiny", context=512)


@pytest.fixture(scope="session")
def boards_page() -> ModuleType:
    """The script that makes docs/reference/boards.md."""
    spec = importlib.util.spec_from_file_location("boards_page", ROOT / "scripts" / "boards_page.py")
    assert spec and spec.loader
    module = sys.modules["boards_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def headers(boards_page: ModuleType) -> Iterator[Callable[..., Checkpoint]]:
    """headers(model, layout, **settings): a checkpoint of a config in recipes/configs, whose files have no data."""
    with ExitStack() as stack:
        yield lambda model, layout="awq", **settings: stack.enter_context(
            boards_page.header_checkpoint(CONFIGS / f"{model}.json", layout, **settings)
        )


@pytest.fixture(scope="session")
def tiny_awq(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ship") / "awq"
    quantize(tiny_llama, out, method="rtn", format="awq", group_size=32)
    return out


@pytest.fixture(scope="session")
def tiny_gptq(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ship") / "gptq"
    quantize(tiny_llama, out, method="rtn", format="gptq", group_size=32)
    return out


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """make_bundle(checkpoint, out, **settings) writes a bundle and returns `out`."""

    def make(checkpoint: Path, out: Path, **settings: Any) -> Path:
        ship(checkpoint, out, dataclasses.replace(CONFIG, **settings))
        return out

    return make


@pytest.fixture(scope="session")
def session_bundle(tiny_awq: Path, make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for vLLM that no test may change."""
    return make_bundle(tiny_awq, tmp_path_factory.mktemp("bundles") / "vllm")


@pytest.fixture
def bundle(session_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle for vLLM."""
    return Path(shutil.copytree(session_bundle, tmp_path / "bundle"))


@pytest.fixture
def serve() -> Iterator[Callable[..., ModelServer]]:
    """serve(checkpoint) starts a server of a checkpoint as "tiny". All servers end with the test."""
    servers: list[ModelServer] = []

    def start(checkpoint: Path, **settings: Any) -> ModelServer:
        servers.append(ModelServer(checkpoint, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def gguf_bundle(
    save_model: Callable[..., Path], make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle for llama.cpp that no test may change. Its model is also at ../gptq."""
    folder = tmp_path_factory.mktemp("gguf")
    config = AutoConfig.for_model("llama", **SIZES, rope_parameters=THETA)
    save_model(AutoModelForCausalLM.from_config(config), folder / "source", seed=3)
    write_tokenizer(folder / "source")
    refresh_file_digests(folder / "source")
    quantize(folder / "source", folder / "gptq", method="rtn", format="gptq", group_size=32)
    return make_bundle(folder / "gptq", folder / "bundle", runtime="llama.cpp")
