"""README and docs say only what the code does: commands parse, links resolve, generated pages are fresh."""

import json
import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from compress.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOG = ROOT / "docs" / "contributing" / "experiment-log.md"  # keeps the command lines of its day
SCRIPTS = sorted([*(ROOT / "recipes").glob("*.y*ml"), *(ROOT / "scripts").glob("*.sh")])
COMMAND = re.compile(r"(?:^|[\s`$/(])qcompress +([a-z][a-z-]*(?: [^`#|]*)?)")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
PATH = re.compile(r"`((?:compress|calibration|tests|scripts|recipes|docs)/[\w./-]*\w)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def command_lines(text: str) -> list[str]:
    """Every `qcompress ...` command line; a line that ends with a backslash continues."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    blocks = "\n".join(re.findall(r"```(?:console|bash|yaml)\n(.*?)```", joined, re.DOTALL))
    spans = "\n".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", joined, flags=re.DOTALL)))
    lines = [line.split("  #")[0].split(" > ")[0] for line in f"{blocks}\n{spans}".splitlines()]
    commands = [match[1].strip() for line in lines if (match := COMMAND.search(line))]
    return [line for line in commands if "[OPTIONS]" not in line]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the first words name, and the remaining words."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        child = command.get_command(click.Context(cli), words[0])
        assert child is not None, f"no command {words[0]}"
        command, words = child, words[1:]
    return command, words


def check_options(line: str) -> None:
    """Fails when a command or an option does not exist, or an option has a value that its type refuses."""
    if "…" in line or "..." in line or "COMMAND" in line:
        line = line.replace("…", "").replace("...", "").replace("COMMAND", "")
    command, words = find_command(shlex.split(line, comments=True))
    options = {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}
    options |= {name: param for param in command.params for name in getattr(param, "secondary_opts", ())}
    for word, value in zip(words, [*words, ""][1:], strict=True):
        name = word.split("=")[0]
        if not name.startswith("-") or name in ("-h", "--help"):
            continue
        assert name in options, f"{command.name} has no option {name}: {line}"
        if isinstance(options[name].type, click.Choice) and not value.startswith("-") and value.islower():
            assert value in options[name].type.choices, f"{command.name} {name} {value}"


def prose(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [page for page in PAGES if page != LOG], ids=name_of)
def test_every_command_line_in_the_documentation_parses(path):
    for line in command_lines(prose(path)):
        check_options(line)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_every_command_line_in_scripts_and_recipes_parses(path):
    text = re.sub(r"\s*\\\n\s*", " ", prose(path))
    for line in re.findall(r"qcompress ([a-z][a-z-]* [^\n\"'`;)]*)", text):
        check_options(re.sub(r"[<>|].*", "", line).split(" #")[0])


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_internal_link_resolves(path):
    for target, _ in LINK.findall(prose(path)):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [page for page in PAGES if page != LOG], ids=name_of)
def test_every_path_of_the_repository_that_is_named_exists(path):
    missing = [name for name in PATH.findall(prose(path)) if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing, missing


def test_generated_pages_are_fresh():
    stale = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))["stale_pages"]()
    assert not stale, f"run python scripts/make_docs.py: {', '.join(stale)}"


def test_readme_is_short_and_narrow():
    lines = prose(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]
    assert max(map(len, cells)) <= 80


def test_the_changelog_of_a_version_has_at_most_20_lines():
    versions = prose(ROOT / "CHANGELOG.md").split("\n## ")[1:]
    assert versions
    for version in versions:
        assert len(version.strip().splitlines()) <= 21, version.splitlines()[0]


def test_contributing_shows_the_layers_of_the_layer_test():
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["LAYERS"]
    rows = re.findall(r"^\| (\d) \| (.*?) \|", prose(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    shown = [(int(rank), set(re.findall(r"`([\w.]+)`", rooms))) for rank, rooms in rows]
    assert shown == [(rank, set(names)) for rank, names in layers]


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", prose(ROOT / "mkdocs.yml")))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if "data/" not in page} == listed


def test_results_name_their_command_and_date():
    for path in sorted((ROOT / "docs" / "results" / "data").glob("*.json")):
        data = json.loads(prose(path))
        for part in [data] if "rows" in data else data.values():
            assert part["command"] and part["date"] and part["rows"], path.name


def test_the_readme_names_every_command_once():
    lines = [line for line in prose(ROOT / "README.md").splitlines() if re.match(r"\| \w* ?\| `", line)]
    shown = [name for line in lines for name in re.findall(r"`([\w-]+)`", line.split("|")[2])]
    assert shown == list(COMMANDS)


WRITTEN = [page for page in PAGES if page != LOG and "Generated by" not in prose(page)]


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_no_sentence_of_the_documentation_has_more_than_30_words(path):
    text = re.sub(r"```.*?```", "", prose(path), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "!", "<"))]
    for part in re.split(r"(?<=[.:;!?])\s+(?=[A-Z`*\[])|\n\n|\n- |\n\d\. ", "\n".join(lines)):
        assert len(part.split()) <= 30, " ".join(part.split())


def test_a_wrapped_line_of_a_docstring_stays_in_its_row():
    google_text = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))["google_text"]
    text = google_text("Title.\n\nRaises:\n    Wrong: A setting, or a\n        student.\n    Other: A file.")
    assert "| `Wrong` | A setting, or a student. |\n| `Other` | A file. |" in text
