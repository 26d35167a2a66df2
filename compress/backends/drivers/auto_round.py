# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = ["torch==2.13.0", "auto-round==0.16.1"]
# [tool.qcompress]
# without-dependencies = []
# ///
"""AutoRound: rounding learned by signed gradient descent, block by block. https://github.com/intel/auto-round

auto-round uses its defaults, 200 iterations a block; auto-round-light uses the setting of its command of that name.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMATS = {"gptq": "auto_gptq", "awq": "auto_awq", "compressed-tensors": "llm_compressor"}
SETTINGS: dict[str, dict[str, Any]] = {"auto-round": {"iters": 200}, "auto-round-light": {"iters": 50, "lr": 5e-3}}


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    on_cpu = request["device"] == "cpu"
    report("loading the model")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32 if on_cpu else "auto")
    rows = torch.tensor(windows)
    quantizer = AutoRound(
        model,
        AutoTokenizer.from_pretrained(request["model"]),
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["sym"],
        dataset=[{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows],
        seqlen=len(windows[0]),
        nsamples=len(windows),
        batch_size=min(8, len(windows)),
        seed=request["seed"],
        device_map=request["device"],
        amp=not on_cpu,
        **SETTINGS[request["method"]],
    )
    report(f"quantizing {model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    quantizer.quantize_and_save(request["out"], format=FORMATS[request["format"]])
    seconds = time.perf_counter() - started
    flatten(Path(request["out"]))
    return seconds


def flatten(out: Path) -> None:
    """Move the files out of the one folder below `out` that AutoRound makes."""
    folders = [path for path in out.iterdir() if path.is_dir() and (path / "config.json").is_file()]
    for folder in folders if not (out / "config.json").is_file() else []:
        for file in folder.iterdir():
            shutil.move(str(file), out / file.name)
        folder.rmdir()
