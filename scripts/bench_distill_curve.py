"""What each part of the loss is worth: python scripts/bench_distill_curve.py TEACHER OUT --text FILE --task FILE

One student, cut out of TEACHER, is trained four times from the same weights: by cross-entropy alone, by distillation,
by distillation with hidden states, and by distillation in two stages (first --text, then --task with a quarter
replayed). All four see the same share of both texts, the same number of steps and the same seed. Held-out KL to the
teacher and perplexity against tokens go to OUT/curve.json, OUT/curve.md and OUT/curve.svg with .png.

--minutes chooses the steps: the dearest variant is timed for a few, and what is left of the time is shared by four.
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

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import write_json
from compress.cli.console import emit, report
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
WARM_UP = 4  # timed steps; the first and the last (with its evaluation) do not count
VARIANTS = {"CE": "ce", "KD": "kd", "KD + hidden": "hidden", "KD in stages": "staged"}
COLOURS = ("#8a8a8a", "#1f6feb", "#d1762a", "#2a9d5c")


@dataclass
class Bench:
    """What all variants share."""

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
    """The settings of a variant: half the steps on each text in stages, or all of them on a mixture of equal shares."""
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
    """Train from the start; points {tokens, kl, perplexity}, speed, and the best of what was measured."""
    restore(bench.student.model, bench.start)
    stages = make_stages(settings)
    texts = stage_texts(stages, bench.tokenizer, bench.teacher.model)
    alignment = make_alignment(bench.student, bench.teacher, stages, settings.seed)
    run = Run(bench.student, bench.teacher, bench.vocab, bench.tokenizer.eos_token_id, alignment, report)
    began, before = time.perf_counter(), bench.evaluator.measure(bench.student)
    finished = run_stages(run, stages, texts, [bench.evaluator] * len(stages))
    seconds = time.perf_counter() - began
    per_step = settings.batch_size * settings.seq_len
    curve = [row for one in finished for row in one.trained.curve]
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
    """As many steps as four variants have time for, at the pace of the dearest one."""
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
    left = seconds - total
    steps = int((left / len(VARIANTS) - (points + 3) * evaluation) / step)
    report({"seconds_per_step": step, "seconds_per_evaluation": evaluation, "steps": steps})
    return max(2, steps)


def table(rows: list[Row], perplexity: float) -> str:
    """The figures as Markdown."""
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
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--text", "general", multiple=True, required=True, help="General text: NAME or FILE, with =WEIGHT.")
@click.option("--task", multiple=True, required=True, help="Text of the task, likewise.")
@click.option(
    "--eval-text", multiple=True, required=True, help="Text for evaluation, never trained on; repeat for several."
)
@click.option("--blocks", type=click.IntRange(1), default=20, show_default=True)
@click.option("--steps", type=click.IntRange(2), help="Of each variant; or --minutes.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="For everything, about.")
@click.option("--points", type=click.IntRange(1), default=8, show_default=True, help="Evaluations of each variant.")
@click.option("--eval-windows", type=click.IntRange(1), default=16, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seq-len", type=click.IntRange(2), default=256, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--align-weight", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
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
    eval_windows: int,
    align_weight: float,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Four ways to train a student of TEACHER, one plot and one table in OUT."""
    if (steps is None) == (minutes is None):
        raise click.UsageError("give --steps or --minutes")
    began = time.perf_counter()
    common = DistillConfig(blocks=blocks, text=general, eval_text=eval_text[0], **sizes)
    out.mkdir(parents=True, exist_ok=True)
    bench = prepare(teacher, common, general, task, eval_text, eval_windows, align_weight)
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
    windows: int,
    align_weight: float,
) -> Bench:
    """Teacher, untrained student and held-out text, all in memory."""
    tokenizer, plan = Checkpoint(teacher).tokenizer, plan_distill(teacher, common)
    device = make_accelerator().device
    big, vocab = open_model(teacher, working_dtype(device), device), common_vocabulary(plan, tokenizer)
    size = {"seq_len": common.seq_len, "seed": common.seed}
    start = find_start(general, tokenizer, big.model, 4, size)
    few = counting_windows(general, tokenizer, 4, size, start, common.packing)
    student = cut_student(open_causal_lm(teacher), plan, common, few, vocab, device, report)
    evaluator = StudentEvaluator(
        big, counting_windows(eval_text, tokenizer, windows, size, start, common.packing), vocab
    )
    report({"eval_tokens": evaluator.tokens, "teacher_perplexity": exp(evaluator.teacher_nll), "device": str(device)})
    weights = snapshot(student.model.model, torch.float32)
    return Bench(big, student.model, weights, evaluator, tokenizer, vocab, align_weight, general, task)


def write_results(out: Path, teacher: Path, rows: list[Row], perplexity: float) -> None:
    """All points so far; table and plot when all variants are there."""
    head = {"teacher": Checkpoint(teacher).digest, "perplexity_teacher": perplexity, "threads": torch.get_num_threads()}
    write_json(out / "curve.json", json.loads(json.dumps({**head, "rows": rows}, default=str)))
    (out / "curve.md").write_text(table(rows, perplexity), encoding="utf-8")
    if len(rows) == len(VARIANTS):
        for ending in ("svg", "png"):
            draw(rows, perplexity).savefig(out / f"curve.{ending}", dpi=120)


if __name__ == "__main__":
    main()
