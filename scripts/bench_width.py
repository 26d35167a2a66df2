"""Measure the KL of narrower students before training: python scripts/bench_width.py MODEL

The channels to keep are chosen once by weights, and once by activations.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from calibration.windows import build_windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.model.blocks import Weights, load_all
from compress.model.importance import measure_importance
from compress.model.student import cut, student_shape

SHAPES: tuple[dict[str, int], ...] = (
    {"intermediate_size": 1024},
    {"num_heads": 6, "num_kv_heads": 2},
    {"hidden_size": 512, "num_heads": 4, "num_kv_heads": 2},
)
SEQ_LEN, WINDOWS, HELDOUT = 128, 8, 3


@torch.no_grad()
def answers(config: dict[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """The log-probabilities of every next token, (windows · (seq_len - 1), vocab)."""
    model = load_all(config, weights, torch.float32)
    return torch.cat([model(row[None], use_cache=False).logits[0, :-1].log_softmax(-1) for row in ids])


def main(path: Path) -> None:
    source, tokenizer = open_causal_lm(path), Checkpoint(path).tokenizer
    config, weights = source.config, weight_reader(source)
    calibration = build_windows(["default"], tokenizer, n_samples=WINDOWS, seq_len=SEQ_LEN, seed=0).ids
    heldout = build_windows(["heldout"], tokenizer, n_samples=HELDOUT, seq_len=SEQ_LEN, seed=0).ids
    teacher = answers(config, weights, heldout)
    importances = {"weights": None, "activations": measure_importance(config, weights, calibration)}
    for sizes in SHAPES:
        shape = student_shape(config, **sizes)
        for name, importance in importances.items():
            student = answers(*cut(config, weights, shape, range(shape.num_layers), importance), heldout)
            kl = kl_div(student, teacher, reduction="batchmean", log_target=True).item()
            sys.stdout.write(json.dumps({**sizes, "importance": name, "kl": round(kl, 4)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
