"""Decisions of a build, on stages whose outputs are small files."""

import pytest

from compress.pipeline.digests import Digests
from compress.pipeline.stage import Action, BuildState, RecipeStage, decide, describe_changes


@pytest.fixture
def stage(tmp_path):
    """A stage that reads one result file and one text, and has an output on disk."""
    for name in ("before.json", "text.txt", "out.json"):
        (tmp_path / name).write_text(name)
    return RecipeStage(
        "out.json",
        "compare",
        tmp_path / "out.json",
        {"samples": 2},
        make=lambda restart: None,
        texts=(str(tmp_path / "text.txt"),),
        results=(tmp_path / "before.json",),
    )


def finished(stage):
    """The state after a run of the stage."""
    digests = Digests()
    entry = {"inputs": stage.inputs(digests), "output": digests.output(stage.out)}
    return BuildState(finished={stage.name: entry})


def action(stage, state, remade=()):
    return decide(stage, state, Digests(), remade)


def test_a_finished_stage_with_equal_inputs_is_skipped(stage):
    assert action(stage, finished(stage)).action is Action.SKIP


def test_a_stage_without_output_is_made(stage):
    state = finished(stage)
    stage.out.unlink()
    assert action(stage, state) == (Action.MAKE, "no output yet")


@pytest.mark.parametrize("name", ["before.json", "text.txt"])
def test_a_changed_input_makes_the_stage_again(stage, name):
    state = finished(stage)
    (stage.out.parent / name).write_text("other")
    assert action(stage, state).action is Action.MAKE and name in action(stage, state).reason


def test_an_input_that_is_made_again_makes_the_stage_again(stage):
    assert action(stage, finished(stage), {stage.results[0]}) == (Action.MAKE, "before.json is made again")


def test_a_changed_output_is_refused_even_after_changed_inputs(stage):
    state = finished(stage)
    stage.out.write_text("edited by hand")
    stage.results[0].write_text("other")
    assert action(stage, state).action is Action.REFUSE


def test_an_output_that_no_run_has_started_is_refused(stage):
    assert action(stage, BuildState()).action is Action.REFUSE
    started = BuildState(started={stage.name: stage.inputs(Digests())})
    assert action(stage, started).action is Action.SKIP
    assert action(stage, started, {stage.results[0]}).action is Action.REFUSE


def test_changes_name_settings_with_old_and_new_value(stage):
    old = stage.inputs(Digests())
    new = old | {"settings": {"samples": 3}, "version": "9"}
    assert describe_changes(old, new) == f"samples (2 → 3), qcompress ({old['version']} → 9)"
    assert describe_changes(old, old) == ""
