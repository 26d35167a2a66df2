"""The plan before any work: what would be ignored or is not there is refused, from little more than config.json."""

import pytest

from calibration.errors import CalibrationError
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.student.plan import check_inputs, plan_distill


@pytest.mark.parametrize("options", [{"blocks": 1}, {"intermediate_size": 128}])
def test_importance_is_refused_when_no_width_is_cut(tiny_llama, options):
    with pytest.raises(QCompressError, match=r"importance weights: the student is as wide as its teacher.*leave"):
        plan_distill(tiny_llama, DistillConfig(**options, importance="weights"))
    assert plan_distill(tiny_llama, DistillConfig(intermediate_size=64, importance="weights"))


def test_importance_is_refused_for_an_existing_student(tiny_llama):
    with pytest.raises(QCompressError, match=r"importance activations: --student .* is not cut"):
        plan_distill(tiny_llama, DistillConfig(student=str(tiny_llama), importance="activations"))


def test_a_dry_run_refuses_texts_and_caches_that_cannot_be_read(tmp_path):
    for name, text in (("good.txt", "a text"), ("bad.jsonl", "{"), ("blank.txt", " \n")):
        (tmp_path / name).write_text(text)
    good, size = str(tmp_path / "good.txt"), {"blocks": 1}
    assert check_inputs(DistillConfig(**size, text=(f"{good}=2",)))["texts"] == f"{good}=2, heldout"
    for name, what in (
        ("gone.txt", "no such file"),
        ("bad.jsonl", "line 1: invalid JSON"),
        ("blank.txt", "contains text"),
    ):
        for option in ({"eval_text": str(tmp_path / name)}, {"stages": ({"name": "a", "text": str(tmp_path / name)},)}):
            with pytest.raises(CalibrationError, match=rf"{name}.*{what}"):
                check_inputs(DistillConfig(**size, **option))
    with pytest.raises(QCompressError, match="nowhere"):
        check_inputs(DistillConfig(**size, text=(good,), cache=str(tmp_path / "nowhere")))
