"""The figures of a comparison as text, for the terminal and for the HTML report.

Only this module sets digits and units for the figures of a `CompareRow`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.core.rows import BlockRow, CompareRow
from compress.core.units import format_bytes


@dataclass(frozen=True)
class Cell:
    """One figure as text: value, standard error, a second figure in small print, and 95 % interval.

    A part that does not exist is an empty text.
    """

    text: str
    error: str = ""
    small: str = ""
    interval: str = ""

    def __str__(self) -> str:
        """The cell as the terminal shows it: the text, followed by the standard error if it is known."""
        return f"{self.text} ± {self.error}" if self.error else self.text


@dataclass(frozen=True)
class Figure:
    """One column of a comparison. `cell` formats the figure of a row.

    In this column, the row with the best value of the key `best` is bold. `of_reference` is True if the reference has
    the figure. `of_teacher` is True if the figure compares a model with the teacher; then the reference has the figure
    too.
    """

    cell: Callable[[CompareRow], Cell]
    best: str | None = None
    of_reference: bool = True
    of_teacher: bool = False

    def applies(self, row: CompareRow) -> bool:
        """Whether a row has this figure. The reference, for example, has no KL."""
        if self.of_teacher:
            return "teacher_kl" in row and row["role"] != "teacher"
        return self.of_reference or row["role"] == "candidate"


def with_error(value: float, error: float | None, digits: int) -> str:
    """A value with its standard error, "35.62 ± 2.61", or only the value if `error` is None."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def estimate(
    value: float, error: float | None, digits: int, ends: tuple[float | None, float | None] | None = None
) -> Cell:
    """A cell with a value, and with its standard error and 95 % interval where these are not None."""
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
    """The figures of a row, by column. Figures that do not apply to the row are None."""
    return {name: figure.cell(row) if figure.applies(row) else None for name, figure in FIGURES.items()}


def columns(rows: Sequence[CompareRow]) -> list[str]:
    """The names of all columns in which at least one row has a figure."""
    return [name for name, figure in FIGURES.items() if any(figure.applies(row) for row in rows)]


def terminal_row(row: CompareRow) -> dict[str, object]:
    """A row of the terminal's table: name, format, figures as text, and the verdict if the row has one."""
    figures = {name: None if cell is None else str(cell) for name, cell in cells(row).items()}
    verdict: dict[str, object] = {}
    if "passed" in row:
        verdict = {"passed": row.get("unsure", True) if row["passed"] else False, "limit": row.get("reason")}
    return {"checkpoint": row["name"], "format": row["format"], **figures, **verdict}


def terminal_block(row: BlockRow) -> dict[str, object]:
    """The row of a block, as the terminal's table shows it."""
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
