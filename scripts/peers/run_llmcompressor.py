"""Run llm-compressor's GPTQ: PYTHON run_llmcompressor.py MODEL OUT WINDOWS.json GROUP_SIZE

Runs in llm-compressor's environment. All linears but the head get symmetric 4 bits. Prints one JSON line with the
seconds of the quantization, without loading and saving, and the peak memory. llm-compressor's AWQ is not run, because
it needs an accelerator to pin memory.
"""

import json
import sys
import time
from pathlib import Path

import torch
from common import peak_bytes
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_path: str, out: str, windows: str, group_size: str) -> None:
    ids = json.loads(Path(windows).read_text())
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    grid = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": int(group_size)}
    modifier = GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": grid}}, ignore=["lm_head"])
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    started = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=[modifier],
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - started
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
