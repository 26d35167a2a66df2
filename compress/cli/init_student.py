"""qcompress init-student: a smaller model cut out of a bigger one, before any training."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.shape import shape_options
from compress.distill.config import DTYPES, DistillConfig


@click.command("init-student")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for the student.")
@shape_options
@click.option("--config", type=click.Path(path_type=Path), help="Instead: a config.json whose sizes are taken.")
@click.option("--data", multiple=True, default=("default",), show_default=True, help="Judges blocks and channels.")
@click.option("--heldout", default="heldout", show_default=True, help="Text for the KL that is reported.")
@click.option("--seq-len", type=click.IntRange(2), default=256, show_default=True, help="Tokens per window.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Of the result.")
@json_option
def command(teacher: Path, out: Path, config: Path | None, as_json: bool, **options: Any) -> None:
    """Cut a student out of TEACHER (a directory): an ordinary checkpoint of its family, not trained yet.

    --blocks keeps the first and the last; of the runs between them the one goes whose absence changes the model's
    predictions on --data least. A narrower shape keeps the channels and heads with the largest activations on
    --data (--importance weights: with the largest weights); query heads stay with the KV head they use. Reports
    parameters, bytes in FP16 and in 4 bits, and the KL to the teacher on --heldout.

    \b
    qcompress init-student smollm2 --blocks 20 --out cut
    qcompress init-student smollm2 --intermediate-size 1024 --out cut
    qcompress init-student qwen2.5-7b --config qwen2.5-1.5b/config.json --out cut
    qcompress distill smollm2 --student cut --out student
    """
    from compress.distill.student.init_student import init_student, take_sizes

    settings = DistillConfig(**(take_sizes(config, options) if config else options))
    emit(init_student(teacher, out, settings, report), as_json=as_json)
