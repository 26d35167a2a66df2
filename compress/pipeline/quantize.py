"""Quantize by qcompress's own methods or by a backend, as the settings choose. Commands, recipes and Python call it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.core.backend_config import BackendConfig
from compress.core.config import QuantizeConfig

if TYPE_CHECKING:
    from compress.checkpoint.read import PathOrCheckpoint
    from compress.core.report import Row
    from compress.quantize.job import RunOptions

Settings = QuantizeConfig | BackendConfig


@dataclass(frozen=True)
class BackendOptions:
    """How to find a backend: `install` it if it is missing, or use the interpreter `python`."""

    install: bool = False
    python: Path | None = None


def quantize_by(
    model: "PathOrCheckpoint",
    out: Path,
    config: Settings,
    run: "RunOptions",
    options: BackendOptions = BackendOptions(),
) -> "Row":
    """Quantize `model` into `out`, and return the summary row. Errors are those of the job that the config chooses."""
    if isinstance(config, QuantizeConfig):
        from compress.quantize.auto import quantize

        return quantize(model, out, config, run)
    from compress.backends.job import BackendRun, quantize_with_backend

    chosen = BackendRun(run.device, options.install, options.python, run.restart, run.report)
    return quantize_with_backend(model, out, config, chosen)


def check_ready(config: Settings, options: BackendOptions = BackendOptions()) -> None:
    """Raises QCompressError if the config names a backend that is not installed, or that cannot run here."""
    if isinstance(config, QuantizeConfig):
        return
    from compress.backends.environment import find_interpreter
    from compress.backends.table import find_backend

    backend = find_backend(config.backend)
    if not options.install:
        find_interpreter(backend, options.python)


def plan_by(name: str, model: dict[str, Any], config: Settings) -> "Row":
    """The plan of a quantization, from the content of a config.json. A backend's plan has the layout, not its bytes."""
    from compress.quantize.layout.job_plan import plan_without_weights
    from compress.quantize.layout.plan import plan_row

    if isinstance(config, QuantizeConfig):
        return plan_row(name, plan_without_weights(name, model, config), config)
    plan = plan_without_weights(name, model, config.layout)
    size = {} if config.format == "gguf" else {"group_size": plan.scheme.group_size}
    return {"model": name, "backend": config.backend, "method": config.method, "format": config.format, **size}
