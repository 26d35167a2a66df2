import json
import shutil

from compress.checkpoint.digest import weights_digest
from compress.ship.bundle.lineage import GENERATIONS, ancestors


def entry(path, digest="sha256:0", **more):
    return {"path": str(path), "digest": digest, **more}


def test_the_teacher_of_a_student_that_is_still_there_is_named(tiny_qwen2, tmp_path):
    student = shutil.copytree(tiny_qwen2, tmp_path / "student")
    record = {"command": "distill", "source": entry("big", name="org/big", license="mit")}
    (student / "qcompress.json").write_text(json.dumps(record))
    top = {"command": "quantize", "source": entry(student, weights_digest(student))}
    rows = list(ancestors(top))
    assert [(row["role"], row["name"], row["license"]) for row in rows] == [
        ("base", "student", None),
        ("teacher", "org/big", "mit"),
    ]
    top["source"]["digest"] = "sha256:other"
    assert [row["role"] for row in ancestors(top)] == ["base"]


def test_a_record_that_leads_to_itself_ends(tiny_qwen2, tmp_path):
    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    record = {"command": "quantize", "source": entry(model, weights_digest(model))}
    (model / "qcompress.json").write_text(json.dumps(record))
    assert len(list(ancestors(record))) == GENERATIONS


def test_a_record_without_models_has_no_ancestors():
    assert list(ancestors({})) == [] and list(ancestors({"source": "text"})) == []
