"""Continue prompts with a transformers model, greedily or by random sampling with one seed per prompt.

The argmax of log p - log(exponential noise) is a random sample from p (https://arxiv.org/abs/1611.01144). So sampling
is greedy decoding of noisy scores. Each prompt has its own random generator.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.core.sampling import Answer, Ids, Sampling


@torch.inference_mode()
def continue_prompts(
    model: Any, prompts: Sequence[Ids], sampling: Sampling, stops: set[int], seeds: Sequence[int] = ()
) -> list[Answer]:
    """The continuation of each prompt up to its first stop token. Prompts are padded on the left and masked.

    `seeds` holds one number per prompt; greedy decoding needs none.
    """
    length, pad = max(map(len, prompts)), min(stops, default=0)
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    outputs = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        logits_processor=[add_noise(seeds, sampling, ids.device)] if sampling.temperature else None,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad,
    )
    return [before_stop(row, stops) for row in outputs[:, length:].tolist()]


@torch.inference_mode()
def stream_tokens(model: Any, prompt: Ids, sampling: Sampling, stops: set[int], seed: int = 0) -> Iterator[int]:
    """The tokens that `continue_prompts` returns for one prompt, each as soon as it is generated."""
    ids, cache = torch.tensor([prompt], device=model.device), None
    choose = add_noise([seed], sampling, ids.device) if sampling.temperature else None
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for _ in range(sampling.max_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, **last_only)
        scores = output.logits[:, -1]
        token = int((choose(ids, scores) if choose else scores).argmax())
        if token in stops:
            return
        yield token
        ids, cache = torch.tensor([[token]], device=model.device), output.past_key_values


def before_stop(ids: Ids, stops: set[int]) -> Answer:
    """The ids before the first stop token. `ended` is True if there is a stop token."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Answer(ids[:end], end is not None)


def add_noise(seeds: Sequence[int], sampling: Sampling, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that adds noise, so that the argmax is a random sample. Row i has the noise of seeds[i]."""
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = nucleus(scores.float() / sampling.temperature, sampling.top_p)
        noise = torch.stack(
            [logits.new_empty(logits.shape[-1]).exponential_(generator=generator) for generator in generators]
        )
        return logits - noise.log()

    return processor


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The logits (rows, vocab), with -inf outside the smallest set of tokens whose probability reaches `top_p`."""
    if top_p == 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.masked_fill((before >= top_p).scatter(-1, order, before >= top_p), -torch.inf)
