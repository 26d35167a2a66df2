"""Click options come from settings classes: types, bounds, defaults, groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from compress.cli import COMMANDS, cli
from compress.cli.model_path import OutPath
from compress.cli.options import Command, device_option, make_settings, out_option, settings_options
from compress.core.config import parse_size
from compress.core.options import option


@dataclass(frozen=True)
class Sample:
    method: str = option("awq", "Rounding method.", choices=("awq", "gptq"))
    samples: int = option(8, "Number of calibration windows.", group="Calibration", minimum=1)
    rate: float = option(0.5, "Share of something.", group="Tuning", above=0, below=1)
    text: tuple[str, ...] = option(("default",), "Calibration text.", group="Calibration")
    max_size: int | None = option(None, "Largest size.", group="Layout", parse=parse_size, default_text="no limit")
    sym: bool | None = option(None, "Symmetric codes.", group="Layout", flag="--sym/--asym")
    fast: bool = option(False, "Work fast.", group="Run control")
    tune: int = option(0, "Training epochs.", group="Tuning", minimum=0, flag_value=2, metavar="[EPOCHS]")
    source: Path | None = option(None, "Some file.", is_path=True)
    hidden: int = 3


def run(*arguments: str) -> tuple[Any, Sample | None]:
    results: list[Sample] = []

    @click.command(cls=Command)
    @settings_options(Sample)
    @device_option
    @out_option("Folder to write.")
    def command(**values: Any) -> None:
        results.append(make_settings(Sample, values))

    result = CliRunner().invoke(command, ["-o", "x", *arguments])
    return result, results[0] if results else None


def test_defaults_equal_those_of_the_class():
    assert run()[1] == Sample()


def test_values_arrive_with_their_types():
    line = "--method gptq --samples 3 --rate 0.25 --text a --text b=2 --max-size 2GB --asym --fast --tune --source f"
    _, settings = run(*line.split())
    assert settings == Sample("gptq", 3, 0.25, ("a", "b=2"), 2 * 10**9, False, True, 2, Path("f"))


@pytest.mark.parametrize(
    "line", ["--samples 0", "--rate 1", "--rate 0", "--method rtn", "--max-size two", "--tune=x", "--hidden 3"]
)
def test_a_value_out_of_bounds_is_a_usage_error(line):
    result, settings = run(*line.split())
    assert result.exit_code == 2 and settings is None
    assert line.split()[0].split("=")[0] in result.output


def test_help_lists_options_in_groups():
    text = run("--help")[0].output
    places = [text.index(f"\n{group}:") for group in ("Essentials", "Layout", "Calibration", "Tuning", "Resources")]
    assert places == sorted(places)
    assert "no limit" in text


WRITERS = [
    name for name in COMMANDS if "out" in {param.name for param in cli.get_command(click.Context(cli), name).params}
]


@pytest.mark.parametrize("name", WRITERS)
def test_every_command_with_out_refuses_a_path_below_a_file(name):
    params = {param.name: param for param in cli.get_command(click.Context(cli), name).params}
    assert isinstance(params["out"].type, OutPath)


def test_an_out_below_a_file_is_one_error_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in (["import", "x.gguf"], ["quantize", "x"], ["distill", "x", "--blocks", "1"], ["capture", "x"]):
        result = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "file/sub")])
        assert result.exit_code == 1 and result.output.count("\n") == 1
        assert f"{tmp_path / 'file'} is a file, not a folder; give another --out" in result.output


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("", "write it as 2GB"),
        ("0.1", "add a unit, such as 0.1GB"),
        ("2000000000", "add a unit"),
        ("\u0663GB", "write it as 2GB"),
        ("1e3GB", "write it as 2GB"),
        ("-1GB", "write it as 2GB"),
        ("1.2.3GB", "write it as 2GB"),
        ("9" * 500 + "GB", "write it as 2GB"),
    ],
)
@pytest.mark.parametrize("command", [["quantize", "x", "-o", "y"], ["plan", "x"], ["bench", "x", "--gpu-memory"]])
def test_a_size_without_a_unit_or_in_other_digits_is_refused(size, words, command):
    options = [*command, size] if command[-1] == "--gpu-memory" else [*command, "--max-size", size]
    result = CliRunner().invoke(cli, options)
    assert result.exit_code == 2 and words in result.output, result.output


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--method", "rtn", "--text", "no-such-file"], "--text"),
        (["--method", "rtn", "--samples", "4"], "--samples"),
        (["--method", "rtn", "--activation-memory", "2GB"], "--activation-memory"),
        (["--method", "rtn", "--tune", "1", "--damp-percent", "0.1"], "--damp-percent"),
        (["--method", "awq", "--error-correction", "0", "--damp-percent", "0.1"], "--damp-percent"),
    ],
)
def test_an_option_without_an_effect_is_refused_by_name(tiny_llama, tmp_path, options, name):
    result = CliRunner().invoke(cli, ["quantize", str(tiny_llama), "-o", str(tmp_path / "out"), "--dry-run", *options])
    assert result.exit_code == 1 and f"Error: {name}: has no effect with --method {options[1]}" in result.output


@pytest.mark.parametrize(
    "options", [["--method", "rtn", "--tune", "1", "--samples", "4"], ["--method", "awq", "--damp-percent", "0.1"]]
)
def test_an_option_with_an_effect_is_not_refused(tiny_llama, tmp_path, options):
    result = CliRunner().invoke(cli, ["quantize", str(tiny_llama), "-o", str(tmp_path / "out"), "--dry-run", *options])
    assert result.exit_code == 0, result.output


def test_a_dry_run_reads_the_calibration_text(tiny_llama, tmp_path):
    options = ["-o", str(tmp_path / "out"), "--dry-run", "--text", str(tmp_path / "gone.txt")]
    result = CliRunner().invoke(cli, ["quantize", str(tiny_llama), *options])
    assert result.exit_code == 1 and "gone.txt: no such file" in result.output
