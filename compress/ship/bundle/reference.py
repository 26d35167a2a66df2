"""smoke.json: what these weights answer here, and how far a device may differ.

The model runs in float32, with packed weights dequantized. Each prompt is continued greedily, and the TOP most likely
tokens of each step are stored with their log-probabilities. Then the same steps are computed again with the rounding
of the runtime: in the dtype that vLLM computes in, or with activations in blocks of 32 with 8 bits, as llama.cpp rounds
them. The limits are a multiple of the difference between both, because devices also sum in another order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.load import load_model, stop_tokens
from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.model.config_keys import plain_config
from compress.model.shapes import parameter_shapes

TOP, STEPS = 5, 32
DIGITS = 4  # of a log-probability; float32 is exact to about 5
BLOCK, LEVELS = 32, 127  # llama.cpp's Q8_0: weights of a block share a scale
FACTOR = 3  # limits over the differences computed here; vLLM and llama.cpp on a CPU differ by 0.7 to 1.5 times them
FLOORS = {"mean": 0.004, "largest": 0.03, "tie": 0.06}  # nats; two float32 programs differ by less
PROMPTS = (
    "The lighthouse stands at the northern end of the island. Every evening its keeper climbs the stairs and",
    "Question: Which gas do plants take in from the air to grow?\nAnswer:",
    "def mean(values):\n    total = 0\n    for value in values:\n",
    '{"city": "Lisbon", "country": "Portugal"}\n{"city": "Oslo", "country":',
    "Der Zug nach Berlin fährt um neun Uhr ab. Die Fahrt dauert",
    "One, two, three, four, five, six,",
)


def make_reference(checkpoint: Checkpoint, name: str, runtime: str, dtype: str, tokens_per_s: float | None) -> Row:
    """The content of smoke.json for a checkpoint that will be served as `name` in `dtype`."""
    needed = 4 * sum(map(prod, parameter_shapes(plain_config(checkpoint.config)).values()))
    check_memory(checkpoint.path, needed, "a larger machine: the smoke test's reference is computed in float32")
    model, stops = load_model(checkpoint), stop_tokens(checkpoint)
    tokenizer = checkpoint.tokenizer
    prompts = [continue_greedily(model, encode(tokenizer, text), stops) | {"text": text} for text in PROMPTS]
    with rounded(model, runtime, dtype):
        differences = [difference(model, prompt) for prompt in prompts]
    return {
        "schema": 1,
        "model": name,
        "runtime": runtime,
        "dtype": dtype,
        "predicted_tokens_per_s": tokens_per_s,
        "limits": make_limits(differences),
        "prompts": prompts,
    }


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, as the servers encode it."""
    return list(tokenizer(text)["input_ids"])


@torch.no_grad()
def continue_greedily(model: Any, ids: Sequence[int], stops: set[int]) -> Row:
    """The prompt's ids, STEPS greedy tokens, and the TOP log-probabilities at each step.

    A stop token is never followed: the continuation takes the most likely other token, so every prompt has all steps.
    """
    tokens: list[int] = []
    top: list[list[tuple[int, float]]] = []
    inputs, cache = torch.tensor([list(ids)]), None
    for _ in range(STEPS):
        result = model(inputs, past_key_values=cache, use_cache=True)
        cache, scores = result.past_key_values, log_probabilities(result.logits[0, -1])
        top.append([(int(token), round(float(scores[token]), DIGITS)) for token in scores.topk(TOP).indices])
        scores[list(stops)] = -torch.inf
        tokens.append(int(scores.argmax()))
        inputs = torch.tensor([tokens[-1:]])
    return {"ids": list(ids), "tokens": tokens, "top": top}


def log_probabilities(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


@torch.no_grad()
def difference(model: Any, prompt: Row) -> Row:
    """How far the log-probabilities of a prompt are from those in `prompt`, over all its steps."""
    ids, tokens = prompt["ids"], prompt["tokens"]
    logits = model(torch.tensor([ids + tokens[:-1]]), use_cache=False).logits[0, len(ids) - 1 :]
    scores = log_probabilities(logits)
    indices = torch.tensor([[token for token, _ in row] for row in prompt["top"]])
    stored = torch.tensor([[value for _, value in row] for row in prompt["top"]])
    errors = (scores.gather(1, indices) - stored).abs()
    return {"mean": float(errors.mean()), "largest": float(errors[:, 0].max())}


@contextmanager
def rounded(model: Any, runtime: str, dtype: str) -> Iterator[None]:
    """A context in which the model rounds as the runtime does, with sums in float32. It keeps the rounded weights."""
    if runtime == "vllm":
        for parameter in model.parameters():  # and not the buffers: the angles of positions stay in float32
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()
        keep = partial(round_output, getattr(torch, dtype))
        hooks = [module.register_forward_hook(keep) for module in model.modules()]
    else:
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_pre_hook(round_inputs) for module in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def round_output(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """The output of a module as `dtype` stores it. Outputs that are not one tensor stay as they are."""
    return output.to(dtype).float() if isinstance(output, Tensor) and output.is_floating_point() else output


def round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a linear, in blocks of BLOCK values with 8 bits and one float16 scale."""
    first = inputs[0]
    if first.shape[-1] % BLOCK:
        return inputs
    blocks = first.reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / LEVELS).half().float()
    codes = torch.where(scale > 0, blocks / scale, 0).round().clamp(-LEVELS, LEVELS)
    return ((codes * scale).reshape(first.shape), *inputs[1:])


def make_limits(differences: Sequence[Row]) -> dict[str, float]:
    """The limits of the smoke test in nats: FACTOR times the differences here, and at least FLOORS."""
    mean = sum(one["mean"] for one in differences) / len(differences)
    largest = max(one["largest"] for one in differences)
    if not torch.isfinite(torch.tensor([mean, largest])).all():
        raise QCompressError("the model gives no finite log-probabilities in the dtype of the device")
    measured = {"mean": mean, "largest": largest, "tie": 2 * largest}  # a tie is between two log-probabilities
    return {name: round(max(floor, FACTOR * measured[name]), DIGITS) for name, floor in FLOORS.items()}
