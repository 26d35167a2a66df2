"""A fault is one reason to refuse a checkpoint. `refuse` raises the first fault as an error."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import QCompressError


@dataclass(frozen=True)
class Fault:
    """One reason to refuse a checkpoint: the file, the key in it, what is wrong, and what to do.

    `file` is "" if the whole folder is at fault. `key` is "" if the whole file is at fault.
    """

    file: str
    key: str
    text: str
    cure: str

    def line(self, folder: Path) -> str:
        """The error line: the path, the key, what is wrong, what to do."""
        return ": ".join(part for part in (str(folder / self.file), self.key, f"{self.text}; {self.cure}") if part)


Faults = Iterator[Fault]


def refuse(folder: Path, faults: Iterable[Fault]) -> None:
    """Raises QCompressError with the first fault, if there is one."""
    for fault in faults:
        raise QCompressError(" ".join(fault.line(folder).split()))
