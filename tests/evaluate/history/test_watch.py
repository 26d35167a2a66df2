import pytest

from compress.core.errors import QCompressError
from compress.evaluate.history.baseline import Baseline
from compress.evaluate.history.watch import baseline_items, check_same, drift_changes, task_changes
from compress.evaluate.tasks.item import Score
from compress.evaluate.tasks.suite import load_suite


def eval_row(name, kind, scores, tag="v1", role="candidate", time="t1", **changes):
    row = {"name": name, "kind": kind, "tag": tag, "role": role, "command": "eval", "time": time, "suite": "bundled"}
    return row | {"scores": {f"{kind}-{index}": score for index, score in enumerate(scores)}, "digest": name} | changes


def baseline(**scores):
    return Baseline("v1", "awq", {kind: eval_row("awq", kind, values) for kind, values in scores.items()}, None, None)


def scored(**scores):
    return {
        kind: {f"{kind}-{index}": Score(score, "") for index, score in enumerate(values)}
        for kind, values in scores.items()
    }


def changes_of(before, now, **options):
    return {row["kind"]: row for row in task_changes(baseline(**before), scored(**now), **options)}


def test_the_same_scores_never_fall():
    values = {"qa": [1, 0, 0.5] * 20, "math": [0] * 9}
    rows = changes_of(values, values, max_drop=0)
    assert [(row["change"], row["fell"]) for row in rows.values()] == [(0, False)] * 3
    assert all(row["change_low"] == -row["change_high"] < 0 for row in rows.values())


def test_only_the_kind_with_lower_scores_falls():
    before = {"qa": [1.0] * 40, "math": [1.0, 0.0] * 20}
    rows = changes_of(before, before | {"qa": [1.0] * 28 + [0.0] * 12})
    assert rows["qa"]["change"] == pytest.approx(-30) and rows["qa"]["fell"] and rows["qa"]["change_high"] < 0
    assert not rows["math"]["fell"] and rows["all"]["change"] == pytest.approx(-15)
    assert (rows["all"]["before"], rows["all"]["now"]) == pytest.approx((75, 60))


def test_an_insignificant_drop_falls_only_beyond_max_drop():
    before, now = {"qa": [1.0] * 20}, {"qa": [1.0] * 19 + [0.0]}  # 5 points of one item in twenty
    assert not changes_of(before, now)["qa"]["fell"]
    assert not changes_of(before, now, max_drop=5.1)["qa"]["fell"]
    assert changes_of(before, now, max_drop=4.9)["qa"]["fell"]


def test_a_higher_score_never_falls():
    rows = changes_of({"qa": [0.0] * 20}, {"qa": [1.0] * 20}, max_drop=0)
    assert rows["qa"]["change"] == 100 and not rows["qa"]["fell"]


def test_items_with_a_scorer_error_are_not_paired():
    rows = changes_of({"qa": [1.0, None, 1.0]}, {"qa": [1.0, 0.0, None]}, max_drop=0)
    assert rows["qa"]["items"] == 1 and rows["qa"]["change"] == 0
    none = changes_of({"qa": [None]}, {"qa": [0.0]})
    assert none["qa"]["change"] is None and not none["qa"]["fell"]


def test_another_suite_is_rejected_with_both_digests():
    suite = load_suite()
    stored = Baseline("v1", "awq", {"qa": eval_row("awq", "qa", [1], suite_digest="sha256:old")}, None, None)
    with pytest.raises(
        QCompressError, match=rf"suite bundled \(sha256:old\), this run uses bundled \({suite.digest}\)"
    ):
        baseline_items(stored, suite)
    same = eval_row("awq", "qa", [1], suite_digest=suite.digest) | {"scores": {suite.items[3].id: 1.0}}
    assert baseline_items(Baseline("v1", "awq", {"qa": same}, None, None), suite) == [suite.items[3]]
    with pytest.raises(QCompressError, match="which watch cannot repeat"):
        baseline_items(
            Baseline("v1", "awq", {"gsm8k": eval_row("awq", "gsm8k", [1], suite_digest=None)}, None, None), suite
        )


def drift(kl, documents=None, tokens=100, **changes):
    row = {
        "kl": kl,
        "kl_se": 0.01,
        "perplexity": 20.0,
        "tokens": tokens,
        "documents": documents or [],
        "windows_digest": "w",
    }
    return row | changes


def documents(*kls):
    return [{"document": str(index), "tokens": 25, "kl": kl, "nll": 3 + kl} for index, kl in enumerate(kls)]


def test_pairing_documents_detects_smaller_changes_of_kl():
    before, now = drift(0.25, documents(0.1, 0.2, 0.3, 0.4)), drift(0.26, documents(0.11, 0.21, 0.31, 0.41))
    kl, perplexity = drift_changes("awq", before, now)
    assert kl["fell"] and kl["items"] == 4 and kl["change_low"] == pytest.approx(0.01)
    assert perplexity["change_low"] == pytest.approx(100 * 0.01005, rel=1e-3)
    unpaired, _ = drift_changes("awq", drift(0.25), drift(0.26))
    assert not unpaired["fell"] and unpaired["items"] == 0
    assert drift_changes("awq", drift(0.25), drift(0.35))[0]["fell"]


def test_documents_are_paired_only_if_they_hold_all_tokens():
    before, now = drift(0.25, documents(0.1, 0.2), tokens=900), drift(0.26, documents(0.11, 0.21), tokens=900)
    assert drift_changes("awq", before, now)[0]["items"] == 0


def test_differences_between_processors_never_count_as_a_fall():
    before = drift(0.25, documents(0.1, 0.2, 0.3, 0.4))
    now = drift(0.25005, documents(0.10005, 0.20005, 0.30005, 0.40005))
    assert not any(row["fell"] for row in drift_changes("awq", before, now))


def test_another_text_or_reference_is_rejected_by_name():
    stored = Baseline("v1", "awq", {}, drift(0.2), "sha256:old")
    check_same(stored, reference="sha256:old", windows_digest="w")
    with pytest.raises(QCompressError, match="v1: the baseline has reference sha256:old, this run has sha256:new"):
        check_same(stored, reference="sha256:new")
    with pytest.raises(QCompressError, match="v1: the baseline has windows_digest w, this run has v"):
        check_same(stored, windows_digest="v")


def test_a_single_window_has_no_interval_and_never_falls():
    for before, now in ((None, None), (None, 0.01), (0.01, None)):
        row, _ = drift_changes("awq", drift(0.25, kl_se=before), drift(0.35, kl_se=now))
        assert (row["change_low"], row["change_high"], row["fell"]) == (None, None, False)
