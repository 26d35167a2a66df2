# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["torch==2.14.1", "gptqmodel==7.7.0", "optimum==2.3.0"]
# [tool.qcompress]
# build = ["setuptools==80.9.0", "wheel==0.45.1"]
# without-dependencies = []
# ///
"""GPTQModel: GPTQ and AWQ. https://github.com/ModelCloud/GPTQModel

On a machine with few cores, it starts only if GPTQMODEL_CPU_WORKERS is set.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from gptqmodel import GPTQModel, QuantizeConfig

BATCH = 4


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    settings = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["sym"],
        desc_act=False,
        quant_method=request["method"],
        format="gemm" if request["method"] == "awq" else "gptq",
    )
    dtype = torch.float32 if request["device"] == "cpu" else torch.float16
    report("loading the model")
    model = GPTQModel.load(request["model"], settings, device=request["device"], dtype=dtype)
    rows = torch.tensor(windows)
    examples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]
    report(f"quantizing {model.model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    model.quantize(examples, batch_size=BATCH)
    seconds = time.perf_counter() - started
    report("writing the checkpoint")
    model.save(request["out"])
    return seconds
