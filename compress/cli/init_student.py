"""qcompress init-student: cut a smaller, untrained model out of a larger one."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report, size_fact
from compress.cli.model_path import MODEL, as_typed
from compress.cli.options import Command, json_option, make_settings, out_option, settings_options, shared_option
from compress.distill.config import DistillConfig, LoopConfig, MemoryConfig, ScheduleConfig, StudentConfig, TextConfig

TRAINING_ONLY = (
    "student",
    "cache",
    "steps",
    "tokens",
    "batch_size",
    "learning_rate",
    "eval_every",
    "lora_rank",
    "lora_alpha",
    "gradient_checkpointing",
    "save_every",
    "log_dir",
)


@click.command("init-student", cls=Command)
@click.argument("teacher", type=MODEL)
@out_option("Directory for the student.")
@settings_options(StudentConfig, TextConfig, ScheduleConfig, MemoryConfig, LoopConfig, skip=TRAINING_ONLY)
@shared_option(
    "--config",
    group="Student",
    type=click.Path(path_type=Path),
    help="Take all sizes of the student from this config.json. Excludes all other options that set a size.",
)
@json_option
def command(teacher: Path, out: Path, config: Path | None, as_json: bool, **options: Any) -> None:
    """Cut a student out of TEACHER, a folder or a hub id, without training it.

    --blocks removes consecutive blocks, never the first or the last. Of all such cuts, it takes the one with the lowest
    KL on the beginning of --text, and prints this KL. A narrower shape keeps the channels and heads with the largest
    activations on --text. The result lists sizes, and as "KL before training" the KL to the teacher on --eval-text.

    \b
    qcompress init-student smollm2 --blocks 20 -o cut
    qcompress init-student smollm2 --intermediate-size 1024 -o cut
    qcompress init-student qwen2.5-7b --config qwen2.5-1.5b/config.json -o cut
    """
    from compress.core.lock import output_lock
    from compress.distill.student.init_student import init_student, take_sizes

    settings = make_settings(DistillConfig, take_sizes(config, options) if config else options)
    with output_lock(out):
        row = init_student(teacher, out, settings, report, loop=make_settings(LoopConfig, options))
    emit(row, as_json=as_json)
    command_line = f"qcompress distill {as_typed(teacher)} --student {out} -o {out}-trained"
    print_written(out, size_fact(row["float16_bytes"]), next_command=command_line, as_json=as_json)
