"""Changes in words, and the error for results that got worse."""

from collections.abc import Sequence

from compress.core.errors import GateFailure
from compress.core.rows import ChangeRow

CHANGES = {"points": "{:+.1f} points", "nats": "{:+.4f} nats", "%": "{:+.2f} %"}


def format_change(row: ChangeRow) -> str:
    """The change with its unit, such as "+0.5 points", or "n/a" if no item was scored both times."""
    return "n/a" if row["change"] is None else CHANGES[row["unit"]].format(row["change"])


def check_falls(rows: Sequence[ChangeRow], tag: str) -> None:
    """Raises GateFailure if a result got worse. The error names each such result and its change."""
    fallen = [row for row in rows if row["fell"]]
    if fallen:
        changes = ", ".join(f"{row['kind']} {format_change(row)}" for row in fallen)
        name = fallen[0]["name"]
        raise GateFailure(
            f"{name} got worse since {tag}: {changes}; restore the old checkpoint or store a new baseline"
        )
