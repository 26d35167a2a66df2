"""generate_answers(): generate a teacher's answers to prompts, through its chat template.

Prompts form fixed batches. With n processes, rank r answers the batches r, r + n, r + 2n, … Each prompt has a seed and
each batch is written completely or not at all. So interruptions and the number of processes never change the answers.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.chat import encode_text, has_template, render_prompt
from calibration.document import row_prompt
from calibration.readers import read_lines
from compress.checkpoint.load import (
    open_for_text,
    template_digest,
    tokenizer_digest,
)
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint, read_json
from compress.core.atomic import file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Report, Row, silent
from compress.core.sampling import Ids, Sampling
from compress.distill.generate.answers import (
    ANSWERS,
    MANIFEST,
    AnswerFile,
    Batches,
    Facts,
    check_same_facts,
    discard_answers,
    find_facts,
    manifest_path,
    part_paths,
    read_parts,
)
from compress.distill.generate.choose import transformers_choice
from compress.distill.generate.left_out import EMPTY, TOO_LONG, TRUNCATED, place
from compress.runtimes.protocol import Runtime, RuntimeChoice

Messages = Sequence[Mapping[str, Any]]
SILENCE = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Prompt:
    """A prompt: messages that the model must answer, and their token `ids`.

    `number` is the prompt's number in its file, from 0. `source` is the file and line that errors name.
    """

    number: int
    source: str
    messages: Messages
    ids: Ids


@dataclass(frozen=True)
class GenerateJob:
    """The inputs of one generation. `facts` holds all values that determine the answers.

    `length` is the maximum number of tokens of a prompt with its answer.
    """

    teacher: Checkpoint
    out: Path
    sampling: Sampling
    runtime: RuntimeChoice
    facts: Facts
    groups: list[list[Prompt]]
    too_long: list[Prompt]
    length: int


def generate_answers(
    teacher: PathOrCheckpoint,
    prompts: Path,
    out: Path,
    sampling: Sampling,
    *,
    choose: Callable[[int], RuntimeChoice] = lambda length: transformers_choice(),
    limit: int | None = None,
    keep_truncated: bool = False,
    rank: int = 0,
    ranks: int = 1,
    restart: bool = False,
    report: Report = silent,
) -> Row:
    """Answer this rank's batches; returns the summary row. The rank that finishes last writes `out`.

    `choose` returns the runtime for a maximum length; it is called after the prompts are checked. Only the first
    `limit` prompts are answered. Empty answers are left out, and truncated answers too unless `keep_truncated` is set.
    Prompts that leave too little room for an answer are skipped. The summary row counts the prompts without an answer
    and lists them in `left_out`. If `out` is already finished with the same settings, it is kept, and the row has the
    key `skipped`. `restart` removes unfinished work first. Raises QCompressError if an input is bad, if an earlier run
    began `out` with other settings, or if the disk is full. Finished batches stay; the same call continues from them.
    """
    started = time.perf_counter()
    if not 0 <= rank < ranks:
        raise QCompressError(f"rank {rank} of {ranks}: ranks count from 0 to {ranks - 1}")
    with output_lock(out, rank=rank, ranks=ranks), on_interrupt(lambda: kept(out)):
        if restart:
            discard_answers(out, ranks)
        checkpoint = open_for_text(teacher, readable=False)
        fitting, too_long = read_prompts(checkpoint, prompts, sampling, limit)
        facts = describe(checkpoint, [*fitting, *too_long], sampling)
        length = max(len(prompt.ids) for prompt in fitting) + sampling.max_tokens
        runtime = choose(length)
        facts |= {"runtime": runtime.name, "batch_size": runtime.batch_size, "keep_truncated": keep_truncated}
        job = GenerateJob(
            checkpoint, out, sampling, runtime, facts, batches(fitting, runtime.batch_size), too_long, length
        )
        finished = is_whole(out, job.facts)
        if not finished:
            answer_batches(job, rank, ranks, report)
            publish(job)
        skipped = {"skipped": "unchanged"} if finished else {}
        return summary(job) | skipped | {"seconds": round(time.perf_counter() - started, 1)}


def kept(out: Path) -> str | None:
    """A line about the work that is kept after an interrupt, or None if no work is kept."""
    return f"finished batches are kept in {part_paths(out)[0]}; {RESUME}" if part_paths(out) else None


def read_prompts(
    teacher: Checkpoint, path: Path, sampling: Sampling, limit: int | None
) -> tuple[list[Prompt], list[Prompt]]:
    """Two lists: the prompts that leave room for `max_tokens` in the teacher's context, and the prompts that do not.

    Raises QCompressError or CalibrationError, with the line, if a prompt is invalid. Raises QCompressError if no prompt
    leaves enough room.
    """
    tokenizer = teacher.tokenizer
    if not has_template(tokenizer):
        raise QCompressError(
            f"{teacher}: the tokenizer has no chat template; add chat_template.jinja, or use an instruct model"
        )
    room = int(teacher.config.get("max_position_embeddings") or 2**31) - sampling.max_tokens
    fitting: list[Prompt] = []
    too_long: list[Prompt] = []
    for number, (row, where) in enumerate(read_lines(path)):
        if number == limit:
            break
        messages = row_prompt(row, where)
        ids = encode_text(tokenizer, render_prompt(tokenizer, messages, where))
        (fitting if len(ids) <= room else too_long).append(Prompt(number, where, list(messages), ids))
    if not fitting and not too_long:
        raise QCompressError(f"{path}: the file has no prompts; write one prompt per line")
    if not fitting:
        raise QCompressError(
            f"{path}: all {len(too_long)} prompts are too long: the teacher's context must also hold an answer of "
            f"{sampling.max_tokens} tokens; lower --max-tokens or give shorter prompts"
        )
    return fitting, too_long


def describe(teacher: Checkpoint, prompts: Sequence[Prompt], sampling: Sampling) -> Facts:
    """All values that determine the answers, under the names of the options."""
    ordered = [prompt.messages for prompt in sorted(prompts, key=lambda prompt: prompt.number)]
    text = json.dumps(ordered, sort_keys=True, ensure_ascii=False)
    return {
        "teacher": teacher.digest,
        "tokenizer": tokenizer_digest(teacher.tokenizer),
        "chat_template": template_digest(teacher.tokenizer),
        "prompts": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        **asdict(sampling),
    }


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Batches of `size` prompts. Prompts of similar length share a batch, so little padding is needed."""
    ordered = sorted(prompts, key=lambda prompt: (len(prompt.ids), prompt.number))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def is_whole(out: Path, facts: Facts) -> bool:
    """Whether `out` is finished. Raises QCompressError if an earlier run began it with other settings."""
    theirs = find_facts(out)
    if theirs is not None:
        check_same_facts(out, theirs, facts)
    return manifest_path(out).is_file() and out.is_file()


def answer_batches(job: GenerateJob, rank: int, ranks: int, report: Report) -> None:
    """Answer this rank's missing batches. The teacher is loaded only if a batch is missing."""
    finished = answered(job)
    if finished is None:
        return
    batches = range(rank, len(job.groups), ranks)
    missing = [index for index in batches if index not in finished]
    if not missing:
        return
    file = AnswerFile(job.out, job.facts, rank, ranks)
    with closing(job.runtime.open(job.teacher, job.length)) as runtime:
        meter = Meter(sum(len(job.groups[index]) for index in missing), report)
        for index in missing:
            rows = answer(job, job.groups[index], runtime)
            file.add(index, rows)
            meter.add(len(rows), sum(tokens for _, tokens, _ in rows))


def answered(job: GenerateJob) -> Batches | None:
    """The batches that all processes together have finished, or None if another process has already written `out`."""
    try:
        batches = read_parts(job.out, job.facts)
    except FileNotFoundError:  # another process wrote `out` and removed the partial files
        return None
    return None if manifest_path(job.out).is_file() else batches


def answer(job: GenerateJob, group: Sequence[Prompt], runtime: Runtime) -> list[list[Any]]:
    """Generate a batch; returns [text, tokens, ended] for each prompt."""
    seeds = [job.sampling.seed_of(prompt.ids, prompt.number) for prompt in group]
    answers = runtime.generate([prompt.ids for prompt in group], job.sampling, seeds)
    return [
        [str(job.teacher.tokenizer.decode(ids, skip_special_tokens=True)), len(ids), ended] for ids, ended in answers
    ]


class Meter:
    """Reports answered prompts, speed and remaining seconds, every few seconds and at the end."""

    def __init__(self, total: int, report: Report):
        self.total, self.report, self.prompts, self.tokens = total, report, 0, 0
        self.started = self.reported = time.perf_counter()

    def add(self, prompts: int, tokens: int) -> None:
        self.prompts, self.tokens = self.prompts + prompts, self.tokens + tokens
        now = time.perf_counter()
        if now - self.reported < SILENCE and self.prompts < self.total:
            return
        self.reported, spent = now, max(now - self.started, 1e-9)
        rates = {"prompts_per_second": self.prompts / spent, "tokens_per_second": round(self.tokens / spent, 1)}
        left = round((self.total - self.prompts) * spent / self.prompts)
        self.report({"prompts": f"{self.prompts}/{self.total}", **rates, "eta": left})


def publish(job: GenerateJob) -> None:
    """Write `out`, in the order of the prompts, and its manifest; then remove the partial files.

    Does nothing if batches are missing, or if another process has already written `out`.
    """
    finished = answered(job)
    if finished is None or len(finished) < len(job.groups):
        return
    rows, counts, left_out = conversations(job, finished)
    if not rows:
        raise QCompressError(
            f"{job.out}: no answer is left: {counts['truncated']} are truncated and {counts['empty']} are empty; "
            "start again with --restart and with a larger --max-tokens or --keep-truncated"
        )
    manifest = {"facts": job.facts, "counts": counts, "left_out": left_out}
    with file_errors(job.out):
        write_atomic(
            job.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(), kind=ANSWERS
        )
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomic(manifest_path(job.out), text.encode(), kind=MANIFEST)
    for path in part_paths(job.out):
        path.unlink(missing_ok=True)


def conversations(job: GenerateJob, batches: Batches) -> tuple[list[Row], dict[str, int], list[Row]]:
    """The rows of `out`, the counts for the manifest, and a row for each prompt that is left out.

    The counts are: prompts, answers, tokens, truncated answers, empty answers, and prompts that are too long. The row
    of a prompt that is left out has its place in the file and the reason.
    """
    counts = {"prompts": 0, "answers": 0, "tokens": 0, TRUNCATED: 0, EMPTY: 0, TOO_LONG: len(job.too_long)}
    rows, left_out = [], [(prompt, TOO_LONG) for prompt in job.too_long]
    for index, group in enumerate(job.groups):
        for prompt, (text, tokens, ended) in zip(group, batches[index], strict=True):
            empty = not text.strip()
            counts[TRUNCATED] += not ended
            counts[EMPTY] += empty
            if empty or not (ended or job.facts["keep_truncated"]):
                left_out.append((prompt, EMPTY if empty else TRUNCATED))
                continue
            messages = [*prompt.messages, {"role": "assistant", "content": text}]
            rows.append({"messages": messages, "prompt": prompt.number, "tokens": tokens, "truncated": not ended})
    counts |= {"answers": len(rows), "tokens": sum(row["tokens"] for row in rows)}
    counts["prompts"] = sum(map(len, job.groups)) + len(job.too_long)
    left_out.sort(key=lambda each: each[0].number)
    places = [{"prompt": place(prompt.source), "reason": reason} for prompt, reason in left_out]
    return sorted(rows, key=lambda row: row["prompt"]), counts, places


def summary(job: GenerateJob) -> Row:
    """The summary row: counts if `out` is finished, otherwise the number of finished batches."""
    row = {"out": str(job.out), "runtime": job.facts["runtime"]}
    finished = answered(job)
    if finished is None:
        manifest = read_json(manifest_path(job.out))
        kept = {"kept_truncated": job.facts["keep_truncated"] or None, "left_out": manifest.get("left_out", [])}
        return row | manifest["counts"] | kept
    return row | {"batches": f"{len(finished)} of {len(job.groups)}", "next": "other processes answer the rest"}
