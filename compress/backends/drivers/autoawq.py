# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#   "torch==2.13.0", "transformers==4.51.3", "accelerate==1.13.0", "datasets==3.6.0", "zstandard==0.25.0",
#   "autoawq==0.2.9",
# ]
# [tool.qcompress]
# build = ["setuptools==80.9.0", "wheel==0.45.1"]
# without-dependencies = ["autoawq"]  # it pins triton, which a CPU does not need, and builds only beside torch
# ///
"""AutoAWQ: activation-aware scaling, clipping, and plain rounding. https://github.com/casper-hansen/AutoAWQ

It joins the calibration sequences and cuts them again into pieces of `max_calib_seq_len` tokens. With windows of that
length, the pieces are the windows.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    device = request["device"]
    dtype = torch.float32 if device == "cpu" else torch.float16
    report("loading the model")
    model = AutoAWQForCausalLM.from_pretrained(
        request["model"], device_map=device, torch_dtype=dtype, use_cache=False, safetensors=True
    )
    grid = {"zero_point": True, "q_group_size": request["group_size"], "w_bit": request["bits"], "version": "GEMM"}
    report(f"quantizing {model.model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    model.quantize(
        AutoTokenizer.from_pretrained(request["model"]),
        quant_config=grid,
        calib_data=windows,
        max_calib_samples=len(windows),
        max_calib_seq_len=len(windows[0]),
        apply_clip=True,
    )
    seconds = time.perf_counter() - started
    report("writing the checkpoint")
    model.save_quantized(request["out"], safetensors=True)
    return seconds
