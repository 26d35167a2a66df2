"""Check that a figure has one value in every command: python scripts/check_figures.py TEACHER RUN

RUN is the folder of a finished recipe, with student, report.json and variants, that began with TEACHER. The script runs
the commands on these models with --json and collects every perplexity, KL, size and score. A figure that two commands
print must be the same: floats to a factor of 1 ± 1e-5. If it is not, the exit code is 3.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.cli.console import emit, progress
from compress.cli.options import json_option
from compress.core.errors import GateFailure, QCompressError

Row = dict[str, Any]
TOLERANCE = 1e-5
COMMON = ("perplexity", "perplexity_se", "bytes", "parameters", "bits_per_weight")  # figures of one checkpoint
PAIRED = ("kl", "kl_se", "kl_low", "kl_high", "top1", "perplexity_ratio")  # figures of a checkpoint and its reference


def run(*arguments: object) -> Any:
    """What a command prints with --json. QCompressError if it fails."""
    words = [*map(str, arguments), "--json"]
    progress.print(f"qcompress {' '.join(words)}", markup=False)
    result = CliRunner().invoke(cli, words)
    if result.exit_code:
        raise QCompressError(f"qcompress {' '.join(words)}: exit code {result.exit_code}: {result.stderr[-500:]}")
    return json.loads(result.stdout)


def token_number(row: Row) -> int:
    """The start token of a row's windows; -1 without one."""
    return -1 if row["start_token"] is None else int(row["start_token"])


@dataclass
class Figures:
    """Every figure by its name, with the commands that printed it."""

    values: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def add(self, command: str, name: str, value: float | None) -> None:
        """Note the value that a command printed; None is no figure."""
        if value is not None:
            self.values.setdefault(name, []).append((command, value))

    def add_rows(self, command: str, rows: Sequence[Row], teacher: str | None = None) -> None:
        """Note the figures of `compare`'s rows: the first with role reference, and candidates."""
        reference = next(row["name"] for row in rows if row["role"] == "reference")
        for row in rows:
            tokens = f"of {row['name']} on {row['tokens']} tokens"
            for key in COMMON:
                self.add(command, f"{key} {tokens if key.startswith('perplexity') else row['name']}", row[key])
            self.add(command, "start token", token_number(row))
            if row["role"] == "candidate":
                for key in PAIRED:
                    self.add(command, f"{key} {tokens} from {reference}", row[key])
                self.add(command, f"perplexity of {reference} on {row['tokens']} tokens", row["reference_perplexity"])
            if teacher and "teacher_kl" in row and row["role"] != "teacher":
                for key in ("kl", "kl_se", "top1"):
                    self.add(command, f"{key} {tokens} from {teacher}", row[f"teacher_{key}"])

    def row(self, name: str) -> Row:
        """The row of a figure: its values, and whether they are the same."""
        (_, first), *others = self.values[name]
        same = all(math.isclose(first, value, rel_tol=TOLERANCE, abs_tol=1e-9) for _, value in others)
        return {"figure": name, "values": dict(self.values[name]), "count": 1 + len(others), "same": same}

    def rows(self) -> list[Row]:
        """The rows of all figures that appear at least twice."""
        return [self.row(name) for name, values in self.values.items() if len(values) > 1]


@dataclass(frozen=True)
class Models:
    """The models of a finished run, and the windows that its recipe measures on."""

    teacher: Path
    student: Path
    variants: tuple[Path, ...]
    report: Mapping[str, Any]

    @property
    def windows(self) -> tuple[str, ...]:
        """The options of the run's windows."""
        row = self.report["compare"][0]
        return ("--samples", str(row["n_samples"]), "--seq-len", str(row["seq_len"]))


def find_models(teacher: Path, folder: Path) -> Models:
    """The models of a finished run."""
    file = folder / "report.json"
    if not file.is_file():
        raise QCompressError(f"{file}: missing; run the recipe first")
    report = json.loads(file.read_text(encoding="utf-8"))
    variants = tuple(folder / row["name"] for row in report["compare"][1:])
    return Models(teacher, folder / "student", variants, report)


def distance_figures(figures: Figures, command: str, row: Row, teacher: str, student: str, when: str) -> None:
    """Note the figures of `distill` or `init-student`: KL and perplexities before or after training."""
    where = f"on {row['tokens_scored']} tokens"
    figures.add(command, f"perplexity of {teacher} {where}", row["perplexity_teacher"])
    figures.add(command, f"perplexity_se of {teacher} {where}", row["perplexity_teacher_se"])
    for key in ("perplexity", "perplexity_se"):
        figures.add(command, f"{key} of {student} {where}", row[key.replace("perplexity", f"perplexity_{when}")])
    for key in ("kl", "kl_se"):
        figures.add(command, f"{key} of {student} {where} from {teacher}", row[key.replace("kl", f"kl_{when}")])


def run_figures(figures: Figures, models: Models) -> None:
    """The figures of the run's report and of the student's record."""
    teacher, student = models.teacher.name, models.student.name
    report = models.report
    figures.add_rows("run", [report["teacher"], *report["compare"]], teacher)
    distance_figures(figures, "distill", report["distill"], teacher, student, "after")
    figures.add("distill", f"parameters {student}", report["distill"]["parameters"])
    figures.add("distill", f"bytes of {student} in 4 bits", report["distill"]["int4_bytes"])


def drift_figures(figures: Figures, models: Models) -> None:
    """The figures of compare and verify, with the run's windows and with two."""
    teacher, first = models.teacher.name, models.variants[0]
    rows = run("compare", models.student, *models.variants, "--teacher", models.teacher, *models.windows)
    figures.add_rows("compare --teacher", rows, teacher)
    rows = run("compare", models.student, *models.variants, *models.windows)
    figures.add_rows("compare", rows)
    for reference, candidate in ((models.teacher, models.student), (models.student, first)):
        for options in (models.windows, ("--samples", "2", *models.windows[2:])):
            row = run("verify", reference, candidate, *options)
            name = f"verify {candidate.name} {' '.join(options)}"
            for key in PAIRED:
                figures.add(
                    name, f"{key} of {candidate.name} on {row['tokens']} tokens from {reference.name}", row[key]
                )
            for key, model in (("perplexity", candidate), ("reference_perplexity", reference)):
                figures.add(name, f"perplexity of {model.name} on {row['tokens']} tokens", row[key])
            figures.add(name, "start token", token_number(row))


def size_figures(figures: Figures, models: Models, folder: Path) -> None:
    """The figures of quantize, plan, distill and init-student on the student's size and the teacher's perplexity."""
    teacher, student = models.teacher.name, models.student.name
    name = f"bytes of {student} in 4 bits"
    figures.add("quantize --dry-run", name, run("quantize", models.student, "-o", folder / "q", "--dry-run")["bytes"])
    taken = next(row for row in run("plan", models.student) if row.get("take"))
    figures.add("plan", name, taken["bytes"])
    for path in models.variants:
        settings = Checkpoint(path).record["settings"]
        if (settings["format"], settings["head_bits"], settings["embedding_bits"]) == ("awq", 16, 16):
            figures.add(f"files of {path.name}", name, Checkpoint(path).bytes)
    record = Checkpoint(models.student).record["settings"]
    blocks = ("--blocks", record["blocks"] or record["num_layers"])
    dry = run("distill", models.teacher, *blocks, "--dtype", record["dtype"], "-o", folder / "d", "--dry-run")
    samples, seq_len = models.windows[1], models.windows[3]
    sizes = ("--eval-samples", samples, "--eval-seq-len", seq_len, "--dtype", record["dtype"])
    row = run("init-student", models.teacher, *blocks, *sizes, "-o", folder / "cut")
    distance_figures(figures, "init-student", row, teacher, "cut", "before")
    for command, one in (("distill --dry-run", dry), ("init-student", row)):
        figures.add(command, name, one["int4_bytes"])
        figures.add(command, f"parameters {student}", one["parameters"])
    verified = run("verify", models.teacher, folder / "cut", "--samples", samples, "--seq-len", seq_len)
    for key in ("kl", "kl_se"):
        figures.add("verify cut", f"{key} of cut on {verified['tokens']} tokens from {teacher}", verified[key])
    figures.add("verify cut", f"perplexity of cut on {verified['tokens']} tokens", verified["perplexity"])


def history_figures(figures: Figures, models: Models, folder: Path) -> None:
    """The figures of a history, and those that watch measures again."""
    first, file = models.variants[0], folder / "history.sqlite"
    run("verify", models.student, first, *models.windows, "--history", file, "--tag", "v1")
    changes = {"--baseline": "v1", "--history": file, "--reference": models.student, "-o": folder / "watch"}
    rows = run("watch", first, "--force", *(word for pair in changes.items() for word in pair))
    tokens = run("history", file)[0]["tokens"]
    names = {"kl": f"kl of {first.name} on {tokens} tokens from {models.student.name}"}
    names["perplexity"] = f"perplexity of {first.name} on {tokens} tokens"
    for row in rows:
        for side in ("before", "now"):
            figures.add(f"watch, {side}", names[row["kind"]], row[side])
            figures.add(
                f"watch, {side}", names[row["kind"]].replace(row["kind"], f"{row['kind']}_se", 1), row[f"{side}_se"]
            )
    for number, row in enumerate(run("history", file)):
        for kind, name in names.items():
            if kind in row:
                figures.add(f"history {number}", name, row[kind])


@click.command(help=__doc__)
@click.argument("teacher", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def main(teacher: Path, folder: Path, as_json: bool) -> None:
    models, figures = find_models(teacher, folder), Figures()
    run_figures(figures, models)
    with tempfile.TemporaryDirectory() as work:
        drift_figures(figures, models)
        size_figures(figures, models, Path(work))
        history_figures(figures, models, Path(work))
    rows = figures.rows()
    wrong = [row for row in rows if not row["same"]]
    shown = [{key: str(value) if key == "values" else value for key, value in row.items()} for row in wrong or rows]
    emit(rows if as_json else shown, as_json=as_json)
    if wrong:
        raise GateFailure(
            f"{len(wrong)} of {len(rows)} figures differ; the first: {wrong[0]['figure']}: {wrong[0]['values']}"
        )


if __name__ == "__main__":
    main()
