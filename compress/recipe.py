"""Recipes: one YAML file describes a whole job. It is checked before anything runs.

teacher: models/teacher          a folder or a hub id
out: runs/first                  the folder for all outputs
distill: {blocks: 20, ...}       the options of `qcompress distill`, with underscores; several training stages are
                                 stages: [{name: general, ...}, {name: task, replay: 0.25, ...}]
quantize:
  - {name: awq, method: awq}     the options of `qcompress quantize`, one entry per variant; {backend: autoawq} runs
                                 another quantizer
verify: {max_kl: 0.3}            evaluation text, and limits on every variant's drift from the student
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from calibration.errors import CalibrationError
from calibration.files import check_regular, read_text
from calibration.suggest import did_you_mean
from compress.core.backend_config import BackendChoice, BackendConfig, make_config
from compress.core.config import AUTO, EVAL_SAMPLES, EVAL_SEQ_LEN, METHODS, QuantizeConfig, parse_size
from compress.core.errors import QCompressError
from compress.core.options import METADATA
from compress.distill.config import DistillConfig, StageConfig

MAX_BYTES, MAX_VALUES = 1_000_000, 10_000  # of a recipe: a long one has 100 lines
OUTPUTS = ("eval", "results", "student", "stages.json", "report.json", "report.html")  # names in the folder
SHAPES = {  # pydantic's error type -> the YAML to write
    "list_type": "a list, one entry per line, each after a dash",
    "model_type": "keys with values, such as {name: value}, or remove the key",
    "invalid_key": "a word as the key, not a number",
}


def size_of(value: Any) -> Any:
    """The bytes in a text such as 8GB. Any other value is returned unchanged, so that pydantic checks it."""
    return parse_size(value) if isinstance(value, str) else value


YAML_TYPES = {list: "a list", type(None): "empty"}


class RecipeSection(BaseModel):
    """A section of a recipe. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def options(settings: Any, skip: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a settings class, as pydantic needs them: (type, default) by name.

    Text is parsed as on the command line.
    """
    hints = get_type_hints(settings)
    kept = [field for field in fields(settings) if field.name not in skip]
    defaults = {field.name: ... if field.default is MISSING else field.default for field in kept}
    return {field.name: (recipe_type(field, hints[field.name]), defaults[field.name]) for field in kept}


def recipe_type(field: dataclasses.Field[Any], hint: Any) -> Any:
    """The type of a recipe key. If the option has a `parse` function, it reads text such as 2GB."""
    parse = field.metadata[METADATA].parse if METADATA in field.metadata else None
    if parse is None:
        return hint
    plain = (type(None),) if parse is parse_size else (type(None), int)  # a size without a unit is refused
    return Annotated[hint, BeforeValidator(lambda value: value if isinstance(value, plain) else parse(str(value)))]


StagePart = create_model("StagePart", __base__=RecipeSection, **options(StageConfig))
OPTIONS = options(DistillConfig) | {"stages": (list[StagePart], [])}  # type: ignore[valid-type]
DistillPart = create_model("DistillPart", __base__=RecipeSection, **OPTIONS)


class VariantSection(RecipeSection):
    """One 4-bit variant of the student: a name, and any option of `qcompress quantize`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", description="Folder of the variant, below `out`.")

    def config(self) -> QuantizeConfig | BackendConfig:
        """The settings of the job. Raises ValueError if a value is invalid or a key has no effect."""
        return make_config(self.model_dump(exclude={"name"}), self.model_fields_set)


VARIANT_METHODS = (*METHODS, AUTO)
VARIANT = options(BackendChoice) | options(QuantizeConfig, skip=("bits", "held_out"))
if TYPE_CHECKING:
    QuantizePart = VariantSection
else:
    QuantizePart = create_model("QuantizePart", __base__=VariantSection, **VARIANT)


class VerifyPart(RecipeSection):
    """The evaluation text, and the limits that every variant must keep."""

    eval_text: str = Field(default="heldout", description="Evaluation text: a name or a file.")
    samples: int = Field(default=EVAL_SAMPLES, ge=1, description="Number of windows.")
    seq_len: int = Field(default=EVAL_SEQ_LEN, ge=8, description="Tokens per window.")
    max_kl: float | None = Field(
        default=None, ge=0, description="Limit on the mean KL(student ‖ variant), nats per token."
    )
    max_perplexity_ratio: float | None = Field(
        default=None, ge=0, description="Limit on a variant's perplexity over the student's."
    )


class EvalPart(RecipeSection):
    """The tasks whose scores and answers the report shows."""

    limit: int | None = Field(default=None, ge=1, description="Maximum number of items per kind of task. None: all.")
    answers: int = Field(default=5, ge=0, description="Number of prompts whose answers the report shows.")
    batch_size: int = Field(default=8, ge=1, description="Items per batch.")


class BenchPart(RecipeSection):
    """The settings of the report's speed and memory: measured here, and predicted for GPUs and boards."""

    runtime: Literal["auto", "transformers", "vllm"] = Field(default="auto", description="Runtime that is measured.")
    quick: bool = Field(default=False, description="Use the smaller defaults of `bench --quick`.")
    prompt_tokens: int | None = Field(default=None, ge=1, description="Prompt length of a request, in tokens.")
    new_tokens: int | None = Field(default=None, ge=2, description="Answer length of a request, in tokens.")
    batch_size: int | None = Field(default=None, ge=1, description="Concurrent requests when throughput is measured.")
    repeats: int | None = Field(default=None, ge=1, description="Repeats of each measurement in one process.")
    hardware: tuple[str, ...] = Field(default=(), description="GPUs and boards to predict for, or `all`.")
    gpu_memory: Annotated[int | None, BeforeValidator(size_of)] = Field(
        default=None, description="Also predict for a GPU with this much memory, such as 8GB."
    )


class Recipe(RecipeSection):
    """A whole job: a teacher, and the checkpoints to make from it in the folder `out`."""

    teacher: Path = Field(description="The 16-bit checkpoint to start from: a folder or a hub id.")
    teacher_config: Path | None = Field(
        default=None, description="The teacher's config.json, for planning without weights."
    )
    student_config: Path | None = Field(
        default=None, description="The student's config.json, for planning without weights."
    )
    out: Path = Field(description="Folder for all outputs.")
    distill: DistillPart | None = None  # type: ignore[valid-type]
    quantize: list[QuantizePart] = []
    verify: VerifyPart = VerifyPart()
    eval: EvalPart | None = Field(default=None, description="Tasks that every model solves. None: no tasks.")
    bench: BenchPart | None = Field(default=None, description="Speed and memory. None: not measured.")

    def distill_config(self) -> DistillConfig | None:
        """The settings of the distillation, or None if there is none. Raises ValueError if a value is invalid."""
        return None if self.distill is None else DistillConfig(**self.distill.model_dump())  # type: ignore[attr-defined]

    def variant_path(self, part: VariantSection) -> Path:
        return self.out / part.name

    @property
    def student_path(self) -> Path:
        """The 16-bit checkpoint that is quantized: the student, or the teacher if the recipe has no distillation."""
        return self.out / "student" if self.distill else self.teacher


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises QCompressError if a key or a value is wrong.

    The error names the file, the wrong key and the nearest valid key.
    """
    value = read_yaml(path)
    try:
        recipe = Recipe.model_validate(value)
        recipe.distill_config()
        for part in recipe.quantize:
            part.config()
    except ValidationError as error:
        raise QCompressError(f"{path}: {first_error(error)}") from None
    except ValueError as error:
        raise QCompressError(f"{path}: {error}") from None
    check_names(path, [part.name for part in recipe.quantize])
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises QCompressError if the file has no mapping or cannot be read."""
    try:
        check_regular(path)
        if path.stat().st_size > MAX_BYTES:
            raise QCompressError(f"{path}: has more than {MAX_BYTES:,} bytes; give a YAML recipe")
        text = read_text(path)
    except CalibrationError as error:
        raise QCompressError(str(error)) from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise QCompressError(
            f"{path}: the file is {YAML_TYPES.get(type(value), 'a single value')}, but a recipe must be a mapping with "
            "keys such as teacher and out; see recipes/quickstart.yaml"
        )
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises QCompressError, beginning with `where`, for text that cannot be used."""
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise QCompressError(f"{where}: is nested too deeply; write it as in recipes/quickstart.yaml") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, thousands of digits
        raise QCompressError(f"{where}: is not valid YAML ({' '.join(str(error).split()):.200}); correct it") from None
    if has_too_many_values(value):
        raise QCompressError(
            f"{where}: holds more than {MAX_VALUES:,} values once its aliases are replaced; use fewer aliases"
        )
    return value


def has_too_many_values(value: Any) -> bool:
    """Whether a YAML value holds more than MAX_VALUES keys and values.

    A part that aliases repeat counts at each repetition.
    """
    count, waiting = 0, [value]
    while waiting and count <= MAX_VALUES:
        part = waiting.pop()
        parts = [*part.keys(), *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []
        count += len(parts)
        waiting += parts
    return count > MAX_VALUES


def check_names(path: Path, names: list[str]) -> None:
    """Raises QCompressError if two variants share a name, or if a variant has the name of another output."""
    if len({*names, *OUTPUTS}) < len(names) + len(OUTPUTS):
        raise QCompressError(
            f"{path}: quantize names must differ from each other and from {', '.join(OUTPUTS)}: {names}"
        )


def parse_stage(text: str) -> dict[str, Any]:
    """One training stage from a line of YAML such as "{name: task, text: [chats.jsonl], steps: 100}".

    The braces are optional. Raises QCompressError, with the nearest valid key, if a key is wrong.
    """
    try:
        value = parse_yaml(text if text.lstrip().startswith("{") else f"{{{text}}}", f"--stage {text:.200}")
        return StagePart.model_validate(value).model_dump()
    except ValidationError as error:
        raise QCompressError(f"--stage {text:.200}: {first_error(error, StagePart)}") from None


def first_error(error: ValidationError, section: type[RecipeSection] | None = None) -> str:
    """The first error as one line. For an unknown key, the line also names the nearest valid key.

    `section` is the section with the error; None means a whole recipe.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "model_type" and isinstance(first["input"], str):
        return f"{place}: {first['input']:.40} is no section; {section_for(first['loc'], first['input'])}"
    if first["type"] in SHAPES:
        return f"{place}: write {SHAPES[first['type']]}"
    if first["type"] == "literal_error":
        names = re.findall("'([^']*)'", first["ctx"]["expected"])
        return f"{place}: {first['input']!r:.40}: choose {', '.join(names)}{did_you_mean(first['input'], names)}"
    if first["type"] != "extra_forbidden":
        return f"{place}: {first['msg']}"
    keys = list((section or section_at(first["loc"][:-1])).model_fields)
    return f"unknown key {place}" + (did_you_mean(first["loc"][-1], keys) or f"; valid keys: {', '.join(keys)}")


def section_for(place: tuple[Any, ...], word: str) -> str:
    """Advice on the YAML to write in place of a single word.

    For a variant, the advice also names the method that is nearest to the word.
    """
    if place[0] != "quantize":
        return f"write {SHAPES['model_type']}"
    return f"write {{name: {word:.40}, method: {word if word in VARIANT_METHODS else 'awq+gptq'}}}" + (
        "" if word in VARIANT_METHODS else did_you_mean(word, VARIANT_METHODS)
    )


def section_at(place: tuple[Any, ...]) -> type[RecipeSection]:
    """The class of the recipe section at a path of keys, such as ("quantize", 0)."""
    if place[:2] == ("distill", "stages"):
        return StagePart
    parts: dict[str, type[RecipeSection]] = {
        "distill": DistillPart,
        "quantize": QuantizePart,
        "verify": VerifyPart,
        "eval": EvalPart,
        "bench": BenchPart,
    }
    return parts.get(str(place[0]), Recipe) if place else Recipe
