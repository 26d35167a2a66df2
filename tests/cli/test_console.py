import gc
import io
import json

import pytest
from rich.console import Console

from compress.cli.console import LINE_SECONDS, Reporter, emit, imports, print_written, size_fact


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_collection_is_as_before_after_the_imports(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with imports():
            assert not gc.isenabled()
        assert gc.isenabled() is collecting
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


def make_reporter(*, terminal: bool) -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    return Reporter(Console(file=file, force_terminal=terminal, width=200, highlight=False, color_system=None)), file


BLOCKS = [{"block": f"{index}/6", "error": 0.25, "seconds": 90.0} for index in range(1, 7)]


def test_without_a_terminal_every_row_is_one_plain_line():
    report, file = make_reporter(terminal=False)
    report({"bytes": 1_170_000_000, "group_size": 64, "note": None})
    report(BLOCKS[0])
    assert file.getvalue().splitlines() == [
        "size 1.17 GB  group size 64",
        "block 1 of 6  error 0.25  time 1 min 30 s",
    ]


def test_a_fast_counter_prints_its_first_its_last_and_few_between(monkeypatch):
    clock = iter(range(len(BLOCKS)))
    monkeypatch.setattr("time.monotonic", lambda: 100 + (LINE_SECONDS / 2) * next(clock))
    report, file = make_reporter(terminal=False)
    for row in BLOCKS:
        report(row)
    assert [line.split("  ")[0] for line in file.getvalue().splitlines()] == [
        f"block {index} of 6" for index in (1, 3, 5, 6)
    ]


def test_plain_lines_begin_at_once_and_have_the_time_left(monkeypatch):
    clock = iter(range(100, 200, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report, file = make_reporter(terminal=False)
    for done in range(5):
        report({"items": f"{done}/4"})
    report({"items": "2/4", "eta": 7.0})
    assert file.getvalue().splitlines() == [
        "items 0 of 4",
        "items 1 of 4  time left 30 s",
        "items 2 of 4  time left 20 s",
        "items 3 of 4  time left 10 s",
        "items 4 of 4",
        "items 2 of 4  time left 7.0 s",
    ]


def test_a_counter_that_starts_again_has_a_new_time_left(monkeypatch):
    clock = iter(range(100, 200, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report, file = make_reporter(terminal=False)
    for done in (3, 4, 1, 2):
        report({"items": f"{done}/4"})
    assert file.getvalue().splitlines()[2:] == ["items 1 of 4", "items 2 of 4  time left 20 s"]


def test_a_terminal_shows_one_bar_per_counter_and_other_rows_above_it():
    report, file = make_reporter(terminal=True)
    for row in BLOCKS:
        report(row)
    report({"checkpoint": "qwen-awq", "items": "3/75"})
    report({"note": "a line"})
    report.close()
    last = [line for line in file.getvalue().splitlines() if " of " in line][-2:]
    assert "block" in last[0] and "6 of 6" in last[0] and "error 0.25" in last[0]
    assert "qwen-awq items" in last[1] and "3 of 75" in last[1]
    assert "note a line" in file.getvalue() and report.bars is None


def test_a_second_pass_over_the_same_name_begins_a_new_bar():
    report, file = make_reporter(terminal=True)
    for row in (BLOCKS[5], BLOCKS[0]):
        report(row)
    report.close()
    last = [line for line in file.getvalue().splitlines() if " of " in line][-2:]
    assert "6 of 6" in last[0] and "1 of 6" in last[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_nothing_and_verbose_prints_every_row(terminal):
    report, file = make_reporter(terminal=terminal)
    report.quiet = True
    for row in BLOCKS:
        report(row)
    assert file.getvalue() == ""
    report.quiet, report.verbose = False, True
    for row in BLOCKS:
        report(row)
    report.close()
    assert all(f"block {index} of 6  error 0.25  time" in file.getvalue() for index in range(1, 7))


def test_tables_show_words_and_units_and_json_keeps_keys_and_numbers(capsys):
    row = {"name": "qwen", "bytes": 83_100_000, "top1": 0.953, "sym": False, "stopped": None, "stages": [1]}
    emit(row, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name             qwen",
        "size             83.1 MB",
        "top-1 agreement  95.3 %",
        "symmetric        no",
    ]
    emit([row, row], as_json=False)
    assert capsys.readouterr().out.split("\n")[0].split() == ["name", "size", "top-1", "agreement", "symmetric"]
    emit(row, as_json=True)
    assert '"bytes": 83100000' in capsys.readouterr().out


def test_the_closing_line_has_the_output_its_size_and_the_next_command(capsys):
    print_written("qwen-awq", size_fact(1_170_000_000, 3_087_000_000), "checks passed", next_command="qcompress check")
    print_written("qwen-awq", as_json=True)
    assert capsys.readouterr().out == ("Wrote qwen-awq (1.17 GB, 38 % of FP16, checks passed). Next: qcompress check\n")


@pytest.mark.parametrize(("width", "columns"), [(200, True), (40, False)])
def test_a_narrow_terminal_shows_a_block_of_lines_per_row(monkeypatch, width, columns):
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=width, highlight=False, color_system=None)
    monkeypatch.setattr("compress.cli.console.results", terminal)
    emit([{"name": name, "perplexity": 17.25, "path": "p" * 30} for name in ("first", "second")], as_json=False)
    lines = file.getvalue().splitlines()
    assert any("first" in line and "17.25" in line for line in lines) is columns
    assert all(len(line.rstrip()) <= width or "p" * 30 in line for line in lines)


@pytest.mark.parametrize(("rows", "shown"), [([0, 0], False), ([0, 2], True), ([3, 0], True)])
def test_a_count_is_a_column_only_if_a_row_is_above_0(capsys, rows, shown):
    emit([{"name": f"m{index}", "check_errors": count} for index, count in enumerate(rows)], as_json=False)
    assert ("errors of check" in capsys.readouterr().out) is shown


def test_counts_of_0_and_none_stay_in_json_but_not_for_people(capsys):
    row = {"eight_bit": 0, "more_damping": 0, "scaled": None, "linears": 210}
    emit(row, as_json=False)
    assert capsys.readouterr().out == "quantized linears  210\n"
    emit(row, as_json=True)
    assert json.loads(capsys.readouterr().out) == row
    report, file = make_reporter(terminal=False)
    report({**row, "eight_bit": 3})
    assert file.getvalue() == "linears in 8 bits 3  quantized linears 210\n"
