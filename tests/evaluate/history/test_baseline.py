import pytest

from compress.core.errors import QCompressError
from compress.evaluate.history.baseline import find_baseline


def eval_row(name, kind, scores, tag="v1", role="candidate", time="t1"):
    row = {"name": name, "kind": kind, "tag": tag, "role": role, "command": "eval", "time": time}
    return row | {"scores": {f"{kind}-{index}": score for index, score in enumerate(scores)}}


def test_the_baseline_is_the_last_run_under_the_tag():
    rows = [eval_row("awq", "qa", [0]), eval_row("awq", "math", [0]), eval_row("awq", "qa", [1], time="t2")]
    rows.append(eval_row("awq", "qa", [0.5], tag="v2", time="t3"))
    assert {kind: row["scores"] for kind, row in find_baseline(rows, "v1", "awq").tasks.items()} == {"qa": {"qa-0": 1}}


def test_a_new_name_is_compared_with_the_only_candidate():
    rows = [eval_row("base", "qa", [1], role="reference"), eval_row("awq", "qa", [1])]
    assert find_baseline(rows, "v1", "awq-new").name == "awq" and find_baseline(rows, "v1", "base").name == "base"
    with pytest.raises(QCompressError, match=r"v1 has verdicts on base, awq, gptq, not on new; choose one with --name"):
        find_baseline([*rows, eval_row("gptq", "qa", [1])], "v1", "new")
    with pytest.raises(QCompressError, match=r"tag v3 not found; the tags are v1;"):
        find_baseline(rows, "v3", "awq")
    with pytest.raises(QCompressError, match="has no verdict of eval, verify or compare on awq"):
        find_baseline([{"tag": "v1", "name": "awq", "command": "check", "role": "candidate"}], "v1", "awq")


def test_a_baseline_has_the_reference_of_its_drift():
    row = {"tag": "v1", "name": "awq", "command": "verify", "role": "candidate", "time": "t1"}
    assert find_baseline([row | {"reference_digest": "sha256:old"}], "v1", "awq").reference == "sha256:old"
    assert find_baseline([row], "v1", "awq").reference is None
