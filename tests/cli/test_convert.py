import json

from click.testing import CliRunner

from compress.cli import cli
from compress.cli.convert import describe_error


def invoke(*arguments):
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)])


def test_the_error_of_rounded_weights_is_printed_and_in_the_json(rounded, tmp_path):
    result = invoke(rounded, "--to", "gptq", "--allow-error", "-o", tmp_path / "one")
    assert result.exit_code == 0 and "not exact: 14 tensors in gptq, largest error" in result.stdout
    result = invoke(rounded, "--to", "gptq", "--allow-error", "-o", tmp_path / "two", "--json")
    (error,) = json.loads(result.stdout)["errors"]
    assert error["tensors"] == 14 and error["relative_error"] > 0


def test_an_exact_conversion_prints_no_error(rounded, tmp_path):
    result = invoke(rounded, "--to", "compressed-tensors", "-o", tmp_path / "out")
    assert result.exit_code == 0 and "not exact" not in result.stdout


def test_a_size_without_a_unit_is_a_usage_error_with_a_cure(rounded, tmp_path):
    result = invoke(rounded, "--to", "gguf", "--max-size", "100", "-o", tmp_path / "out.gguf")
    assert result.exit_code == 2 and "add a unit, such as 100GB" in result.stderr


def test_an_error_line_has_both_measures():
    error = {"type": "Q8_0", "tensors": 2, "largest_error": 0.00214, "relative_error": 0.0053}
    line = "not exact: 2 tensors in Q8_0, largest error 0.00214, relative error 0.5 % (RMS)"
    assert describe_error(error) == line and "1 tensor in" in describe_error(error | {"tensors": 1})
