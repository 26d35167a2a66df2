import pytest

from compress.evaluate.drift.limits import HELP_BOTH, HELP_DAMAGE, HELP_DRIFT, HELP_SIZE, make_verdicts

ROW = {"name": "awq", "digest": "d", "bytes": 2_000, "kl": 0.1, "perplexity_ratio": 1.02}


def kept(kind, retention, items=60):
    return {"digest": "d", "role": "candidate", "kind": kind, "retention": retention, "items": items}


def test_without_a_limit_there_is_no_verdict():
    assert make_verdicts([ROW], [], {"max_size": None, "max_kl": None}) == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_size": 2_000}, None),
        ({"max_size": 1_500}, "size 2.0 kB is above the limit 1.5 kB (max_size) by 500 B"),
        ({"max_kl": 0.1, "max_perplexity_ratio": 1.02}, None),
        ({"max_kl": 0.05}, "KL 0.1 nats is above the limit 0.05 (max_kl)"),
        (
            {"max_perplexity_ratio": 1.01, "max_size": 1},
            "size 2.0 kB is above the limit 1 B (max_size) by 2.0 kB; perplexity ratio 1.02",
        ),
        ({"min_retention": 85}, "qa retains 84.9 % on 60 tasks, less than 85 % (min_retention)"),
        ({"min_retention": 80}, None),
    ],
)
def test_a_verdict_names_every_broken_limit(limits, reason):
    retention = [kept("qa", 84.9), kept("json", 85.0), kept("math", None), kept("all", 10.0)]
    (verdict,) = make_verdicts([ROW], retention, limits)
    assert verdict["passed"] == (reason is None)
    assert (verdict["reason"] or "").startswith(reason or "")


def test_an_outlier_block_fails_with_and_without_limits():
    blocks = [{"block": n, "gain": 1.12, "error": 0.15, "score": n, "outlier": n in (1, 2)} for n in range(4)]
    reason_blocks = "blocks 2 (gain 1.120, error 0.1500), 1 (gain 1.120, error 0.1500) are outliers"
    for limits, reason in (
        ({}, reason_blocks),
        ({"max_kl": 0.01}, f"{reason_blocks}; KL 0.1 nats is above the limit 0.01 (max_kl)"),
    ):
        assert make_verdicts([ROW | {"blocks": blocks}], [], limits) == [
            {"name": "awq", "passed": False, "reason": reason, "cure": HELP_DAMAGE}
        ]
    assert make_verdicts([ROW | {"blocks": blocks[:1]}, ROW | {"blocks": []}], [], {}) == [
        {"name": "awq", "passed": True, "reason": None}
    ]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_size": 1_500, "max_kl": 0.2}, HELP_SIZE),
        ({"max_kl": 0.05, "max_size": 2_000}, HELP_BOTH),
        ({"min_retention": 85, "max_size": 2_000}, HELP_BOTH),
        ({"max_perplexity_ratio": 1.01}, HELP_DRIFT),
        ({"max_size": 1_500, "max_perplexity_ratio": 1.01}, HELP_BOTH),
        ({"min_retention": 85}, HELP_DRIFT),
    ],
)
def test_the_cure_fits_the_broken_limit(limits, words):
    (verdict,) = make_verdicts([ROW], [kept("qa", 80.0)], limits)
    assert verdict["cure"] == words
    assert "smaller group" not in HELP_SIZE and "larger groups" not in HELP_DRIFT


def test_a_kind_with_too_few_tasks_is_named_in_place_of_a_verdict():
    (verdict,) = make_verdicts([ROW], [kept("qa", 100.0, 2), kept("math", 90.0, 60)], {"min_retention": 85})
    assert verdict["passed"] and verdict["unsure"] == "too few tasks to tell: qa 2"
    (verdict,) = make_verdicts([ROW], [kept("qa", 50.0, 2)], {"min_retention": 85})
    assert verdict["reason"] == "qa retains 50.0 % on 2 tasks, too few to tell, less than 85 % (min_retention)"
    assert "unsure" not in make_verdicts([ROW], [kept("qa", 100.0, 2)], {"max_kl": 1})[0]


def test_nan_and_missing_retention_never_pass():
    assert not make_verdicts([ROW | {"kl": float("nan")}], [], {"max_kl": 9})[0]["passed"]
    for retention in ([], [kept("qa", None)], [kept("qa", 99.0) | {"digest": "another"}]):
        assert make_verdicts([ROW], retention, {"min_retention": 85})[0]["reason"] == "no kind of task has a retention"
