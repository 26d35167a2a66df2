"""Datasets of the Hugging Face hub by name: ORG/NAME[:CONFIG[:SPLIT]], streamed.

Only the first ROWS rows are read, because a hub dataset may be larger than the disk. The digest covers these rows.
"""

import re
from collections.abc import Iterator

from calibration.document import Document, row_document
from calibration.errors import CalibrationError

ROWS = 10_000
NAME = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]*)(:(?P<split>[\w.-]+))?)?")


def is_hub_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def read_hub(name: str) -> Iterator[Document]:
    """The first ROWS rows of a hub dataset. The split is train if `name` has none.

    Raises CalibrationError if the dataset cannot be read, for example offline.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(f"calibration.hub: {name!r} is not ORG/NAME[:CONFIG[:SPLIT]]")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CalibrationError(
            f"{name}: no such file, and reading a hub dataset needs the package `datasets`; "
            "run pip install 'qcompress[hub]', or name a local file"
        ) from error
    try:
        split = parts["split"] or "train"
        rows = load_dataset(parts["path"], parts["config"] or None, split=split, streaming=True).take(ROWS)
        numbered = list(enumerate(rows, 1))
    except Exception as error:  # the network, the hub and its client raise many types; the cure is the same
        reason = f"{type(error).__name__}: {error}"
        raise CalibrationError(
            f"{name}: no such file, and the hub dataset cannot be read ({reason:.200}); go online or name a local file"
        ) from error
    for number, row in numbered:
        yield row_document(row, f"{name}: row {number}")
