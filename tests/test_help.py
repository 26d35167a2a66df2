"""Every command and option has a help text in plain English: the rules that a program can check."""

import inspect
import re
from collections.abc import Iterator

import click
import pytest

from compress.cli import COMMANDS, SHORT_HELP, cli

FIRST_WORDS = {"Of", "Its", "Their", "That", "Those", "Beside", "What", "How", "Which"}
WORDS = {"told", "tell", "tells", "ask", "asks", "asked", "judge", "judges", "judged", "lend", "lends", "say", "says"}
SENTENCE_WORDS = 25
COLUMNS = 80


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name: "", "quantize", "cache inspect"."""
    context = click.Context(cli, info_name="qcompress")
    yield "", cli
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", each) for below, each in command.commands.items())


def options() -> Iterator[tuple[str, click.Option]]:
    for name, command in commands():
        yield from ((name, each) for each in command.params if isinstance(each, click.Option) and not each.hidden)


ALL_COMMANDS = dict(commands())
ALL_OPTIONS = {f"{name} {max(option.opts, key=len)}".strip(): option for name, option in options()}


def paragraphs(command: click.Command) -> list[str]:
    r"""The prose of a command's help: without the examples, whose paragraphs begin with \b."""
    blocks = inspect.cleandoc(command.help or "").split("\n\n")
    return [" ".join(block.split()) for block in blocks if not block.startswith("\b")]


def sentences(text: str) -> list[str]:
    """Sentences of a help text; a colon or a semicolon does not end one, a dot inside a number or name neither."""
    text = re.sub(r"\s*\[default: [^]]*\]", "", text)
    return re.split(r"(?<=[.?!])\s+", text.strip())


def broken_rules(text: str | None) -> list[str]:
    """The rules of plain English that a help text breaks, in words."""
    if not text:
        return ["has no text"]
    parts = sentences(text)
    rules = []
    if not (text[0].isupper() or text[0].isdigit() or text[0] in "`-"):
        rules.append(f"begins with {text[0]!r}, not a capital letter")
    if not parts[-1].endswith("."):
        rules.append("does not end with a period")
    if text.split()[0] in FIRST_WORDS:
        rules.append(f"begins with {text.split()[0]}")
    rules += [f"has {len(part.split())} words: {part}" for part in parts if len(part.split()) > SENTENCE_WORDS]
    return rules + [f"has the word {word!r}" for word in re.findall(r"[a-z]+", text.lower()) if word in WORDS]


@pytest.mark.parametrize("name", ALL_OPTIONS)
def test_an_option_is_described_in_plain_english(name):
    assert broken_rules(ALL_OPTIONS[name].help) == []


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_a_command_is_described_in_plain_english(name):
    assert [rule for text in paragraphs(ALL_COMMANDS[name]) for rule in broken_rules(text)] == []
    assert paragraphs(ALL_COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_short_help_is_a_sentence_that_is_not_cut_off(name):
    assert broken_rules(SHORT_HELP[name]) == []
    assert len(f"  {max(COMMANDS, key=len)}  {SHORT_HELP[name]}") <= COLUMNS


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "has no text"),
        ("sets it.", "begins with 's', not a capital letter"),
        ("Seconds per process", "does not end with a period"),
        ("Of a card.", "begins with Of"),
        ("Text that judges the student.", "has the word 'judges'"),
        (" ".join(["Word"] * 26) + ".", "has 26 words: " + " ".join(["Word"] * 26) + "."),
    ],
)
def test_each_rule_is_found_where_it_is_broken(text, rule):
    assert broken_rules(text) == [rule]
