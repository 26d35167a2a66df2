"""Draw the terminal output of commands: python scripts/make_terminal_pictures.py

Writes docs/images/terminal-*.svg. The pictures use the reader's own monospace font and load nothing from the network.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
WIDTH = 108
PICTURES = {
    "commands": "qcompress",
    "quantize": "qcompress quantize -h",
    "plan": "qcompress plan recipes/configs/qwen2.5-1.5b-instruct.json --max-size 1.3GB",
}


def output(command: str) -> str:
    """The text that a command prints on stdout and stderr, in a terminal of WIDTH columns, with its colours."""
    arguments = [sys.executable, "-m", "compress.cli", *command.split()[1:]]
    settings = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        arguments, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout.replace("python -m compress.cli", "qcompress")


def picture(name: str, command: str) -> str:
    """A picture, as SVG, of the command line and its output."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(output(command).rstrip()))
    svg = console.export_svg(title="", unique_id=f"terminal-{name}")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+\n", "\n", svg.replace("Fira Code, monospace", "monospace"))


def main() -> None:
    for name, command in PICTURES.items():
        path = ROOT / "docs" / "images" / f"terminal-{name}.svg"
        path.write_text(picture(name, command), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
