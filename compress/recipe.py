"""Recipes: a whole job in one YAML file, checked before anything runs.

teacher: models/teacher          a checkpoint directory
out: runs/first                  everything is written below it
distill: {blocks: 20, ...}       the options of `qcompress distill`, with underscores; for more than one stage
                                 stages: [{name: general, ...}, {name: task, replay: 0.25, ...}]
quantize:
  - {name: awq, method: awq}     the options of `qcompress quantize`, one entry per variant
verify: {max_kl: 0.3}            limits on every variant against the student
"""

import difflib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from compress.core.config import DEFAULT_FORMAT, QuantizeConfig, parse_size
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, StageConfig


class RecipeSection(BaseModel):
    """A section of a recipe: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def options(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass of settings as pydantic's: (type, default)."""
    hints = get_type_hints(settings)
    defaults = {field.name: ... if field.default is MISSING else field.default for field in fields(settings)}
    return {name: (hints[name], default) for name, default in defaults.items()}


StagePart = create_model("StagePart", __base__=RecipeSection, **options(StageConfig))
OPTIONS = options(DistillConfig) | {"stages": (list[StagePart], [])}  # type: ignore[valid-type]
DistillPart = create_model(
    "DistillPart", __base__=RecipeSection, **OPTIONS
)  # exactly the fields of the command's own settings


class QuantizePart(RecipeSection):
    """One 4-bit variant of the student."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")
    method: str
    format: str | None = None
    group_size: int | str = "auto"
    sym: bool | None = None
    text: list[str] = ["default"]
    samples: int = 128
    seq_len: int = 512
    damp_percent: float = QuantizeConfig.damp_percent
    mismatch: float = QuantizeConfig.mismatch
    compute_dtype: str = QuantizeConfig.compute_dtype
    head_bits: int = 16
    embedding_bits: int = 16
    eight_bit: list[str] = []
    tune: int = 0
    max_size: str | None = None
    seed: int = 0
    dtype: Literal["float16", "bfloat16"] | None = None

    def config(self) -> QuantizeConfig:
        """The job's settings. ValueError for values that cannot be."""
        return QuantizeConfig(
            method=self.method,
            format=self.format or DEFAULT_FORMAT.get(self.method, ""),
            group_size=0 if self.group_size == "auto" else int(self.group_size),
            sym=self.sym,
            damp_percent=self.damp_percent,
            mismatch=self.mismatch,
            compute_dtype=self.compute_dtype,
            samples=self.samples,
            seq_len=self.seq_len,
            seed=self.seed,
            max_size=parse_size(self.max_size) if self.max_size else None,
            head_bits=self.head_bits,
            embedding_bits=self.embedding_bits,
            eight_bit=tuple(self.eight_bit),
            tune=self.tune,
        )


class VerifyPart(RecipeSection):
    """The text that judges, and the limits that every variant must keep against the student."""

    text: str = "heldout"
    windows: int = Field(default=24, ge=1)
    seq_len: int = Field(default=512, ge=8)
    max_kl: float | None = Field(default=None, ge=0)
    max_perplexity_ratio: float | None = Field(default=None, ge=0)


class Recipe(RecipeSection):
    """A teacher, and what becomes of it below `out`."""

    teacher: Path
    teacher_config: Path | None = Field(None, description="config.json of the teacher, for planning without weights")
    student_config: Path | None = Field(None, description="config.json of distill.student, likewise")
    out: Path
    distill: DistillPart | None = None  # type: ignore[valid-type]
    quantize: list[QuantizePart] = []
    verify: VerifyPart = VerifyPart()

    def distill_config(self) -> DistillConfig | None:
        """The distillation's settings, None where nothing is distilled. ValueError for values that cannot be."""
        return None if self.distill is None else DistillConfig(**self.distill.model_dump())  # type: ignore[attr-defined]

    def variant_path(self, part: QuantizePart) -> Path:
        return self.out / part.name

    @property
    def student_path(self) -> Path:
        """The FP16 model that is quantized: the distilled student, or the teacher where nothing is distilled."""
        return self.out / "student" if self.distill else self.teacher


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. QCompressError names the file, the key and the nearest known one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QCompressError(f"{path}: cannot be read ({error.__class__.__name__}); give a YAML recipe") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise QCompressError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise QCompressError(f"{path}: holds no keys; see recipes/quickstart.yaml")
    try:
        recipe = Recipe.model_validate(value)
        recipe.distill_config()
        for part in recipe.quantize:
            part.config()
    except ValidationError as error:
        raise QCompressError(f"{path}: {first_error(error)}") from None
    except ValueError as error:
        raise QCompressError(f"{path}: {error}") from None
    names = [part.name for part in recipe.quantize]
    taken = ("student", "stages.json", "report.json", "report.html")
    if len({*names, *taken}) < len(names) + len(taken):
        raise QCompressError(
            f"{path}: quantize names must differ from one another and from {', '.join(taken)}: {names}"
        )
    return recipe


def parse_stage(text: str) -> dict[str, Any]:
    """One stage as in a recipe, on one line: "{name: task, data: [chats.jsonl], steps: 100}", braces or not.

    QCompressError names the key that is wrong and the nearest known one.
    """
    try:
        value = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
        return StagePart.model_validate(value).model_dump()
    except yaml.YAMLError:
        cure = "write it as in a recipe: {name: task, data: [chats.jsonl], steps: 100}"
        raise QCompressError(f"--stage {text!r}: is not valid YAML; {cure}") from None
    except ValidationError as error:
        raise QCompressError(f"--stage {text!r}: {first_error(error, StagePart)}") from None


def first_error(error: ValidationError, within: type[RecipeSection] | None = None) -> str:
    """The first mistake in one line, with the nearest known key for one that is unknown; `within` a part, or all."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{place}: {first['msg']}"
    known = known_keys(first["loc"][:-1]) if within is None else list(within.model_fields)
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    return f"unknown key {place}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


def known_keys(place: tuple[Any, ...]) -> list[str]:
    parts: dict[str, type[RecipeSection]] = {"distill": DistillPart, "quantize": QuantizePart, "verify": VerifyPart}
    section = parts.get(str(place[0]), Recipe) if place else Recipe
    return list(StagePart.model_fields if place[:2] == ("distill", "stages") else section.model_fields)
