"""Run GPTQModel's GPTQ: GPTQMODEL_CPU_WORKERS=2 PYTHON run_gptqmodel.py MODEL OUT WINDOWS.json GROUP_SIZE

Runs in GPTQModel's environment. On a machine with 2 cores, GPTQModel needs GPTQMODEL_CPU_WORKERS. All linears but the
head get symmetric 4 bits. Prints one JSON line with the seconds of the quantization, without loading and saving, and
the peak memory.
"""

import json
import sys
import time
from pathlib import Path

import torch
from common import peak_bytes
from gptqmodel import GPTQModel, QuantizeConfig
from transformers import AutoTokenizer

BATCH = 4


def main(model_path: str, out: str, windows: str, group_size: str) -> None:
    ids = torch.tensor(json.loads(Path(windows).read_text()))
    settings = QuantizeConfig(bits=4, group_size=int(group_size), sym=True, desc_act=False)
    model = GPTQModel.load(model_path, settings, device="cpu", dtype=torch.float32)
    examples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids]
    started = time.perf_counter()
    model.quantize(examples, batch_size=BATCH)
    seconds = time.perf_counter() - started
    model.save(out)
    AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
