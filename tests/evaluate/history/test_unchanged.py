"""The files of a checkpoint decide whether a watch measures. The folders here are no models: nothing loads them."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from calibration.corpus import source_digest
from compress.checkpoint.digest import small_files_digest, weights_digest
from compress.core.errors import QCompressError
from compress.evaluate.history import unchanged
from compress.evaluate.history.settings import WatchSettings
from compress.evaluate.history.store import append_verdicts, read_verdicts
from compress.evaluate.history.unchanged import prepare_watch
from compress.evaluate.tasks.suite import load_suite


def folder(path):
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).write_text(f"{path.name} {name}")
    return path


@pytest.fixture
def job(tmp_path):
    """(path, history, settings) of a watch whose baseline v1 has an eval of qa and a verify."""
    path, reference, text = folder(tmp_path / "awq"), folder(tmp_path / "base"), tmp_path / "text.txt"
    text.write_text("some words")
    about = {"name": "awq", "digest": weights_digest(path), "small_files_digest": small_files_digest(path)}
    about["role"] = "candidate"
    scored = {"kind": "qa", "items": 9, "score": 0.5, "scores": {"qa-1": 0.5}, "suite_digest": load_suite().digest}
    drift = {"kl": 0.1, "kl_se": 0.01, "perplexity": 20.0, "tokens": 900, "text": "text.txt"}
    drift |= {"text_digest": source_digest(str(text)), "reference_digest": weights_digest(reference)}
    drift["reference_small_files_digest"] = small_files_digest(reference)
    history = tmp_path / "history.sqlite"
    append_verdicts(history, "eval", [about | scored], tag="v1")
    append_verdicts(history, "verify", [about | drift], tag="v1")
    return path, history, WatchSettings(baseline="v1", reference=reference, eval_text=str(text))


def measured(job, time=None, **changes):
    """A watch of `job` that measured: the last row of its history."""
    run = prepare_watch(*job)
    rows = [row | {"measured": True} | changes for row in unchanged.no_changes(run.baseline, with_drift=True)]
    append_verdicts(run.history, "watch", [run.summary(rows, measured=True)], time=time)


def test_the_files_of_the_baseline_have_no_change(job):
    rows, since = prepare_watch(*job).unchanged()
    assert since == "the baseline v1"
    assert [(row["kind"], row["before"], row["now"]) for row in rows] == [
        ("qa", 50, 50),
        ("all", 50, 50),
        ("kl", 0.1, 0.1),
        ("perplexity", 20, 20),
    ]
    assert not any(row["change"] or row["fell"] or row["measured"] for row in rows)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("which", ["awq", "base"])
def test_any_changed_file_needs_a_measurement(job, which, file):
    measured(job)
    assert prepare_watch(*job).unchanged()
    (job[0].parent / which / file).write_text("other")
    assert prepare_watch(*job).unchanged() is None
    measured(job)
    assert prepare_watch(*job).unchanged()


def test_another_text_or_limit_or_software_needs_a_measurement(job, monkeypatch):
    path, history, settings = job
    measured(job)
    (path.parent / "text.txt").write_text("other words")
    assert prepare_watch(*job).unchanged() is None
    measured(job, kind="later")
    stricter = replace(settings, max_drop=1.0)
    assert prepare_watch(path, history, stricter).unchanged() is None
    assert prepare_watch(*job).unchanged()
    monkeypatch.setattr(unchanged, "installed_versions", lambda: {"torch": "99"})
    assert prepare_watch(*job).unchanged() is None


def test_the_last_measurement_counts_also_if_it_was_a_fall(job):
    measured(job, time=datetime(2026, 1, 2, tzinfo=UTC), change=-3.0, fell=True)
    run = prepare_watch(*job)
    rows, since = run.unchanged()
    assert since == "the measurement of 2026-01-02T00:00:00+00:00"
    assert all(row["fell"] and row["change"] == -3 and not row["measured"] for row in rows)
    run.store_unchanged(rows, "night")
    assert prepare_watch(*job).unchanged() == (rows, since)
    last = read_verdicts(job[1])[-1]
    assert (last["measured"], last["passed"], last["tag"]) == (False, False, "night") and "kl" not in last


def test_a_newer_baseline_under_the_same_tag_ends_the_old_result(job):
    measured(job, fell=True)
    row = {key: value for key, value in read_verdicts(job[1])[0].items() if key not in ("time", "tag")}
    append_verdicts(job[1], "eval", [row], tag="v1", time=datetime(2040, 1, 1, tzinfo=UTC))
    rows, since = prepare_watch(*job).unchanged()
    assert since == "the baseline v1" and not any(row["fell"] for row in rows)


def test_a_baseline_of_an_older_version_is_measured(job, tmp_path):
    old = tmp_path / "old.sqlite"
    for row in read_verdicts(job[1]):
        append_verdicts(old, row["command"], [{**row, "small_files_digest": None}], tag="v1")
    assert prepare_watch(job[0], old, job[2]).unchanged() is None


def test_a_baseline_of_drift_alone_needs_a_reference(job, tmp_path):
    append_verdicts(tmp_path / "drift.sqlite", "verify", read_verdicts(job[1])[1:], tag="v1")
    with pytest.raises(QCompressError, match="tag v1 has only KL and perplexity; add --reference"):
        prepare_watch(job[0], tmp_path / "drift.sqlite", replace(job[2], reference=None))
