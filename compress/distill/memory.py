"""How many bytes of memory a training takes, part by part, before it starts: of each process, on a CPU."""

from typing import Any

from compress.distill.config import DistillConfig
from compress.losses import CHUNK_LOGITS

Json = dict[str, Any]
FLOAT = 4
BUFFERS = 4  # of logits, in the loss
BLOCK_VECTORS = 16  # of hidden_size per token and block that autograd keeps, and 5 of intermediate_size


def memory_parts(
    teacher: int, student: int, config: Json, settings: DistillConfig, micro_tokens: int
) -> dict[str, int]:
    """Bytes by what they are for. `teacher` and `student` are parameters, `config` the student's.

    A teacher with a cache is there before training and only its head in it; the larger of both times counts.
    """
    width, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    learning = adapter_parameters(config, settings.lora_rank) if settings.lora_rank else student
    sizes = [(one.batch_size, one.seq_len) for one in settings.resolved()]
    tokens = max(length * min(count, max(1, micro_tokens // length)) for count, length in sizes)
    parts = {
        "student": FLOAT * (student + (learning if settings.lora_rank else 0)),
        "gradients": FLOAT * learning,
        "moments": 2 * FLOAT * learning,
        "best_weights": 2 * student,
        "activations": FLOAT * activations(config, settings, tokens),
        "loss": FLOAT * (2 * vocab * width + BUFFERS * CHUNK_LOGITS),
    }
    if not settings.cache:
        return {"teacher": FLOAT * teacher} | parts
    rest = sum(parts.values()) - parts["student"]
    return {"teacher": max(FLOAT * vocab * width, FLOAT * teacher - rest)} | parts


def activations(config: Json, settings: DistillConfig, tokens: int) -> int:
    """Numbers that autograd keeps for `tokens` tokens: of every block all, or its input and those of one block."""
    width, blocks = int(config["hidden_size"]), int(config["num_hidden_layers"])
    block = BLOCK_VECTORS * width + 5 * int(config["intermediate_size"])
    return tokens * (blocks * width + block if settings.gradient_checkpointing else blocks * block)


def adapter_parameters(config: Json, rank: int) -> int:
    """Parameters of the adapters, about: four linears of the width, three between it and the channels."""
    width, channels = int(config["hidden_size"]), int(config["intermediate_size"])
    return int(config["num_hidden_layers"]) * rank * (8 * width + 3 * (width + channels))


def cures(settings: DistillConfig) -> str:
    """What would need less, for whoever has not enough."""
    found = [] if settings.gradient_checkpointing else ["--gradient-checkpointing"]
    found += [] if settings.cache else ["--cache (the teacher's head alone stays)"]
    found += [] if settings.lora_rank else ["--lora-rank"]
    return ", ".join([*found, "a smaller student, or a larger machine"])


def told(parts: dict[str, int]) -> str:
    """The parts in GB, as one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.2f}" for name, value in parts.items()) + " GB"
