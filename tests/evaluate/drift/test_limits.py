import pytest

from compress.evaluate.drift.limits import make_verdicts

ROW = {"name": "awq", "digest": "d", "bytes": 2_000, "kl": 0.1, "perplexity_ratio": 1.02}


def kept(kind, retention):
    return {"digest": "d", "role": "candidate", "kind": kind, "retention": retention}


def test_without_a_limit_there_is_no_verdict():
    assert make_verdicts([ROW], [], {"max_size": None, "max_kl": None}) == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_size": 2_000}, None),
        ({"max_size": 1_500}, "2,000 bytes exceed --max-size by 500"),
        ({"max_kl": 0.1, "max_perplexity_ratio": 1.02}, None),
        ({"max_kl": 0.05}, "KL 0.1 nats is above the limit 0.05"),
        (
            {"max_perplexity_ratio": 1.01, "max_size": 1},
            "2,000 bytes exceed --max-size by 1,999; perplexity ratio 1.02",
        ),
        ({"min_retention": 85}, "qa retains 84.9 %, less than 85 %"),
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
        ({"max_kl": 0.01}, f"{reason_blocks}; KL 0.1 nats is above the limit 0.01"),
    ):
        assert make_verdicts([ROW | {"blocks": blocks}], [], limits) == [
            {"name": "awq", "passed": False, "reason": reason}
        ]
    assert make_verdicts([ROW | {"blocks": blocks[:1]}, ROW | {"blocks": []}], [], {}) == [
        {"name": "awq", "passed": True, "reason": None}
    ]


def test_nan_and_missing_retention_never_pass():
    assert not make_verdicts([ROW | {"kl": float("nan")}], [], {"max_kl": 9})[0]["passed"]
    for retention in ([], [kept("qa", None)], [kept("qa", 99.0) | {"digest": "another"}]):
        assert make_verdicts([ROW], retention, {"min_retention": 85})[0]["reason"] == "no kind of task has a retention"
