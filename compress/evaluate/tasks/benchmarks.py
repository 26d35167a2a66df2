"""Standard benchmarks, run by lm-eval (https://github.com/EleutherAI/lm-evaluation-harness).

Their data are downloaded or read from a local folder. Rows have the keys that `runner.py` describes. The score is the
task's first metric after its last filter. HumanEval has its own definition here, because lm-eval runs generated code
without a sandbox.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from calibration.chat import has_template
from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names
from compress.evaluate.tasks.item import Score
from compress.evaluate.tasks.python import find_code, whole_lines
from compress.evaluate.tasks.runner import Row, Scores, score_rows
from compress.runtimes.transformers_runtime import load_on_device
from compress.sandbox.python import run_python

Report = Callable[[Row], None]
OpenModel = Callable[[Checkpoint, int], AbstractContextManager[Any]]
"""A function from (checkpoint, batch size) to lm-eval's model of the checkpoint."""
BODY_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def run_completion(doc: Mapping[str, Any], completions: Sequence[str]) -> dict[str, float]:
    """HumanEval's pass@1 of one completion. The code and the task's tests run in the sandbox."""
    function = doc["entry_point"]
    tests = [doc["test"], f"check({function})"]
    outcome = run_python(whole_program(doc, completions[0]), function, tests, setup=doc["prompt"])
    return {"pass@1": float(outcome.status == "passed")}


def whole_program(doc: Mapping[str, Any], completion: str) -> str:
    """The program to test: the prompt followed by its completion.

    A chat model may repeat the whole function. The repeated function is then appended, and overrides the prompt's.
    """
    if f"def {doc['entry_point']}" in completion:
        return f"{doc['prompt']}\n{whole_lines(find_code(completion, doc['entry_point']))}"
    ends = [completion.find(end) for end in BODY_ENDS if end in completion]
    return str(doc["prompt"]) + completion[: min(ends, default=len(completion))]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can run from local data: its file for each split, and settings that replace lm-eval's."""

    files: Mapping[str, str]
    settings: Mapping[str, Any] | None = None


HUMANEVAL = {
    "dataset_path": "openai/openai_humaneval",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{test}}\ncheck({{entry_point}})",
    "process_results": run_completion,
    "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["</s>", "<|im_end|>"], "max_gen_toks": 512, "do_sample": False},
    "num_fewshot": 0,
}
BENCHMARKS = {
    "gsm8k": Benchmark({"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"}),
    "humaneval": Benchmark({"test": "HumanEval.jsonl"}, HUMANEVAL),
}
NAMES = {"humaneval": "humaneval_contained"}  # under the name "humaneval", lm-eval uses its settings, not ours


@contextmanager
def transformers_model(
    checkpoint: Checkpoint, batch_size: int, *, device: str = "auto", dtype: str = "float32"
) -> Iterator[Any]:
    """A context with a checkpoint as a model object of lm-eval, run by transformers."""
    from lm_eval.models.huggingface import HFLM

    tokenizer: Any = checkpoint.tokenizer
    yield HFLM(pretrained=load_on_device(checkpoint, device, dtype), tokenizer=tokenizer, batch_size=batch_size)


def benchmark_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    tasks: Sequence[str],
    *,
    task_data: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    runtime: str = "transformers",
    open_model: OpenModel = transformers_model,
    report: Report = lambda row: None,
) -> list[Row]:
    """The rows of all checkpoints, the reference's first: one per task, and one for the mean of the tasks.

    `limit` runs only the first items of each task. `runtime` names the runtime that `open_model` opens. Raises
    QCompressError if lm-eval is not installed, or if a file is missing in `task_data`.
    """
    settings = [task_settings(name, task_data) for name in tasks]
    checkpoints = [open_for_text(source, readable=runtime != "vllm") for source in (reference, *candidates)]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    scored: list[Scores] = []
    rows: list[Row] = []
    for name, checkpoint in zip(names, checkpoints, strict=True):
        report({"checkpoint": name, "tasks": ", ".join(tasks)})
        scored.append(run_tasks(checkpoint, settings, tasks, limit, batch_size, open_model))
        identity = {"name": name, "role": "candidate" if scored[1:] else "reference"}
        origin: Row = {"suite": "lm-eval", "suite_file": None, "suite_digest": None}
        origin |= {"digest": checkpoint.digest, "small_files_digest": checkpoint.small_files_digest}
        origin |= {"runtime": runtime, "settings": {"tasks": ",".join(tasks), "limit": limit}}
        rows += [identity | row | origin for row in score_rows(scored[-1], scored[0] if scored[1:] else None)]
    return rows


def task_settings(name: str, data: Path | None) -> str | dict[str, Any]:
    """The argument of lm-eval for a task: its name, or a dict of settings that replace lm-eval's."""
    benchmark = BENCHMARKS.get(name)
    if benchmark is None and data:
        raise QCompressError(
            f"{name}: --task-data supports {', '.join(BENCHMARKS)} only; leave out --task-data to download the data"
        )
    if benchmark is None or (benchmark.settings is None and data is None):
        return name
    settings = {"task": NAMES.get(name, name)} | dict(benchmark.settings or {"include": f"{name}/{name}.yaml"})
    if data:
        files = {split: str(find_data(data / file)) for split, file in benchmark.files.items()}
        settings |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return settings


def write_task(settings: str | dict[str, Any], lm_eval: Path, folder: Path) -> str | dict[str, Any]:
    """A task in a form that lm-eval accepts: its name, its settings, or the path of a YAML file.

    Settings with an `include` are written to a file in `folder`, because lm-eval reads includes only in files.
    """
    if isinstance(settings, str) or "include" not in settings:
        return settings
    file = folder / f"{settings['task']}.yaml"
    file.write_text(yaml.safe_dump(settings | {"include": str(lm_eval / "tasks" / settings["include"])}))
    return str(file)


def find_data(file: Path) -> Path:
    """The path of the file, or of its gzipped version. Raises QCompressError if both are missing."""
    for path in (file, file.with_name(f"{file.name}.gz")):
        if path.is_file():
            return path
    raise QCompressError(
        f"{file}: this file and {file.name}.gz are missing; pass the folder that contains one of them with --task-data"
    )


def run_tasks(
    checkpoint: Checkpoint,
    settings: Sequence[str | dict[str, Any]],
    names: Sequence[str],
    limit: int | None,
    batch_size: int,
    open_model: OpenModel,
) -> Scores:
    """The scores of all samples, by task. Raises QCompressError if lm-eval is not installed."""
    try:
        import lm_eval
        import lm_eval.models.huggingface  # fails here if a dependency is missing, before a model is loaded
    except ImportError as error:
        raise QCompressError(f"lm-eval is not installed ({error}); run `pip install 'qcompress[eval]'`") from error
    home, template = Path(lm_eval.__file__).parent, has_template(checkpoint.tokenizer)
    with TemporaryDirectory() as folder, open_model(checkpoint, batch_size) as model:
        tasks = [write_task(one, home, Path(folder)) for one in settings]
        results = lm_eval.simple_evaluate(
            model, tasks=tasks, limit=limit, apply_chat_template=template, bootstrap_iters=0
        )
    samples: Mapping[str, list[Row]] = results["samples"]
    user_names = {NAMES[name]: name for name in names if name in NAMES}
    return {user_names.get(task, task): sample_scores(rows) for task, rows in samples.items()}


def sample_scores(samples: Sequence[Row]) -> dict[str, Score]:
    """The score of each sample by document number: the task's first metric after its last filter."""
    last = samples[-1].get("filter")
    rows = sorted((row for row in samples if row.get("filter") == last), key=lambda row: row["doc_id"])
    return {str(row["doc_id"]): Score(float(row[row["metrics"][0]]), "") for row in rows}
