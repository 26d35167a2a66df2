"""The figures of a comparison as text: one table for the terminal and the HTML report.

Only this module decides how many digits and which unit a figure of a `CompareRow` is shown with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.core.rows import BlockRow, CompareRow
from compress.core.units import format_bytes


@dataclass(frozen=True)
class Cell:
    """One figure: its text, its standard error, a second figure in small print, its 95 % interval. "" means none."""

    text: str
    error: str = ""
    small: str = ""
    interval: str = ""

    def __str__(self) -> str:
        """The cell in a terminal: text, and the error if there is one."""
        return f"{self.text} ± {self.error}" if self.error else self.text


@dataclass(frozen=True)
class Figure:
    """One column: how to format it, and the key whose best value is bold.

    `of_reference`: whether a reference has it. `of_teacher`: it compares with the teacher, so the reference has it too.
    """

    cell: Callable[[CompareRow], Cell]
    best: str | None = None
    of_reference: bool = True
    of_teacher: bool = False

    def applies(self, row: CompareRow) -> bool:
        """Whether the row has this figure."""
        if self.of_teacher:
            return "teacher_kl" in row and row["role"] != "teacher"
        return self.of_reference or row["role"] == "candidate"


def with_error(value: float, error: float | None, digits: int) -> str:
    """ "35.62 ± 2.61"; without the error if it is None."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def estimate(
    value: float, error: float | None, digits: int, ends: tuple[float | None, float | None] | None = None
) -> Cell:
    """A cell with a standard error and a 95 % interval, as far as they exist."""
    low, high = ends or (None, None)
    return Cell(
        f"{value:.{digits}f}",
        error="" if error is None else f"{error:.{digits}f}",
        interval="" if low is None or high is None else f"{low:.3f} to {high:.3f}",
    )


FIGURES: dict[str, Figure] = {
    "method": Figure(lambda row: Cell(row["method"] or "–", small=f"in {row['format']}")),
    "size": Figure(lambda row: Cell(format_bytes(row["bytes"])), best="bytes"),
    "bits per weight": Figure(
        lambda row: Cell(f"{row['bits_per_weight']:.2f}", small=f"{row['bits_per_parameter']:.2f}")
    ),
    "scored tokens": Figure(lambda row: Cell(f"{row['tokens']:,}")),
    "perplexity": Figure(lambda row: estimate(row["perplexity"], row["perplexity_se"], 2)),
    "perplexity ratio": Figure(
        lambda row: estimate(
            row["perplexity_ratio"],
            row["perplexity_ratio_se"],
            3,
            (row.get("perplexity_ratio_low"), row.get("perplexity_ratio_high")),
        ),
        of_reference=False,
    ),
    "KL, nats": Figure(
        lambda row: estimate(row["kl"], row["kl_se"], 4, (row.get("kl_low"), row.get("kl_high"))),
        best="kl",
        of_reference=False,
    ),
    "KL from teacher, nats": Figure(
        lambda row: estimate(
            row["teacher_kl"], row["teacher_kl_se"], 4, (row.get("teacher_kl_low"), row.get("teacher_kl_high"))
        ),
        of_teacher=True,
    ),
    "KL, 99th percentile": Figure(lambda row: Cell(f"{row['kl_p99']:.3f}"), of_reference=False),
    "top-1 agreement": Figure(lambda row: Cell(f"{100 * row['top1']:.1f} %"), best="top1", of_reference=False),
    "top-1 agreement with teacher": Figure(lambda row: Cell(f"{100 * row['teacher_top1']:.1f} %"), of_teacher=True),
    "top-5 agreement": Figure(lambda row: Cell(f"{100 * row['top5']:.1f} %"), best="top5", of_reference=False),
}


def cells(row: CompareRow) -> dict[str, Cell | None]:
    """The figures of a row by column; None for a model's comparison with itself, and without a teacher."""
    return {name: figure.cell(row) if figure.applies(row) else None for name, figure in FIGURES.items()}


def columns(rows: Sequence[CompareRow]) -> list[str]:
    """The columns that at least one row has."""
    return [name for name, figure in FIGURES.items() if any(figure.applies(row) for row in rows)]


def terminal_row(row: CompareRow) -> dict[str, object]:
    """A row for the terminal: name, format and figures in words and units, and the verdict if there is one."""
    figures = {name: None if cell is None else str(cell) for name, cell in cells(row).items()}
    verdict: dict[str, object] = {}
    if "passed" in row:
        verdict = {"passed": row.get("unsure", True) if row["passed"] else False, "limit": row.get("reason")}
    return {"checkpoint": row["name"], "format": row["format"], **figures, **verdict}


def terminal_block(row: BlockRow) -> dict[str, object]:
    """A located block for the terminal."""
    excess = row.get("excess")
    return {
        "block": row["block"],
        "path": row["name"],
        "gain (1 is exact)": f"{row['gain']:.3f}",
        "relative squared error": f"{row['error']:.4f}",
        "error over recorded": None if excess is None else f"{excess:.2f}",
        "outlier score": f"{row['score']:.1f}",
        "outlier": row["outlier"],
        "worst linear": row.get("linear"),
    }
