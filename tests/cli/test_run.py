import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.pipeline.models import OpenCheckpoints, resolve_models
from compress.recipe import load_recipe

pytestmark = pytest.mark.slow  # runs whole jobs

RECIPES = sorted(Path(__file__).parents[2].joinpath("recipes").glob("*.yaml"))


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def small(teacher, out, **changes):
    """A recipe of seconds: one step of distillation, one variant."""
    value = {
        "teacher": str(teacher),
        "out": str(out),
        "distill": {"blocks": 1, "steps": 1, "batch_size": 2, "seq_len": 32},
        "quantize": [{"name": "q", "method": "gptq", "samples": 8, "seq_len": 32}],
        "verify": {"samples": 24, "seq_len": 32},
    }
    return value | changes


def write(path, value):
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_bundled_recipes_are_valid(path):
    assert load_recipe(path).quantize


def test_a_7b_recipe_is_planned_without_weights():
    path = next(path for path in RECIPES if "7b" in path.stem)
    rows = json.loads(invoke("run", path, "--dry-run", "--json").stdout)
    assert [row["action"] for row in rows] == ["make"] * len(rows)
    rows = [row for row in rows if row["command"] in ("distill", "quantize")]
    assert rows[0]["teacher_parameters"] == 7_615_616_512
    assert rows[0]["parameters"] == 1_543_714_304
    assert rows[0]["tokens_read"] >= 100_000_000 and rows[0]["memory_bytes"] > 10**10
    assert all(row["bytes"] < 2 * 10**9 and row["group_size"] == 128 for row in rows[1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"techer": "x"}, "unknown key techer; did you mean teacher?"),
        ({"verify": {"max_k": 1}}, "unknown key verify.max_k; did you mean max_kl?"),
        ({"distill": {"blocks": 1, "step": 3}}, "did you mean steps?"),
        (
            {"distill": {"blocks": 1, "stages": [{"name": "a", "reply": 0.5}]}},
            "distill.stages.0.reply; did you mean rep",
        ),
        ({"distill": {"blocks": 1, "stages": [{"name": "a", "replay": 0.5}]}}, "no stage comes before it"),
        ({"quantize": [{"name": "a", "method": "gptq", "grup_size": 64}]}, "did you mean group_size?"),
        ({"quantize": [{"name": "a", "method": "magic"}]}, "magic"),
        ({"quantize": [{"name": "a", "method": "agw"}]}, "did you mean awq?"),
        ({"quantize": [{"name": "a", "format": "gptg"}]}, "did you mean gptq?"),
        (
            {"quantize": [{"name": "a", "method": "awq"}, "agw"]},
            "quantize.1: agw is no section; write {name: agw, method: awq+gptq}; did you mean awq?",
        ),
        ({"quantize": ["gptq"]}, "quantize.0: gptq is no section; write {name: gptq, method: gptq}"),
        ({"bench": {"runtime": "vlm"}}, "choose auto, transformers, vllm; did you mean vllm?"),
        ({"distill": {"blocks": 1, "divergence": "revers_kl"}}, "did you mean reverse_kl?"),
        ({"quantize": [{"name": "student", "method": "gptq"}]}, "differ"),
        ({"quantize": [{"name": "a", "method": "gptq", "max_size": "big"}]}, "2GB"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(tmp_path, change, words):
    path = write(tmp_path / "recipe.yaml", small("teacher", tmp_path / "out", **change))
    result = invoke("run", path)
    assert result.exit_code == 1 and words in result.output and str(path) in result.output
    assert not (tmp_path / "out").exists()


def stages(result):
    """The stages that a run made, and those that it skipped, from its progress lines."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("stage ")]
    skipped = {line.split()[1] for line in lines if " skipped " in line}
    return {line.split()[1] for line in lines} - skipped, skipped


ALL = {"student", "q", "r", "results/check-q.json", "results/check-r.json", "results/compare.json", "report.html"}


def two_variants(teacher, out):
    part = {"method": "rtn"}
    return small(teacher, out, quantize=[{"name": "q", **part}, {"name": "r", "group_size": 64, **part}])


@pytest.fixture(scope="module")
def first_build(tiny_llama, tmp_path_factory):
    """The folder of a recipe with two variants after its first run."""
    folder = tmp_path_factory.mktemp("build")
    first = invoke("run", write(folder / "recipe.yaml", two_variants(tiny_llama, folder / "out")))
    assert first.exit_code == 0, first.output
    assert stages(first) == (ALL, set())
    return folder


@pytest.fixture
def built(first_build, tiny_llama, tmp_path):
    """A copy of the built folder: (path of the recipe, its value)."""
    shutil.copytree(first_build / "out", tmp_path / "out")
    value = two_variants(tiny_llama, tmp_path / "out")
    return write(tmp_path / "recipe.yaml", value), value


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "remade"), [(None, set()), (1e9, {"report.html"})])
def test_an_unchanged_recipe_and_a_changed_limit_import_no_torch(built, limit, remade):
    path, value = built
    write(path, value | {"verify": value["verify"] | {"max_kl": limit}})
    code = f"import sys; from compress.cli import cli; cli(['run', {str(path)!r}, '--json'], standalone_mode=False); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert stages(result) == (remade, ALL - remade)
    assert json.loads(result.stdout)["verdicts"][0]["passed"]


def test_a_changed_limit_only_writes_the_report_again(built, monkeypatch):
    path, value = built
    monkeypatch.setattr(OpenCheckpoints, "__missing__", lambda self, path: pytest.fail(f"{path} was opened"))
    result = invoke("run", write(path, value | {"verify": value["verify"] | {"max_kl": 1e-9}}))
    assert result.exit_code == 3 and "above the limit" in result.output
    assert stages(result) == ({"report.html"}, ALL - {"report.html"})


@pytest.mark.slow
def test_a_changed_group_size_makes_its_variant_and_what_follows(built):
    path, value = built
    value["quantize"][0]["group_size"] = 32
    planned = invoke("run", write(path, value), "--dry-run", "--json")
    remade = {"q", "results/check-q.json", "results/compare.json", "report.html"}
    assert {row["stage"] for row in json.loads(planned.stdout) if row["action"] == "make"} == remade
    result = invoke("run", path)
    assert result.exit_code == 0 and stages(result) == (remade, ALL - remade)
    assert "group_size (0 → 32)" in result.stderr
    assert not list(path.parent.glob("out/.*"))


@pytest.mark.slow
def test_restart_makes_every_stage_again(built):
    path, _ = built
    assert stages(invoke("run", path, "--restart")) == (ALL, set())


@pytest.mark.slow
def test_an_output_without_an_entry_is_accepted_after_the_same_start(built):
    path, _ = built
    state = json.loads((path.parent / "out/stages.json").read_text())
    state["started"]["q"] = state["finished"].pop("q")["inputs"]
    (path.parent / "out/stages.json").write_text(json.dumps(state))
    assert stages(invoke("run", path)) == (set(), ALL)
    state["started"].clear()
    (path.parent / "out/stages.json").write_text(json.dumps(state))
    refused = invoke("run", path)
    assert refused.exit_code == 1 and "was not made by this recipe" in refused.output


def test_an_exceeded_limit_exits_with_3_after_the_report(tiny_llama, tmp_path):
    value = small(tiny_llama, tmp_path / "out", verify={"samples": 24, "seq_len": 32, "max_kl": 1e-9})
    result = invoke("run", write(tmp_path / "recipe.yaml", value), "--json")
    assert result.exit_code == 3, result.output
    assert not json.loads(result.stdout)["verdicts"][0]["passed"]
    assert "kl" in result.output and "above the limit" in result.output
    assert (tmp_path / "out/report.html").is_file()


def test_a_wrong_budget_or_text_fails_before_the_first_stage(tiny_llama, tmp_path):
    value = small(tiny_llama, tmp_path / "out")
    value["quantize"][0]["max_size"] = "1KB"
    over = invoke("run", write(tmp_path / "recipe.yaml", value))
    missing = invoke(
        "run", write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "out", verify={"eval_text": "gone.txt"}))
    )
    assert (
        over.exit_code == missing.exit_code == 1 and "over --max-size" in over.output and "gone.txt" in missing.output
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bench": {"hardware": ["t4", "orin-nan"]}}, "did you mean orin-nano?"),
        ({"distill": {"blocks": 1, "steps": 1, "text": ["defalt"]}}, "did you mean default?"),
        ({"verify": {"eval_text": "held-out"}}, "did you mean heldout?"),
        ({"quantize": [{"name": "q", "method": "rtn", "format": "gptq", "eight_bit": ["mlp.down_prj"]}]}, "down_proj?"),
    ],
)
def test_a_typo_in_a_list_of_names_gets_a_suggestion_before_work(tiny_llama, tmp_path, change, words):
    result = invoke("run", write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "out", **change)))
    assert result.exit_code == 1 and words in result.output, result.output
    assert not (tmp_path / "out/student").exists()


def test_restart_never_removes_files_of_another_program(tiny_llama, tmp_path):
    (tmp_path / "out/student").mkdir(parents=True)
    (tmp_path / "out/student/thesis.txt").write_text("mine")
    result = invoke("run", write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "out")), "--restart")
    assert result.exit_code == 1 and "was not made by qcompress, so it is never replaced" in result.output
    assert (tmp_path / "out/student/thesis.txt").read_text() == "mine"


def test_a_damaged_output_is_not_skipped(tiny_llama, tmp_path):
    path = write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "out"))
    assert invoke("run", path).exit_code == 0
    weights = tmp_path / "out/q/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    result = invoke("run", path)
    assert result.exit_code == 1 and "the output has changed since this recipe wrote it" in result.output
    planned = invoke("run", path, "--dry-run")
    assert planned.exit_code == 1 and "refuse" in planned.output


@pytest.mark.slow
def test_the_eval_section_puts_scores_and_answers_into_the_report(tiny_llama, tmp_path):
    path = write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "out", eval={"limit": 1, "answers": 3}))
    result = invoke("run", path, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows["retention"] if row["kind"] == "qa"] == [tiny_llama.name, "student", "q"]
    assert len(rows["samples"]) == 3 and len(rows["samples"][0]["answers"]) == 3
    assert rows["samples"][0]["id"] in Path(rows["report"]).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize: {name: awq}", "quantize: write a list, one entry per line, each after a dash"),
        ("eval: [a]", "eval: write keys with values, such as {name: value}, or remove the key"),
        ("5: x", "5: write a word as the key, not a number"),
    ],
)
def test_recipe_error_names_the_yaml_to_write(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"teacher: model\nout: runs\n{text}\n", encoding="utf-8")
    with pytest.raises(QCompressError, match=re.escape(f"{path}: {message}")):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- teacher: a\n", "is a list"), ("# nothing yet\n", "is empty"), ("teacher", "is a single value")],
)
def test_a_recipe_that_is_not_a_mapping_is_named_so(tmp_path, text, words):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(QCompressError, match=f"recipe.yaml: the file {words}, but a recipe must be a mapping"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_cannot_write_below_a_file(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = invoke("run", write(tmp_path / "recipe.yaml", small(tiny_llama, tmp_path / "file/out")))
    assert result.exit_code == 1 and "is a file, not a folder" in result.output


def test_the_student_of_a_recipe_may_be_a_hub_id(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(tiny_llama))
    distill = {"student": "org/small", "steps": 1, "batch_size": 2, "seq_len": 32}
    path = write(tmp_path / "recipe.yaml", small("org/large", tmp_path / "out", distill=distill))
    rows = json.loads(invoke("run", path, "--dry-run", "--json").stdout)
    assert rows[0]["stage"] == "student" and rows[0]["parameters"] == rows[0]["teacher_parameters"]
    recipe = resolve_models(load_recipe(path))
    assert recipe.teacher == tiny_llama and recipe.distill_config().student == str(tiny_llama)
