"""Random models and windows of 40 tokens, and one training step on them."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from calibration.windows import Windows
from compress.distill.config import TrainConfig
from compress.distill.model import Model
from compress.distill.text.packing import Batch
from compress.distill.training.loop import Objective, accumulate, make_accelerator

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_llama(seed: int, **changes: Any) -> Model:
    """A random Llama with SIZES and these changes. Equal seeds give equal weights."""
    torch.manual_seed(seed)
    return Model(LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval(), CPU)


def random_windows(count: int, seed: int, seq_len: int = 12) -> Windows:
    """Windows of random tokens. About a third of the tokens is masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (count, seq_len), generator=generator)
    return Windows(ids, torch.rand(count, seq_len, generator=generator) > 0.3, {})


def step_gradients(
    student: Model, teacher: Model, batch: Batch, **settings: Any
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """The losses of one step on `batch`, and the gradient of every parameter."""
    objective = Objective(student, TrainConfig(**settings), 40).requires_grad_(True)
    objective.zero_grad()
    row = accumulate(make_accelerator(), objective, teacher, batch)
    return row, [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]
