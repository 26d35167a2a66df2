"""GPTQQuantizer of Optimum, over GPTQModel, in GPTQModel's environment. https://github.com/huggingface/optimum"""

import time
from collections.abc import Callable
from typing import Any

import torch
from optimum.gptq import GPTQQuantizer
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    dtype = torch.float32 if request["device"] == "cpu" else torch.float16
    report("loading the model")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype, device_map=request["device"])
    rows = torch.tensor(windows)
    quantizer = GPTQQuantizer(
        bits=request["bits"],
        group_size=request["group_size"],
        sym=request["sym"],
        desc_act=False,
        dataset=[{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows],
        model_seqlen=len(windows[0]),
    )
    report(f"quantizing {model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    model = quantizer.quantize_model(model, AutoTokenizer.from_pretrained(request["model"]))
    seconds = time.perf_counter() - started
    report("writing the checkpoint")
    quantizer.save(model, request["out"])
    return seconds
