"""qcompress distill: a smaller model that has learned from a bigger one."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.shape import shape_options
from compress.distill.config import DIVERGENCES, DTYPES, PACKINGS, STEPS, DistillConfig, LoopConfig


@click.command("distill")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for the student.")
@click.option("--student", type=click.Path(), help="An existing checkpoint with the teacher's tokenizer.")
@shape_options
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="Weight of the KL.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True)
@click.option("--divergence", type=click.Choice(DIVERGENCES), default="kl", show_default=True, help="Beside the CE.")
@click.option("--beta", type=click.FloatRange(0, 1, True, True), default=0.5, show_default=True, help="Of jsd.")
@click.option("--data", multiple=True, default=("default",), show_default=True, help="NAME or FILE, with =WEIGHT.")
@click.option("--heldout", default="heldout", show_default=True, help="NAME or FILE that is never trained on.")
@click.option("--cache", type=click.Path(), help="What `qcompress capture` wrote; it then answers for the teacher.")
@click.option("--steps", type=click.IntRange(1), help=f"Optimizer steps.  [default: {STEPS}]")
@click.option("--tokens", type=click.IntRange(1), help="Instead of --steps: tokens to read.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Windows per step.")
@click.option("--seq-len", type=click.IntRange(2), default=256, show_default=True, help="Tokens per window.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=3e-4, show_default=True)
@click.option("--eval-every", type=click.IntRange(1), default=50, show_default=True, help="Steps between evaluations.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--align-weight", type=click.FloatRange(0), default=0.0, show_default=True, help="Of hidden states.")
@click.option("--lora-rank", type=click.IntRange(0), default=0, show_default=True, help="Train adapters only; merged.")
@click.option("--lora-alpha", type=click.FloatRange(0, min_open=True), help="Their scale.  [default: 2 * rank]")
@click.option(
    "--stage", "stages", multiple=True, default=(), metavar="YAML", help="One after another; keys: see above."
)
@click.option("--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Of the result.")
@click.option(
    "--packing",
    type=click.Choice(PACKINGS),
    default="documents",
    show_default=True,
    help="What a document sees in its window: itself, or all before it.",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    default=False,
    help="Less memory for a third more time; the same gradients.",
)
@click.option("--save-every", type=click.IntRange(0), default=100, show_default=True, help="Steps between states.")
@click.option("--restart", is_flag=True, help="Begin anew what an interrupted run has begun.")
@click.option("--log-dir", type=click.Path(), help="For TensorBoard's event files.")
@click.option("--dry-run", is_flag=True, help="Print the plan, from config.json and the texts' beginnings, and stop.")
@json_option
def command(
    teacher: Path,
    out: Path,
    save_every: int,
    restart: bool,
    log_dir: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Distill TEACHER (a directory) into a smaller student, an ordinary checkpoint of the same family.

    The student is an existing checkpoint (--student), or so many of the teacher's blocks (--blocks: the first and the
    last stay, and of the runs between them the one that is missed least goes), or a narrower shape cut out of the
    teacher. It learns by  alpha T² KL(teacher ‖ student) + (1 - alpha) CE,  or another --divergence. With --cache
    the teacher is asked only about the held-out text. The weights with the least KL on that text are written, with how
    far the student was from its teacher before and after.

    A --stage says what it does otherwise than the other options, begins with the best weights of the one before, and
    may replay a share of the earlier texts. With on_policy the student writes, and the teacher judges what it wrote.
    --align-weight also brings each block's output near that of the teacher's block at the same depth; what maps one
    onto the other lies in OUT.align.safetensors. Keys of a stage: name, data, heldout, replay, on_policy (then, unless
    said: reverse_kl, alpha 1, temperature 1), steps or tokens, batch_size, seq_len, learning_rate, eval_every, alpha,
    temperature, divergence, beta, align_weight.

    The same command goes on where a run was killed, to the same curve and weights: its state lies in .OUT.distill until
    the student is written, every step's numbers in OUT.distill.jsonl. With torchrun or accelerate launch every process
    takes its share of each step's windows.

    \b
    qcompress distill smollm2 --blocks 20 --out student
    qcompress distill smollm2 --blocks 20 --data notes.txt --data default=0.3 --tokens 200000 --out student
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --data chats.jsonl --tokens 50000000 --out student
    qcompress distill smollm2 --blocks 20 --out student \\
        --stage "name: general, data: [wiki.txt, chats.jsonl=0.5], tokens: 500000" \\
        --stage "name: task, data: [task.jsonl], replay: 0.25, tokens: 100000, learning_rate: 1e-4"
    qcompress distill qwen2.5-7b --hidden-size 2560 --intermediate-size 6912 --num-layers 20 --num-heads 16 \\
        --num-kv-heads 4 --dry-run --out student
    """
    if options["stages"]:
        from compress.recipe import parse_stage

        options["stages"] = tuple(parse_stage(text) for text in options["stages"])
    settings = DistillConfig(**options)
    from compress.distill.job import distill_checkpoint
    from compress.distill.student.plan import check_inputs, plan_distill, plan_row

    if dry_run:
        row = plan_row(plan_distill(teacher, settings), settings)
        emit(row | check_inputs(settings), as_json=as_json)
        return
    loop = LoopConfig(save_every=save_every, restart=restart, log_dir=log_dir)
    row = distill_checkpoint(teacher, out, settings, report, loop=loop)
    if row:
        emit(row, as_json=as_json)
