"""The settings of `qcompress bench`: requests, resources and predictions."""

from dataclasses import dataclass, replace
from typing import Any

from compress.core.config import COMPUTE_DTYPES, FORMAT_NAMES, KV_DTYPES, parse_size
from compress.core.errors import BadValueError
from compress.core.options import device_setting, option
from compress.evaluate.speed.hardware import NAMES

FULL = {"prompt_tokens": 1024, "new_tokens": 512, "batch_size": 8, "repeats": 3}
QUICK = {"prompt_tokens": 128, "new_tokens": 32, "batch_size": 2, "repeats": 2}


@dataclass(frozen=True)
class Timing:
    """The requests to measure, and the number of repeats.

    `complete` replaces None by the value in FULL, or with `quick` by the value in QUICK.
    """

    runtime: str = option(
        "auto",
        "Runtime that is measured. auto: vLLM if it is installed, else transformers.",
        group="Measurement",
        choices=("auto", "transformers", "vllm"),
    )
    quick: bool = option(
        False,
        "Measure smaller requests by default: 128 prompt tokens, 32 new tokens, batch size 2, 2 repeats.",
        group="Measurement",
    )
    prompt_tokens: int | None = option(
        None, "Prompt length of a request, in tokens.", group="Measurement", minimum=1, default_text="1024"
    )
    new_tokens: int | None = option(
        None, "Answer length of a request, in tokens.", group="Measurement", minimum=2, default_text="512"
    )
    batch_size: int | None = option(
        None, "Concurrent requests when throughput is measured.", group="Measurement", minimum=1, default_text="8"
    )
    repeats: int | None = option(
        None, "Repeats of each measurement in one process.", group="Measurement", minimum=1, default_text="3"
    )
    rounds: int = option(
        1, "Passes over all checkpoints. Each pass starts a new process per checkpoint.", group="Measurement", minimum=1
    )
    max_batch_size: int = option(
        256, "Largest number of requests that vLLM runs at once.", group="Measurement", minimum=1
    )
    confirm_batch: bool = option(
        False, "Run vLLM's largest batch, instead of only computing its size.", group="Measurement"
    )

    def complete(self) -> "Timing":
        """The same settings, with a number in place of every None.

        Raises ValueError if two numbers contradict each other.
        """
        defaults: dict[str, Any] = QUICK if self.quick else FULL
        settings = replace(self, **{key: n for key, n in defaults.items() if getattr(self, key) is None})
        if settings.numbers["new_tokens"] < 2:
            raise BadValueError(f"--new-tokens {settings.new_tokens}: measuring the decoding speed needs at least 2")
        if settings.runtime == "vllm" and settings.numbers["batch_size"] > settings.max_batch_size:
            raise BadValueError(
                f"--batch-size {settings.batch_size} is above --max-batch-size {settings.max_batch_size}; "
                "raise --max-batch-size"
            )
        if settings.runtime == "transformers" and settings.confirm_batch:
            raise BadValueError(
                "--confirm-batch: transformers has no fixed KV cache, so no largest batch; use --runtime vllm"
            )
        return settings

    @property
    def numbers(self) -> dict[str, int]:
        """Prompt tokens, new tokens, batch size and repeats, by name. The settings must be complete."""
        return {key: int(getattr(self, key)) for key in FULL}


@dataclass(frozen=True)
class Resources:
    """The device, dtype, memory and time that a measuring process may use."""

    device: str = device_setting()
    dtype: str = option(
        "auto", "Dtype that the model computes in. auto: the checkpoint's.", group="Resources", choices=COMPUTE_DTYPES
    )
    kv_cache: int = option(2, "Size of vLLM's KV cache on a CPU, in GiB.", group="Resources", minimum=1)
    timeout: float = option(3600.0, "Time limit of each measuring process, in seconds.", group="Resources", minimum=0)
    gpu_memory: int | None = option(
        None,
        "Also predict for a GPU with this much memory, such as 8GB or 7.5GiB. "
        "Measurements use at most as much. vLLM uses 92 % of it.",
        group="Prediction",
        parse=parse_size,
        metavar="SIZE",
    )


@dataclass(frozen=True)
class Prediction:
    """The hardware and format to predict for. Predictions read headers and load no model."""

    hardware: tuple[str, ...] = option(
        (),
        "Also predict for this GPU or board, or for all of them. Repeatable.",
        group="Prediction",
        metavar=f"[{'|'.join((*NAMES, 'all'))}]",
    )
    packed: str | None = option(
        None,
        "Also predict each 16-bit CKPT as if quantized to 4 bits in this format.",
        group="Prediction",
        choices=FORMAT_NAMES,
    )
    kv_cache_dtype: str = option(
        KV_DTYPES[0],
        "Dtype of the KV cache in predictions, as for `vllm serve`. auto: the model's.",
        group="Prediction",
        choices=KV_DTYPES,
    )
    predict_only: bool = option(False, "Predict without measuring. CKPT may then be a config.json.", group="Prediction")
