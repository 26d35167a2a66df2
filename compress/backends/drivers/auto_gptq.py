# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#   "torch==2.13.0", "transformers==4.51.3", "accelerate==1.13.0", "datasets==3.6.0", "peft==0.12.0",
#   "rouge==1.0.1", "gekko==1.3.0", "sentencepiece==0.2.1", "auto-gptq==0.7.1",
# ]
# [tool.qcompress]
# without-dependencies = ["auto-gptq"]  # its wheel is built for Python 3.11 and an older torch
# ///
"""AutoGPTQ: GPTQ, archived. https://github.com/AutoGPTQ/AutoGPTQ"""

import time
from collections.abc import Callable
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    on_cpu = request["device"] == "cpu"
    settings = BaseQuantizeConfig(
        bits=request["bits"], group_size=request["group_size"], sym=request["sym"], desc_act=False
    )
    report("loading the model")
    model = AutoGPTQForCausalLM.from_pretrained(
        request["model"], settings, torch_dtype=torch.float32 if on_cpu else torch.float16
    )
    examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
    report(f"quantizing {model.model.config.num_hidden_layers} blocks")
    started = time.perf_counter()
    model.quantize(examples, batch_size=1, use_triton=False, cache_examples_on_gpu=False)
    seconds = time.perf_counter() - started
    report("writing the checkpoint")
    model.save_quantized(request["out"], use_safetensors=True)
    return seconds
