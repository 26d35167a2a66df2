"""Standard benchmarks through lm-eval, from the hub or from a local folder; their rows are those of `solve.py`.

https://github.com/EleutherAI/lm-evaluation-harness. A task's first metric counts, after its last filter. HumanEval is
defined here, because lm-eval's own runs generated code uncontained: ours runs it in the sandbox.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from calibration.chat import has_template
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names
from compress.evaluate.tasks.item import Score
from compress.evaluate.tasks.python import find_code, whole_lines
from compress.evaluate.tasks.runner import Row, Scores, score_rows
from compress.runtimes.transformers_generate import placed_model
from compress.sandbox.run import run_python

Told = Callable[[Row], None]
OpenModel = Callable[[Checkpoint, int], AbstractContextManager[Any]]
"""(checkpoint, items at a time) -> lm-eval's model of it."""
BODY_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def run_completion(doc: Mapping[str, Any], completions: Sequence[str]) -> dict[str, float]:
    """HumanEval's pass@1 of one completion: the code, then the task's own tests, in the sandbox."""
    tests = [doc["test"], f"check({doc['entry_point']})"]
    return {"pass@1": float(run_python(whole_program(doc, completions[0]), tests).status == "passed")}


def whole_program(doc: Mapping[str, Any], completion: str) -> str:
    """The prompt and what continues it; where a chat model wrote the function anew, the prompt and that function."""
    if f"def {doc['entry_point']}" in completion:
        return f"{doc['prompt']}\n{whole_lines(find_code(completion, doc['entry_point']))}"
    ends = [completion.find(end) for end in BODY_ENDS if end in completion]
    return str(doc["prompt"]) + completion[: min(ends, default=len(completion))]


@dataclass(frozen=True)
class Benchmark:
    """A task whose data a local folder can hold: its files by split, and settings that replace lm-eval's own."""

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
NAMES = {"humaneval": "humaneval_contained"}  # lm-eval would read its own settings under its own name


@contextmanager
def transformers_model(checkpoint: Checkpoint, batch: int) -> Iterator[Any]:
    """lm-eval's model of `placed_model`."""
    from lm_eval.models.huggingface import HFLM

    tokenizer: Any = checkpoint.tokenizer
    yield HFLM(pretrained=placed_model(checkpoint), tokenizer=tokenizer, batch_size=batch)


def benchmark_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    batch: int = 8,
    engine: str = "transformers",
    open_model: OpenModel = transformers_model,
    report: Told = lambda row: None,
) -> list[Row]:
    """Rows of all checkpoints, the reference's first, one per task and one for their mean.

    `limit` takes the first items of each task; `engine` is the name of what `open_model` opens. QCompressError without
    lm-eval, or where `data` lacks a file.
    """
    wanted = [task_settings(name, data) for name in tasks]
    checkpoints = [open_causal_lm(source) for source in (reference, *candidates)]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    scored: list[Scores] = []
    rows: list[Row] = []
    for name, checkpoint in zip(names, checkpoints, strict=True):
        report({"asks": name, "tasks": ", ".join(tasks)})
        scored.append(run_tasks(checkpoint, wanted, tasks, limit, batch, open_model))
        about = {"name": name, "role": "candidate" if scored[1:] else "reference"}
        origin: Row = {"suite": "lm-eval", "suite_file": None, "suite_digest": None, "digest": checkpoint.digest}
        origin |= {"engine": engine, "settings": {"tasks": ",".join(tasks), "limit": limit}}
        rows += [about | row | origin for row in score_rows(scored[-1], scored[0] if scored[1:] else None)]
    return rows


def task_settings(name: str, data: Path | None) -> str | dict[str, Any]:
    """What lm-eval is given for a task: its name, or its name with what we change."""
    known = BENCHMARKS.get(name)
    if known is None and data:
        raise QCompressError(f"{name}: --data holds {', '.join(BENCHMARKS)} only; leave --data out to take it online")
    if known is None or (known.settings is None and data is None):
        return name
    settings = {"task": NAMES.get(name, name)} | dict(known.settings or {"include": f"{name}/{name}.yaml"})
    if data:
        files = {split: str(find_data(data / file)) for split, file in known.files.items()}
        settings |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return settings


def write_task(settings: str | dict[str, Any], lm_eval: Path, folder: Path) -> str | dict[str, Any]:
    """Settings that include lm-eval's own become a file, the only place where it follows an include; others stay."""
    if isinstance(settings, str) or "include" not in settings:
        return settings
    file = folder / f"{settings['task']}.yaml"
    file.write_text(yaml.safe_dump(settings | {"include": str(lm_eval / "tasks" / settings["include"])}))
    return str(file)


def find_data(file: Path) -> Path:
    """The file, or the same gzipped. QCompressError when there is neither."""
    for found in (file, file.with_name(f"{file.name}.gz")):
        if found.is_file():
            return found
    raise QCompressError(f"{file}: missing, and {file.name}.gz too; name the folder that holds it with --data")


def run_tasks(
    checkpoint: Checkpoint,
    wanted: Sequence[str | dict[str, Any]],
    names: Sequence[str],
    limit: int | None,
    batch: int,
    open_model: OpenModel,
) -> Scores:
    """The score of every sample, by task as the user named it."""
    try:
        import lm_eval
        import lm_eval.models.huggingface  # what it needs is found missing before anything is loaded
    except ImportError as error:
        raise QCompressError(f"lm-eval is not here ({error}); pip install 'qcompress[eval]'") from error
    home, template = Path(lm_eval.__file__).parent, has_template(checkpoint.tokenizer)
    with TemporaryDirectory() as folder, open_model(checkpoint, batch) as model:
        tasks = [write_task(settings, home, Path(folder)) for settings in wanted]
        found = lm_eval.simple_evaluate(
            model, tasks=tasks, limit=limit, apply_chat_template=template, bootstrap_iters=0
        )
    samples: Mapping[str, list[Row]] = found["samples"]
    ours = {NAMES[name]: name for name in names if name in NAMES}
    return {ours.get(task, task): sample_scores(rows) for task, rows in samples.items()}


def sample_scores(samples: Sequence[Row]) -> dict[str, Score]:
    """The first metric of every sample after the task's last filter, by and in the order of the documents' numbers."""
    last = samples[-1].get("filter")
    kept = sorted((row for row in samples if row.get("filter") == last), key=lambda row: row["doc_id"])
    return {str(row["doc_id"]): Score(float(row[row["metrics"][0]]), "") for row in kept}
