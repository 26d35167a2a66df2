"""A model in one .gguf file or in the parts that llama.cpp's gguf-split makes (NAME-00001-of-00003.gguf).

Only the first part has the metadata; each part has its own tensors. The path of any part opens the whole model.
"""

import re
from pathlib import Path
from typing import Any

from compress.checkpoint.gguf.reader import GgufFile, GgufTensor, read_file, refusal
from compress.core.errors import QCompressError

PART = re.compile(r"(?P<name>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
SPLIT = ("split.no", "split.count", "split.tensors.count")


class GgufModel:
    """All parts of a model: `files` in order, `metadata` without the keys of the split, `tensors` of all parts."""

    def __init__(self, path: Path):
        """Raises QCompressError if a part is missing or damaged, or belongs to another model."""
        first = read_file(path)
        count = first.metadata.get("split.count", 1)
        self.path, self.left_out = path, 0
        self.files = part_paths(path, count) if is_number(count) and count > 1 else [path]
        parts = [first if file == path else read_part(file, self.files) for file in self.files]
        self.metadata = {key: value for key, value in parts[0].metadata.items() if key not in SPLIT}
        self.tensors: dict[str, GgufTensor] = {}
        for index, part in enumerate(parts):
            self._add(index, part)
        if len(parts) > 1:
            self._check_count(parts[0].metadata.get("split.tensors.count"))

    def _add(self, index: int, part: GgufFile) -> None:
        number, count = (part.metadata.get(key) for key in SPLIT[:2])
        if len(self.files) > 1 and (number, count) != (index, len(self.files)):
            raise QCompressError(
                f"{part.path}: its header has split.no {number} of {count}, but its name is part {index + 1} of "
                f"{len(self.files)}; fetch the parts again"
            )
        for key, value in part.metadata.items():
            if key not in SPLIT and not same_value(value, self.metadata.get(key)):
                raise refusal(part.path, f"{key} differs from {self.files[0].name}", "fetch the parts again")
        for name, tensor in part.tensors.items():
            if name in self.tensors:
                raise refusal(part.path, f"{name} is also in {self.tensors[name].file.name}", "fetch the parts again")
            self.tensors[name] = tensor

    def _check_count(self, expected: Any) -> None:
        if expected != len(self.tensors):
            raise QCompressError(
                f"{self.path}: the {len(self.files)} parts hold {len(self.tensors)} tensors, but split.tensors.count "
                f"is {expected}; fetch the parts again"
            )

    def leave_out(self, blocks: range) -> None:
        """Drop the tensors of some blocks. `left_out` is the number of these tensors."""
        dropped = {name for name in self.tensors for block in blocks if name.startswith(f"blk.{block}.")}
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in dropped}
        self.left_out = len(dropped)

    def fail(self, problem: str, cure: str = "fetch the file again") -> QCompressError:
        """The error for a problem in this model: one line with the path, the problem and the cure."""
        return refusal(self.path, problem, cure)


def part_paths(path: Path, count: int) -> list[Path]:
    """The files of a split model, in order. Raises QCompressError if the name of `path` is not that of a part."""
    match = PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise QCompressError(
            f"{path}: is one of {count} parts, so its name must end in -0000N-of-{count:05d}.gguf; "
            "put all parts in one folder under their original names"
        )
    return [path.with_name(f"{match['name']}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]


def read_part(file: Path, files: list[Path]) -> GgufFile:
    """One part of a split model. Raises QCompressError if it is missing."""
    if not file.is_file():
        raise QCompressError(f"{file}: missing; put all {len(files)} parts of the model in {file.parent}")
    return read_file(file)


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def same_value(one: Any, other: Any) -> bool:
    """Whether two metadata values are equal, type included; arrays element by element."""
    if one is other or type(one) is not type(other):
        return one is other
    return one.tobytes() == other.tobytes() if hasattr(one, "tobytes") else bool(one == other)
