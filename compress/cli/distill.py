"""qcompress distill: train a smaller model to match a larger one."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report, size_fact
from compress.cli.model_path import MODEL
from compress.cli.options import (
    Command,
    check_hardware,
    dry_run_option,
    hardware_option,
    json_option,
    make_settings,
    out_option,
    restart_option,
    settings_options,
    shared_option,
)
from compress.distill.config import (
    DistillConfig,
    LoopConfig,
    LossConfig,
    MemoryConfig,
    ScheduleConfig,
    StudentConfig,
    TextConfig,
)


@click.command("distill", cls=Command)
@click.argument("teacher", type=MODEL)
@out_option("Directory for the student.")
@settings_options(StudentConfig, TextConfig, LossConfig, ScheduleConfig)
@shared_option(
    "--stage",
    "stages",
    group="Stages",
    multiple=True,
    default=(),
    metavar="YAML",
    help="Add a training stage, such as '{name: task, text: [task.jsonl], steps: 100}'. Repeatable. Stages run in the "
    "order of the options.",
)
@settings_options(MemoryConfig, LoopConfig)
@restart_option
@dry_run_option
@hardware_option
@json_option
def command(
    teacher: Path, out: Path, restart: bool, dry_run: bool, hardware: str | None, as_json: bool, **options: Any
) -> None:
    """Distill TEACHER, a folder or a hub id, into a smaller student.

    The student is an existing checkpoint (--student), the teacher with fewer blocks (--blocks), or a narrower shape.
    Training minimizes alpha T² KL(teacher ‖ student) + (1 - alpha) CE. The weights with the lowest KL on --eval-text
    are written. Run the same command again to continue an interrupted run. torchrun and accelerate launch divide each
    step's windows between processes.

    Keys of --stage: name, text, eval_text, replay, on_policy, and the options under Loss and Schedule with underscores.
    replay is the share of text that repeats earlier stages. With on_policy, the student writes the text itself.

    \b
    qcompress distill smollm2 --blocks 20 -o student
    qcompress distill smollm2 --blocks 20 --text notes.txt --text default=0.3 --tokens 200000 -o student
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --text chats.jsonl --tokens 50000000 -o student
    qcompress distill smollm2 --blocks 20 -o student \\
        --stage "name: general, text: [wiki.txt, chats.jsonl=0.5], tokens: 500000" \\
        --stage "name: task, text: [task.jsonl], replay: 0.25, tokens: 100000, learning_rate: 1e-4"
    """
    if options["stages"]:
        from compress.recipe import parse_stage

        options["stages"] = tuple(parse_stage(text) for text in options["stages"])
    if options["student"]:
        options["student"] = str(MODEL.convert(options["student"], None, None))
    settings = make_settings(DistillConfig, options)
    check_hardware(hardware, dry_run)
    if dry_run:
        from compress.checkpoint.write import check_out
        from compress.core.cards import find_card
        from compress.distill.student.plan import check_inputs, plan_distill, plan_gpu, plan_row

        check_out(out)
        plan = plan_distill(teacher, settings)
        gpu = plan_gpu(plan, settings, find_card(hardware)) if hardware else {}
        emit(plan_row(plan, settings) | check_inputs(settings, teacher) | gpu, as_json=as_json)
        return
    from compress.distill.job import distill_checkpoint

    loop = make_settings(LoopConfig, options | {"restart": restart})
    row = distill_checkpoint(teacher, out, settings, report, loop=loop)
    if row:
        emit(row, as_json=as_json)
        size = size_fact(row["float16_bytes"])
        print_written(out, size, next_command=f"qcompress quantize {out} -o {out}-awq", as_json=as_json)
