"""The settings of `qcompress eval`."""

from dataclasses import dataclass
from pathlib import Path

from compress.core.config import COMPUTE_DTYPES
from compress.core.options import device_setting, option

KIND_NAMES = ("qa", "python", "math", "json", "multi-turn")
OUT = Path("build/eval")


@dataclass(frozen=True)
class TaskSettings:
    """The tasks to run: a suite, or benchmarks of lm-eval."""

    kind: tuple[str, ...] = option((), "Run only this kind of task. Repeatable.", group="Tasks", choices=KIND_NAMES)
    suite: Path | None = option(
        None, "Task file to run (.jsonl).", group="Tasks", metavar="FILE", default_text="the bundled suite"
    )
    limit: int | None = option(
        None,
        "Largest number of items per kind or benchmark. Items of a kind are picked evenly from its file.",
        group="Tasks",
        minimum=1,
        default_text="all items",
    )
    tasks: str | None = option(
        None,
        "Run these lm-eval benchmarks instead of a suite, such as gsm8k,humaneval.",
        group="Tasks",
        metavar="NAME,...",
    )
    task_data: Path | None = option(
        None,
        "Folder with the data of --tasks.",
        group="Tasks",
        metavar="FOLDER",
        default_text="downloaded by lm-eval",
    )
    min_retention: float | None = option(
        None,
        "Lowest allowed retention of each kind of task, in %. Below it, the exit code is 3.",
        group="Limits",
        minimum=0,
    )


@dataclass(frozen=True)
class RuntimeSettings:
    """The runtime that generates the answers, and its settings."""

    runtime: str = option(
        "transformers",
        "Runtime that generates the answers. auto: vLLM if it is installed, else transformers.",
        group="Resources",
        choices=("auto", "transformers", "vllm"),
    )
    device: str = device_setting()
    dtype: str | None = option(
        None,
        "Dtype that the model computes in. auto: the checkpoint's.",
        group="Resources",
        choices=COMPUTE_DTYPES,
        default_text="float32 in transformers, auto in vLLM",
    )
    batch_size: int = option(
        8, "Items per batch. It changes speed and memory, never an answer.", group="Resources", minimum=1
    )
