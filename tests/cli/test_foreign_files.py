"""A file of another program where a command writes: the command is refused in one line, and the file stays."""

import shutil

import pytest
import yaml
from click.testing import CliRunner

from compress.checkpoint.door.files import DIGESTS
from compress.checkpoint.ownership import remove_checkpoint
from compress.cli import cli
from compress.core.errors import QCompressError
from compress.quantize import auto

pytestmark = pytest.mark.slow  # runs whole jobs

FOREIGN = b'{"notes": "of another program"}\n'
SIZES = ("--samples", "4", "--seq-len", "32")
QUANTIZE = ("quantize", "MODEL", "-o", "out", "--method", "gptq", "--group-size", "32", *SIZES)
AUTO = ("quantize", "MODEL", "-o", "out", "--method", "auto", "--group-size", "32", *SIZES)
DISTILL = ("distill", "MODEL", "-o", "out", "--blocks", "1", "--steps", "1", "--seq-len", "32")
EVAL = ("eval", "MODEL", "-o", "out", "--reference", "MODEL", "--kind", "qa", "--limit", "1")
GENERATE = ("generate", "MODEL", "-o", "out", "--prompts", "prompts.txt", "--max-tokens", "2", "--keep-truncated")
CAPTURE = ("capture", "MODEL", "-o", "out", *SIZES)
VERIFY = ("verify", "MODEL", "MODEL", "--eval-text", "text.txt", *SIZES, "--reference-cache", "out")
COMPARE = ("compare", "MODEL", "MODEL", "--eval-text", "text.txt", *SIZES, "--html", "out")
HISTORY = ("check", "MODEL", "--history", "out")
RUN = ("run", "recipe.yaml")
SERVE = ("serve", "MODEL", "--runtime", "transformers", "--logs", "out", "--dry-run")
IMPORT = ("import", "small.gguf", "-o", "out")
INIT = ("init-student", "MODEL", "-o", "out", "--blocks", "1")
CONVERT = ("convert", "MODEL", "--to", "gptq", "-o", "out")
GGUF = ("convert", "MODEL", "--to", "gguf", "-o", "out.gguf")
CASES = {  # foreign file -> commands that would write, change or remove it
    "out.quantize.jsonl": [QUANTIZE, (*QUANTIZE, "--restart"), (*QUANTIZE, "--dry-run")],
    ".out.quantize/journal.json": [QUANTIZE, (*QUANTIZE, "--restart")],
    ".out.quantize/notes.json": [QUANTIZE],
    ".out.partial/notes.json": [QUANTIZE, DISTILL],
    ".out.auto/auto.json": [AUTO, (*AUTO, "--restart")],
    "out/notes.json": [QUANTIZE, DISTILL, CAPTURE, VERIFY, IMPORT, INIT, CONVERT],
    "out.gguf": [GGUF],
    "out/llama.log": [SERVE],
    "out/llama.log.old": [SERVE],
    "out.distill.jsonl": [DISTILL, (*DISTILL, "--restart")],
    "out.align.safetensors": [(*DISTILL, "--align-weight", "1")],
    ".out.distill/journal.json": [DISTILL, (*DISTILL, "--restart")],
    "out/eval.json": [EVAL, (*EVAL, "--restart")],
    "out/MODEL.answers.jsonl": [EVAL, (*EVAL, "--restart")],
    "out/MODEL.scores.jsonl": [EVAL, (*EVAL, "--restart")],
    "out": [GENERATE, (*GENERATE, "--restart"), COMPARE, HISTORY, QUANTIZE, DISTILL],
    "out.manifest.json": [GENERATE, (*GENERATE, "--restart")],
    ".out.0-of-1.part": [GENERATE, (*GENERATE, "--restart")],
    "out/manifest.json": [CAPTURE, (*CAPTURE, "--restart"), VERIFY],
    "out/hidden.safetensors": [VERIFY],
    "out/stages.json": [RUN, (*RUN, "--restart")],
    "out/report.html": [RUN, (*RUN, "--restart")],
    "out/report.json": [RUN, (*RUN, "--restart")],
    "out/results/compare.json": [RUN, (*RUN, "--restart")],
    "out/q/qcompress.json": [RUN, (*RUN, "--restart")],
}


@pytest.fixture
def folder(tiny_llama, tmp_path, monkeypatch):
    """The current folder, with a model, a text, prompts and a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(tiny_llama)
    (tmp_path / "text.txt").write_text("The quick brown fox asks a question that the lazy dog answers.\n" * 40)
    (tmp_path / "prompts.txt").write_text("who?\n")
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    recipe = {
        "teacher": "MODEL",
        "out": "out",
        "quantize": [{"name": "q", "method": "rtn", "group_size": 32}],
        "verify": {"samples": 4, "seq_len": 32, "eval_text": "text.txt"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(cli, arguments)


PAIRS = [(name, arguments) for name, commands in CASES.items() for arguments in commands]


@pytest.mark.parametrize(("name", "arguments"), PAIRS, ids=[f"{name}-{args[0]}{args[-1]}" for name, args in PAIRS])
def test_a_file_of_another_program_is_refused_in_one_line_and_stays(folder, name, arguments):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(FOREIGN)
    result = invoke(*arguments)
    assert file.read_bytes() == FOREIGN
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and len(errors) == 1, result.output
    assert name.partition("/")[0] in errors[0] and "bug" not in errors[0] and "; " in errors[0]


@pytest.mark.parametrize(("name", "arguments"), [("out/MODEL.answers.jsonl", EVAL), (".out.0-of-1.part", GENERATE)])
def test_an_incomplete_line_of_another_program_is_not_cut_off(folder, name, arguments):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"a diary without a last line break")
    assert invoke(*arguments).exit_code == 1
    assert file.read_bytes() == b"a diary without a last line break"


def test_own_files_are_replaced_and_removed(folder):
    for arguments in (EVAL, EVAL, (*EVAL, "--restart"), RUN, RUN, (*RUN, "--restart")):
        assert invoke(*arguments).exit_code == 0, arguments
    for arguments in (QUANTIZE, DISTILL):
        out = folder / arguments[0]
        for _ in range(2):
            assert invoke(*[str(out) if word == "out" else word for word in arguments]).exit_code == 0
            assert (folder / f"{out.name}.{out.name}.jsonl").is_file()
            shutil.rmtree(out)


def test_a_stray_file_in_a_checkpoint_of_a_recipe_is_not_removed(folder):
    assert invoke(*RUN).exit_code == 0
    stray = folder / "out" / "q" / "notes.md"
    stray.write_bytes(FOREIGN)
    assert invoke(*RUN).exit_code == 0  # nothing has to be made again
    restarted = invoke(*RUN, "--restart")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("group_size: 32", "group_size: 64"))
    for result in (restarted, invoke(*RUN)):
        assert result.exit_code == 1 and "contains notes.md, which qcompress did not write" in result.stderr
        assert stray.read_bytes() == FOREIGN


@pytest.mark.parametrize("digests", [None, b"{}"], ids=["missing", "without files"])
def test_a_checkpoint_without_a_list_of_its_files_is_not_removed(folder, digests):
    assert invoke(*RUN).exit_code == 0
    checkpoint = folder / "out" / "q"
    (checkpoint / DIGESTS).unlink()
    if digests is not None:
        (checkpoint / DIGESTS).write_bytes(digests)
    (checkpoint / "notes.md").write_bytes(FOREIGN)
    result = invoke(*RUN, "--restart")
    assert result.exit_code == 1 and f"{DIGESTS} is missing or lists no files" in result.stderr
    assert (checkpoint / "notes.md").read_bytes() == FOREIGN
    with pytest.raises(QCompressError, match="move the folder away, or use another output"):
        remove_checkpoint(checkpoint)
    assert (checkpoint / "config.json").is_file()


def test_files_beside_the_candidates_of_auto_stay(folder, monkeypatch):
    stray = folder / ".out.auto" / "notes.json"

    def publish(*arguments):
        stray.write_bytes(FOREIGN)
        return real(*arguments)

    real = auto.publish
    monkeypatch.setattr(auto, "publish", publish)
    result = invoke(*AUTO)
    assert result.exit_code == 0 and [file.name for file in stray.parent.iterdir()] == ["notes.json"], result.output
