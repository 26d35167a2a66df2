"""One answer of a transformers model as text, piece by piece."""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.chat import encode_text, has_template, render_prompt
from compress.checkpoint.load import stop_tokens
from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.sampling import Ids, Sampling
from compress.model.sample import stream_tokens
from compress.runtimes.transformers_runtime import load_on_device

BROKEN = "�"  # what a part of a character decodes to
FALLBACK_FIELDS = frozenset(
    {"model", "messages", "stream", "stream_options", "response_format", "max_tokens", "temperature", "top_p"}
    | {"seed", "stop"}
)
NEUTRAL: Mapping[str, tuple[float, ...]] = {  # values that change nothing, of the fields without effect
    "n": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
}
JSON_RULE = "Answer only with JSON, without any other text."


@dataclass
class Answered:
    """The numbers of tokens of an answer and the reason why it ended. Complete after the answer's last piece."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"


class FallbackModel:
    """A checkpoint in transformers. `context` is the number of tokens of a prompt with its answer."""

    def __init__(self, checkpoint: Checkpoint, context: int, device: str = "auto") -> None:
        self.tokenizer, self.context = checkpoint.tokenizer, context
        self.stops = stop_tokens(checkpoint)
        dtype = "auto" if pick_device(device) == "cuda" else "float32"  # CPUs are slow in 16 bits
        self.model = load_on_device(checkpoint, device, dtype)

    def prompt(self, payload: dict[str, Any]) -> Ids:
        """The token ids of the conversation.

        Raises ValueError if it leaves no room for an answer, or for a field that has no effect here.
        """
        check_fields(payload)
        messages = with_json_rule(payload["messages"], payload.get("response_format") or {})
        if has_template(self.tokenizer):
            text = render_prompt(self.tokenizer, messages, "the conversation")
        else:
            text = "\n\n".join(message["content"] for message in messages)
        ids = encode_text(self.tokenizer, text)
        if len(ids) >= self.context:
            raise ValueError(f"the conversation has {len(ids):,} tokens, but the model takes {self.context:,}")
        return ids

    def pieces(self, prompt: Ids, payload: dict[str, Any], answered: Answered) -> Iterator[str]:
        """The text of the answer, as it grows. `answered` is complete after the last piece."""
        room = self.context - len(prompt)
        most = min(payload.get("max_tokens") or room, room)
        temperature, top_p = payload.get("temperature", 1.0), payload.get("top_p", 1.0)
        seed = payload.get("seed")
        sampling = Sampling(most, temperature, top_p, secrets.randbits(32) if seed is None else seed)
        answered.prompt_tokens = len(prompt)
        tokens = stream_tokens(self.model, prompt, sampling, self.stops, sampling.seed_of(prompt, 0))
        yield from before_stop_text(self.decoded(tokens, answered), payload.get("stop") or [])
        if answered.completion_tokens == most:
            answered.finish_reason = "length"

    def decoded(self, tokens: Iterator[int], answered: Answered) -> Iterator[str]:
        """The text that each token adds. An incomplete character waits for its other bytes."""
        ids: Ids = []
        shown = text = ""
        for token in tokens:
            ids.append(token)
            answered.completion_tokens += 1
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            if not text.endswith(BROKEN) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        if text != shown:
            yield text[len(shown) :]


def check_fields(payload: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that transformers would ignore, unless its value changes nothing."""
    for name, value in payload.items():
        if name not in FALLBACK_FIELDS and value not in NEUTRAL.get(name, ()):
            raise ValueError(f"{name}: has no effect with transformers; leave it out")


def before_stop_text(pieces: Iterator[str], stops: list[str]) -> Iterator[str]:
    """The pieces up to the first text of `stops`. Text that may begin a stop text is held back until it is decided."""
    hold = max(map(len, stops), default=1) - 1
    text, sent = "", 0
    for piece in pieces:
        text += piece
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        end = min(places) if places else max(sent, len(text) - hold)
        if end > sent:
            yield text[sent:end]
            sent = end
        if places:
            return
    if text[sent:]:
        yield text[sent:]


def with_json_rule(messages: list[dict[str, str]], response_format: dict[str, Any]) -> list[dict[str, str]]:
    """The messages, with a system message that describes the JSON answer. transformers cannot enforce a schema."""
    if response_format.get("type") not in ("json_object", "json_schema"):
        return messages
    schema = response_format.get("json_schema", {}).get("schema")
    rule = f"{JSON_RULE} It must be valid by this JSON schema: {json.dumps(schema)}" if schema else JSON_RULE
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{rule}"}, *messages[1:]]
    return [{"role": "system", "content": rule}, *messages]
