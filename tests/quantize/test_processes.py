import os
import subprocess
import sys

import torch

from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.read import Checkpoint
from compress.config import QuantizeConfig
from compress.quantize.job import plan_quantize, quantize_checkpoint

OPTIONS = ("--method", "gptq", "--n-samples", "128", "--seq-len", "32")


def test_two_processes_choose_the_codes_of_one(tiny_llama, tmp_path):
    config = QuantizeConfig("gptq", "gptq", n_samples=128, seq_len=32)
    quantize_checkpoint(tiny_llama, tmp_path / "one", config)
    arguments = ["quantize", str(tiny_llama), *OPTIONS, "--out", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "compress.cli", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "two")
    for name in plan_quantize(tiny_llama, config)[1].linears:
        codes = [quantized_weight(checkpoint, name).codes for checkpoint in (one, two)]
        assert (codes[0] != codes[1]).float().mean() < 2e-2, name  # sums in another order flip ties
    assert not torch.equal(codes[0], torch.zeros_like(codes[0]))
