"""What a distillation is told: flags, fields, recipe keys and the record in the checkpoint have the same names."""

from dataclasses import dataclass, fields
from math import ceil, isfinite
from typing import Any

DTYPES = ("float16", "bfloat16")
STEPS = 100
SHAPE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")


@dataclass(frozen=True)
class StudentConfig:
    """Which student: an existing checkpoint, or so many of the teacher's blocks, or a shape cut out of the teacher.

    None of a shape is the teacher's own. `blocks` alone is `num_layers` alone.
    """

    student: str | None = None
    blocks: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None

    def check(self) -> None:
        shape = {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}
        given = [name for name in ("student", "blocks") if getattr(self, name) is not None]
        if len(given) + bool(shape) != 1:
            found = ", ".join([*given, *shape]) or "nothing"
            raise ValueError(
                f"{found} given: the student is one of --student, --blocks, or a shape such as --num-layers"
            )
        for name, value in {"blocks": self.blocks, **shape}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be 1 or more")

    def sizes(self) -> dict[str, int | None]:
        """The shape by the names of model.width.Shape."""
        return {name: getattr(self, name) for name in SHAPE} | ({"num_layers": self.blocks} if self.blocks else {})


@dataclass(frozen=True)
class TrainConfig:
    """How it learns. One step is `batch_size` windows of `seq_len` tokens; `tokens` says steps in another unit."""

    alpha: float = 0.7
    temperature: float = 2.0
    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 4
    seq_len: int = 256
    learning_rate: float = 3e-4
    eval_every: int = 50
    seed: int = 0

    def check(self) -> None:
        if self.steps is not None and self.tokens is not None:
            raise ValueError(f"steps={self.steps} and tokens={self.tokens}: give one of them")
        for name in ("steps", "tokens", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be 1 or more")
        if self.seq_len < 2:
            raise ValueError(f"seq_len={self.seq_len}: a window needs 2 tokens, one to read and one to predict")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: must be from 0 (cross-entropy only) to 1 (KL only)")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            if not (value > 0 and isfinite(value)):
                raise ValueError(f"{name}={value}: must be above 0 and finite")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.tokens is not None:
            return ceil(self.tokens / (self.batch_size * self.seq_len))
        return STEPS if self.steps is None else self.steps

    @property
    def total_tokens(self) -> int:
        """Tokens that the student reads in the whole run."""
        return self.total_steps * self.batch_size * self.seq_len


@dataclass(frozen=True)
class DistillConfig(StudentConfig, TrainConfig):
    """All of it. `data` are calibration sources ("NAME" or "FILE", with "=WEIGHT"); `heldout` is never trained on."""

    data: tuple[str, ...] = ("default",)
    heldout: str = "heldout"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        StudentConfig.check(self)
        TrainConfig.check(self)
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        if not self.data:
            raise ValueError("data: 0 sources; give a name or a file")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}: checkpoints are written in {' or '.join(DTYPES)}")

    def settings(self) -> dict[str, Any]:
        """What the record keeps: every field, and the steps that came of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total_steps": self.total_steps}
