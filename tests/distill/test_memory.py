"""The memory estimate: what makes it less, and what a machine that has too little is told."""

import pytest

from compress.distill.config import DistillConfig
from compress.distill.job import distill_checkpoint
from compress.distill.memory import memory_parts
from compress.errors import QCompressError

CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "vocab_size": 1000}


def parts(**options):
    return memory_parts(10**7, 10**6, CONFIG, DistillConfig(blocks=1, **options), 1024)


def test_weights_gradients_and_moments_are_exact():
    found = parts()
    names = ("teacher", "student", "gradients", "moments", "best_weights")
    assert [found[name] for name in names] == [4 * 10**7, 4 * 10**6, 4 * 10**6, 8 * 10**6, 2 * 10**6]


@pytest.mark.parametrize(
    ("option", "less"),
    [
        ({"gradient_checkpointing": True}, "activations"),
        ({"cache": "cache"}, "teacher"),
        ({"lora_rank": 4}, "moments"),
    ],
)
def test_what_is_told_to_help_helps(option, less):
    assert parts(**option)[less] < 0.7 * parts()[less] and sum(parts(**option).values()) < sum(parts().values())


def test_a_machine_with_too_little_memory_is_told_how_much_is_needed_and_what_helps(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    with pytest.raises(
        QCompressError, match=r"needs about 0.\d GB.*use --gradient-checkpointing, --cache .*student 0.00"
    ):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, steps=1, seq_len=8))
