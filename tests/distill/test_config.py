"""Settings are checked where they are made, and every door has the same names."""

from dataclasses import fields

import pytest

from compress import losses
from compress.cli import capture, distill
from compress.cli.options import VERBOSITY_NAMES
from compress.distill.config import DIVERGENCES, STEPS, CaptureConfig, DistillConfig, LoopConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no option given"),
        ({"blocks": 3, "student": "other"}, "student, blocks given"),
        ({"blocks": 3, "num_layers": 3}, "blocks, num_layers given"),
        ({"blocks": 0}, "blocks=0"),
        ({"num_heads": -1}, "num_heads=-1"),
        ({"num_heads": 2, "importance": "names"}, "importance=names"),
        ({"blocks": 3, "steps": 0}, "steps=0"),
        ({"blocks": 3, "tokens": 0}, "tokens=0"),
        ({"blocks": 3, "steps": 5, "tokens": 5}, "steps=5 and tokens=5"),
        ({"blocks": 3, "batch_size": 0}, "batch_size=0"),
        ({"blocks": 3, "eval_every": 0}, "eval_every=0"),
        ({"blocks": 3, "seq_len": 1}, "seq_len=1"),
        ({"blocks": 3, "alpha": 1.5}, "alpha=1.5"),
        ({"blocks": 3, "divergence": "hinge"}, "divergence=hinge"),
        ({"blocks": 3, "beta": 1.0}, "beta=1.0"),
        ({"blocks": 3, "temperature": 0.0}, "temperature=0.0"),
        ({"blocks": 3, "learning_rate": float("nan")}, "learning_rate=nan"),
        ({"blocks": 3, "text": ()}, "0 sources"),
        ({"blocks": 3, "dtype": "float32"}, "dtype=float32"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**settings)


def test_steps_and_tokens_set_the_same_run_length():
    assert DistillConfig(blocks=2, tokens=10_000, batch_size=4, seq_len=100).total_steps == 25
    assert DistillConfig(blocks=2, tokens=10_001, batch_size=4, seq_len=100).total_steps == 26
    assert DistillConfig(blocks=2, steps=7, batch_size=4, seq_len=100).total_tokens == 2800
    assert DistillConfig(blocks=2).total_steps == STEPS


def test_the_options_offer_exactly_the_implemented_divergences():
    assert set(DIVERGENCES) == set(losses.DIVERGENCES)


@pytest.mark.parametrize(
    ("command", "config", "others"),
    [
        (
            distill.command,
            DistillConfig,
            {"teacher", "out", "dry_run", "hardware", "as_json", *VERBOSITY_NAMES}
            | {one.name for one in fields(LoopConfig)},
        ),
        (capture.command, CaptureConfig, {"teacher", "out", "rank", "ranks", "restart", "as_json", *VERBOSITY_NAMES}),
    ],
)
def test_flags_and_fields_have_the_same_names_and_defaults(command, config, others):
    options = {option.name: option for option in command.params}
    names = set(options) - others
    assert names == {field.name for field in fields(config)}
    defaults = {
        name: None if "UNSET" in repr(options[name].default).upper() else options[name].default for name in names
    }
    assert defaults == {field.name: field.default for field in fields(config)}
