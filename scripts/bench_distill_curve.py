"""Compare four ways to train a student: python scripts/bench_distill_curve.py TEACHER -o OUT --text FILE --task FILE

One student, cut out of TEACHER, is trained four times from the same weights: with cross-entropy only, by distillation,
by distillation with aligned hidden states, and by distillation in two stages. The first stage trains on --text, the
second on --task and a quarter of replayed text. All four variants read the same shares of both texts, and have the same
steps and seed. The held-out KL to the teacher and the perplexity are written to OUT/curve.json, .md, .svg and .png.

With --minutes, the steps are chosen as follows: a few steps of the slowest variant are timed, and the remaining time is
divided by four.
"""

import json
import time
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import click
import torch
from matplotlib.figure import Figure
from script_options import out_option

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import write_json
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.distill.config import DistillConfig, StageConfig
from compress.distill.model import Model, open_model, working_dtype
from compress.distill.student.build import common_vocabulary, cut_student
from compress.distill.student.plan import plan_distill
from compress.distill.text.stages import make_stages, mix, stage_texts
from compress.distill.text.windows import counting_windows, find_start
from compress.distill.training.evaluator import StudentEvaluator
from compress.distill.training.loop import make_accelerator, restore, snapshot
from compress.distill.training.stage_runner import Run, make_alignment, run_stages

Row = dict[str, Any]
REPLAY = 0.25
WARM_UP = 4  # steps that are timed; the first and the last one, which includes an evaluation, are left out
VARIANTS = {"CE": "ce", "KD": "kd", "KD + hidden": "hidden", "KD in stages": "staged"}
COLOURS = ("#8a8a8a", "#1f6feb", "#d1762a", "#2a9d5c")


@dataclass
class Bench:
    """The models, texts and settings that all variants share."""

    teacher: Model
    student: Model
    start: dict[str, torch.Tensor]
    evaluator: StudentEvaluator
    tokenizer: Any
    vocab: int
    align_weight: float
    general: tuple[str, ...]
    task: tuple[str, ...]


def settings_of(kind: str, bench: Bench, common: DistillConfig, steps: int, points: int) -> DistillConfig:
    """The settings of a variant.

    The staged variant has half its steps on each text. All other variants mix the texts, so that each text has the
    same share as in the staged variant.
    """
    half, rest = steps - steps // 2, steps // 2
    shared = (1 - REPLAY) * rest / steps
    whole = replace(common, steps=steps, eval_every=max(1, steps // points))
    if kind == "staged":
        stages = (
            StageConfig("general", text=bench.general, steps=half),
            StageConfig("task", text=bench.task, steps=rest, replay=REPLAY),
        )
        return replace(whole, text=bench.general, stages=stages)
    changed: Row = {"ce": {"alpha": 0.0}, "hidden": {"align_weight": bench.align_weight}}.get(kind, {})
    return replace(whole, text=mix(bench.task, [bench.general], 1 - shared), **changed)


def run_variant(name: str, bench: Bench, settings: DistillConfig) -> Row:
    """Train the student from its first weights. Returns the measured points, the speed and the best point in a row."""
    restore(bench.student.model, bench.start)
    stages = make_stages(settings)
    texts = stage_texts(stages, bench.tokenizer, bench.teacher.model)
    alignment = make_alignment(bench.student, bench.teacher, stages, settings.seed)
    run = Run(bench.student, bench.teacher, bench.vocab, bench.tokenizer.eos_token_id, alignment, report)
    began, before = time.perf_counter(), bench.evaluator.measure(bench.student)
    results = run_stages(run, stages, texts, [bench.evaluator] * len(stages))
    seconds = time.perf_counter() - began
    per_step = settings.batch_size * settings.seq_len
    curve = [row for one in results for row in one.trained.curve]
    points = [{"tokens": 0, "kl": before.kl, "perplexity": exp(before.nll)}]
    points += [
        {"tokens": row["step"] * per_step, "kl": row["eval_kl"], "perplexity": exp(row["eval_nll"])}
        for row in curve
        if "eval_kl" in row
    ]
    best = min(points, key=lambda point: point["kl"])
    row = {"name": name, "kl_before": before.kl, "kl_after": best["kl"], "factor": before.kl / best["kl"]}
    row |= {"perplexity_before": exp(before.nll), "perplexity_after": best["perplexity"], "steps": len(curve)}
    row |= {"tokens": len(curve) * per_step, "seconds": seconds, "tokens_per_second": len(curve) * per_step / seconds}
    return row | {"points": points, "loss": curve, "settings": settings.settings()}


def choose_steps(bench: Bench, common: DistillConfig, seconds: float, points: int) -> int:
    """The number of steps for which four variants have time, at the speed of the slowest variant."""
    settings = settings_of("hidden", bench, common, WARM_UP, 1)
    restore(bench.student.model, bench.start)
    marks: list[float] = []
    stages = make_stages(settings)
    texts = stage_texts(stages, bench.tokenizer, bench.teacher.model)
    alignment = make_alignment(bench.student, bench.teacher, stages, settings.seed)
    run = Run(bench.student, bench.teacher, bench.vocab, None, alignment, lambda row: marks.append(time.perf_counter()))
    began = time.perf_counter()
    run_stages(run, stages, texts, [bench.evaluator])
    total = time.perf_counter() - began
    step = (marks[-2] - marks[0]) / (WARM_UP - 2) if WARM_UP > 2 else total
    measured = time.perf_counter()
    bench.evaluator.measure(bench.student)
    evaluation = time.perf_counter() - measured
    steps = int(((seconds - total) / len(VARIANTS) - (points + 3) * evaluation) / step)
    report({"seconds_per_step": step, "seconds_per_evaluation": evaluation, "steps": steps})
    return max(2, steps)


def table(rows: list[Row], perplexity: float) -> str:
    """The figures of all variants as a Markdown table."""
    lines = ["| variant | held-out KL before | after | factor | perplexity before | after | tokens | tokens/s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['kl_before']:.4g} | {row['kl_after']:.4g} | {row['factor']:.2f} | "
            f"{row['perplexity_before']:.4g} | {row['perplexity_after']:.4g} | {row['tokens']:,} | "
            f"{row['tokens_per_second']:.0f} |"
        )
    return "\n".join([*lines, "", f"The teacher's perplexity is {perplexity:.4g}."]) + "\n"


def draw(rows: list[Row], perplexity: float) -> Figure:
    """KL and perplexity against tokens, a line for each variant."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(
        panels, ("kl", "perplexity"), ("held-out KL to the teacher, nats", "held-out perplexity"), strict=True
    ):
        for row, colour in zip(rows, COLOURS, strict=True):
            points = row["points"]
            axes.plot(
                [p["tokens"] / 1e3 for p in points], [p[key] for p in points], "o-", color=colour, label=row["name"]
            )
        axes.set(xlabel="thousands of tokens", title=title, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(True, which="both", alpha=0.25)
    panels[1].axhline(perplexity, color="black", ls=":", lw=1, label="teacher")
    panels[1].legend(frameon=False)
    return figure


@click.command()
@click.argument("teacher", type=click.Path(path_type=Path))
@out_option("build/bench-distill-curve", "Folder for all outputs.")
@click.option("--text", "general", multiple=True, required=True, help="General text: TEXT[=WEIGHT]. Repeatable.")
@click.option("--task", multiple=True, required=True, help="Text of the task: TEXT[=WEIGHT]. Repeatable.")
@click.option("--eval-text", multiple=True, required=True, help="Evaluation text, never trained on. Repeatable.")
@click.option("--blocks", type=click.IntRange(1), default=20, show_default=True, help="Blocks of the student.")
@click.option("--steps", type=click.IntRange(2), help="Training steps of each variant. Excludes --minutes.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Approximate time in all. Excludes --steps.")
@click.option("--points", type=click.IntRange(1), default=8, show_default=True, help="Evaluations of each variant.")
@click.option("--eval-samples", type=click.IntRange(1), default=16, show_default=True, help="Evaluation windows.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Windows per step.")
@click.option("--seq-len", type=click.IntRange(2), default=256, show_default=True, help="Tokens per window.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Peak learning rate.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Temperature of the distillation loss.",
)
@click.option(
    "--align-weight",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of the hidden-state loss in the variant that has it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@json_option
def main(
    teacher: Path,
    out: Path,
    general: tuple[str, ...],
    task: tuple[str, ...],
    eval_text: tuple[str, ...],
    blocks: int,
    steps: int | None,
    minutes: float | None,
    points: int,
    eval_samples: int,
    align_weight: float,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Compare four ways to train a student of TEACHER. Writes a plot and a table to the folder --out."""
    if (steps is None) == (minutes is None):
        raise click.UsageError("give either --steps or --minutes")
    began = time.perf_counter()
    common = DistillConfig(blocks=blocks, text=general, eval_text=eval_text[0], **sizes)
    out.mkdir(parents=True, exist_ok=True)
    bench = prepare(teacher, common, general, task, eval_text, eval_samples, align_weight)
    if steps is None:
        steps = choose_steps(bench, common, 60 * (minutes or 0) - (time.perf_counter() - began), points)
    rows = []
    for name, kind in VARIANTS.items():
        report({"variant": name, "steps": steps})
        rows.append(run_variant(name, bench, settings_of(kind, bench, common, steps, points)))
        write_results(out, teacher, rows, exp(bench.evaluator.teacher_nll))
    emit([{k: v for k, v in row.items() if k not in ("points", "loss", "settings")} for row in rows], as_json=as_json)


def prepare(
    teacher: Path,
    common: DistillConfig,
    general: tuple[str, ...],
    task: tuple[str, ...],
    eval_text: tuple[str, ...],
    eval_samples: int,
    align_weight: float,
) -> Bench:
    """Load the teacher, the untrained student and the evaluation text into memory."""
    tokenizer, plan = Checkpoint(teacher).tokenizer, plan_distill(teacher, common)
    device = make_accelerator().device
    big, vocab = (
        open_model(teacher, working_dtype(Checkpoint(teacher), device), device),
        common_vocabulary(plan, tokenizer),
    )
    size = {"seq_len": common.seq_len, "seed": common.seed}
    start = find_start(general, tokenizer, big.model, 4, size)
    few = counting_windows(general, tokenizer, 4, size, start, common.packing)
    student = cut_student(open_causal_lm(teacher), plan, common, few, vocab, device, report)
    evaluator = StudentEvaluator(
        big, counting_windows(eval_text, tokenizer, eval_samples, size, start, common.packing), vocab
    )
    report({"eval_tokens": evaluator.tokens, "teacher_perplexity": exp(evaluator.teacher_nll), "device": str(device)})
    weights = snapshot(student.model.model, torch.float32)
    return Bench(big, student.model, weights, evaluator, tokenizer, vocab, align_weight, general, task)


def write_results(out: Path, teacher: Path, rows: list[Row], perplexity: float) -> None:
    """Write the points and the table of the variants trained so far. The plot is drawn after the last variant."""
    head = {"teacher": Checkpoint(teacher).digest, "perplexity_teacher": perplexity, "threads": torch.get_num_threads()}
    write_json(out / "curve.json", json.loads(json.dumps({**head, "rows": rows}, default=str)))
    (out / "curve.md").write_text(table(rows, perplexity), encoding="utf-8")
    if len(rows) == len(VARIANTS):
        for ending in ("svg", "png"):
            draw(rows, perplexity).savefig(out / f"curve.{ending}", dpi=120)


if __name__ == "__main__":
    main()
