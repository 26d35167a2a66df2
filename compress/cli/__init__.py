"""The command line. Each command has one file: it reads options, calls one function and prints the result.

Heavy imports stay inside the commands' functions, so `qcompress --help` is instant.

Shell completion comes from click. Add one of these lines to the shell's start-up file:

    eval "$(_QCOMPRESS_COMPLETE=bash_source qcompress)"            # ~/.bashrc
    eval "$(_QCOMPRESS_COMPLETE=zsh_source qcompress)"             # ~/.zshrc
    _QCOMPRESS_COMPLETE=fish_source qcompress | source             # ~/.config/fish/completions/qcompress.fish
"""

import difflib
import importlib
import os
from pathlib import Path
from typing import Any

import click

from compress.cli.net import net
from compress.cli.options import apply_verbosity, verbosity_options

SPINS = "10000"  # a waiting thread spins for a quarter of a millisecond before it sleeps: most waits are shorter

COMMAND_GROUPS = {
    "Prepare": {
        "import": "Convert a GGUF file to a Hugging Face checkpoint.",
        "init-student": "Cut a smaller student out of a teacher.",
        "generate": "Write a teacher's answers to prompts, as training text.",
        "capture": "Store a teacher's outputs for later training.",
        "cache": "Inspect stored outputs of a teacher.",
    },
    "Make": {
        "distill": "Train a smaller student to match a teacher.",
        "plan": "List the 4-bit layouts of a model with exact sizes.",
        "quantize": "Quantize a checkpoint to 4 bits.",
        "backends": "List, install and remove other quantizers.",
        "convert": "Write a quantized checkpoint in another format.",
        "run": "Run a recipe: distill, quantize, verify, report.",
    },
    "Prove": {
        "check": "Check that vLLM loads a checkpoint correctly.",
        "verify": "Measure a checkpoint's drift from its reference.",
        "compare": "Compare checkpoints and write an HTML report.",
        "eval": "Score checkpoints on tasks and measure retention.",
        "bench": "Measure speed and memory, and predict hardware fit.",
    },
    "Use": {
        "serve": "Serve checkpoints with a chat page and an API.",
        "ship": "Write a bundle that a board serves and tests offline.",
    },
    "Watch": {
        "history": "Show stored results.",
        "watch": "Compare a checkpoint with its stored baseline.",
    },
}
SHORT_HELP = {name: text for commands in COMMAND_GROUPS.values() for name, text in commands.items()}
COMMANDS = tuple(SHORT_HELP)
MODULES = {"import": "import_gguf", "init-student": "init_student"}  # Python does not allow the commands' names


def machine_is_idle() -> bool:
    """Whether /proc/loadavg lists this thread as the only runnable thread. False if there is no such file."""
    try:
        return Path("/proc/loadavg").read_text().split()[3].startswith("1/")
    except (OSError, IndexError):
        return False


# OpenMP reads these variables when torch loads it, so they are set before. Sleeping threads wake up late, but spinning
# threads slow down other programs on the same cores.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"GOMP_SPINCOUNT": SPINS} if machine_is_idle() else {"OMP_WAIT_POLICY": "PASSIVE"}


class LazyGroup(click.Group):
    """A click group that imports a command only when the command is called.

    The help lists commands in the order of COMMAND_GROUPS. Commands run inside `net`, which reports their errors.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"compress.cli.{MODULES.get(name, name)}").command
        command.short_help = SHORT_HELP[name]
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that `args` names. Raises UsageError, with the nearest command, if the name is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "`qcompress --help` lists the commands."
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, with a heading for each group. No command is imported for this."""
        width = max(map(len, COMMANDS))
        for title, commands in COMMAND_GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with net(ctx.params):
            return super().invoke(ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qcompress")
@verbosity_options
@click.pass_context
def cli(ctx: click.Context, **_: bool) -> None:
    """Make language models small enough for edge devices, and measure what was lost.

    -q, -v and --debug also work after COMMAND.

    \b
    qcompress quantize qwen -o qwen-awq
    qcompress verify qwen qwen-awq
    qcompress COMMAND -h
    """
    apply_verbosity(ctx)
