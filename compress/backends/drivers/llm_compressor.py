# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "llmcompressor==0.14.0.1"]
# [tool.qcompress]
# without-dependencies = []
# ///
"""LLM Compressor: GPTQ and AWQ. https://github.com/vllm-project/llm-compressor

All linears but the head are quantized.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM


def modifier(request: dict[str, Any]) -> Any:
    """The recipe of the method, with groups of symmetric or asymmetric codes."""
    grid = {"num_bits": request["bits"], "type": "int", "symmetric": request["sym"], "strategy": "group"}
    weights = grid | {"group_size": request["group_size"]}
    settings: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if request["method"] == "awq":
        from llmcompressor.modifiers.awq import AWQModifier

        return AWQModifier(**settings)
    from llmcompressor.modifiers.quantization import GPTQModifier

    return GPTQModifier(**settings)


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    dtype = torch.float32 if request["device"] == "cpu" else "auto"
    report("loading the model")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype)
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]})
    report(f"quantizing {model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=[modifier(request)],
        max_seq_length=len(windows[0]),
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - started
    report("writing the checkpoint")
    model.to(getattr(torch, request["dtype"]))  # else scales would be stored in float32
    model.save_pretrained(request["out"], save_compressed=True)
    return seconds
