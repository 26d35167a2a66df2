"""An estimate of the memory that training needs per process: on a CPU in float32, on a GPU in mixed precision."""

from typing import Any

from compress.core.cards import Card
from compress.core.report import Row
from compress.distill.config import DistillConfig
from compress.losses.buffers import CHUNK_LOGITS, GPU_CHUNK_LOGITS, LOSS_BUFFERS
from compress.model.malloc import saved_numbers

Json = dict[str, Any]
HALF, FLOAT = 2, 4
LIBRARIES = 600_000_000  # measured: Python, torch and transformers after import


def memory_parts(
    teacher: int, student: int, config: Json, settings: DistillConfig, micro_tokens: int
) -> dict[str, int]:
    """The bytes that training needs for each purpose, such as "gradients".

    `teacher` and `student` are numbers of parameters. `config` is the student's config.json. With a cache, the whole
    teacher is in memory before training, but only its head during training. The larger of the two peaks is returned.
    """
    width, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    learning = adapter_parameters(config, settings.lora_rank) if settings.lora_rank else student
    parts = {
        "student": FLOAT * (student + (learning if settings.lora_rank else 0)),
        "gradients": FLOAT * learning,
        "moments": 2 * FLOAT * learning,
        "best_weights": 2 * student,
        "activations": FLOAT * max(activations(config, one, micro_tokens) for one in settings.resolved()),
        "loss": FLOAT * (2 * vocab * width + LOSS_BUFFERS * CHUNK_LOGITS),
    }
    parts["libraries"] = LIBRARIES
    if not settings.cache:
        return {"teacher": FLOAT * teacher} | parts
    rest = sum(parts.values()) - parts["student"] - LIBRARIES
    return {"teacher": max(FLOAT * vocab * width, FLOAT * teacher - rest)} | parts


def gpu_parts(
    teacher: int, student: int, config: Json, settings: DistillConfig, micro_tokens: int, head: int
) -> dict[str, int]:
    """The bytes on a GPU by part. Weights, gradients and moments are float32, the teacher and activations 16-bit.

    `head` is the number of parameters of the teacher's output head, all that a run with a cache keeps during training.
    Before training it holds the whole teacher, when gradients, moments and activations do not exist yet.
    """
    learning = adapter_parameters(config, settings.lora_rank) if settings.lora_rank else student
    table = int(config["vocab_size"]) * int(config["hidden_size"])
    parts = {
        "student": FLOAT * student + HALF * student,  # autocast keeps a 16-bit copy during a step
        "gradients": FLOAT * learning,
        "moments": 2 * FLOAT * learning,
        "activations": HALF * max(activations(config, one, micro_tokens) for one in settings.resolved()),
        "loss": FLOAT * (table + LOSS_BUFFERS * min(GPU_CHUNK_LOGITS, micro_tokens * int(config["vocab_size"]))),
    }
    later = sum(parts.values()) - parts["student"]
    return {"teacher": max(HALF * head, HALF * teacher - later) if settings.cache else HALF * teacher} | parts


def gpu_row(parts: dict[str, int], flops_per_token: float, settings: DistillConfig, card: Card) -> Row:
    """The report row of a training on a card: memory by part, whether it fits, what to change, and least seconds."""
    needed = sum(parts.values())
    return {
        "hardware": card.title,
        "gpu_memory_bytes": needed,
        "gpu_memory": format_parts(parts),
        "fits": needed <= card.memory,
        "cure": None if needed <= card.memory else f"use {gpu_cures(settings)}",
        "seconds_at_least": round(card.seconds(flops_per_token * settings.total_tokens, 0.0, 0.0), 1),
    }


def gpu_cures(settings: DistillConfig) -> str:
    """The options that lower a GPU's memory, and several GPUs, as text for a message."""
    return cures(settings).replace("or a larger machine", "or several GPUs with FSDP2")


def activations(config: Json, settings: DistillConfig, micro_tokens: int) -> int:
    """The number of values in memory during the backward pass of one micro-batch.

    These are the values that autograd stores, and the values that one block's backward pass allocates. With
    `gradient_checkpointing`, autograd stores the inputs of all blocks, and the activations of one block.
    """
    width, blocks, length = int(config["hidden_size"]), int(config["num_hidden_layers"]), settings.seq_len
    tokens = length * min(settings.batch_size, max(1, micro_tokens // length))
    kept = saved_numbers(config) + (length if settings.packing == "documents" else 0)  # one mask row
    return tokens * (kept + (blocks * width + kept if settings.gradient_checkpointing else blocks * kept))


def adapter_parameters(config: Json, rank: int) -> int:
    """The approximate number of adapter parameters. Assumes four attention linears and three MLP linears per block."""
    width, channels = int(config["hidden_size"]), int(config["intermediate_size"])
    return int(config["num_hidden_layers"]) * rank * (8 * width + 3 * (width + channels))


def cures(settings: DistillConfig) -> str:
    """A list of options that reduce memory, as text for a message."""
    options = [] if settings.gradient_checkpointing else ["--gradient-checkpointing"]
    options += [] if settings.cache else ["--cache (keeps only the teacher's head)"]
    options += [] if settings.lora_rank else ["--lora-rank"]
    return ", ".join([*options, "a smaller student, or a larger machine"])


def format_parts(parts: dict[str, int]) -> str:
    """The memory for each purpose in GB, as text for a message."""
    return ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.2f}" for name, value in parts.items()) + " GB"
