"""The plan of a distillation: sizes and memory. It reads the config.json files, but no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.corpus import check_source
from compress.checkpoint.door.files import CONFIG, has_weights, read_config_file
from compress.checkpoint.door.tokenizer import has_tokenizer, load_tokenizer
from compress.checkpoint.load import check_causal_lm, open_for_text, start_candidate
from compress.checkpoint.packed_size import plain_int4_bytes
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.cards import Card
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.distill.config import DistillConfig
from compress.distill.student.memory_estimate import format_parts, gpu_parts, gpu_row, memory_parts
from compress.losses.buffers import MICRO_TOKENS
from compress.model.config_keys import plain_config
from compress.model.families import find_family
from compress.model.shapes import Shape
from compress.model.student import plan_size, shape_of, student_config, student_shape

Json = dict[str, Any]


@dataclass(frozen=True)
class StudentPlan:
    """The configs of teacher and student, the student's shape, sizes, and the estimated memory of training in bytes."""

    teacher: Json
    student: Json
    shape: Shape
    teacher_size: dict[str, int]
    student_size: dict[str, int]
    memory_parts: dict[str, int]

    @property
    def memory(self) -> int:
        """The estimated peak memory of one process on a CPU, in bytes."""
        return sum(self.memory_parts.values())

    @property
    def removed(self) -> int:
        """The number of blocks removed from the teacher."""
        return int(shape_of(self.teacher).num_layers) - self.shape.num_layers


def read_config(source: PathOrCheckpoint) -> Json:
    """The config.json of a 16-bit causal LM. Raises QCompressError if `source` is any other model.

    A folder with weights is opened completely and its tokenizer is loaded, so that every fault is reported here.
    """
    path = source.path if isinstance(source, Checkpoint) else Path(source)
    if not path.is_dir():
        raise QCompressError(f"{path}: directory not found; give a directory with config.json and *.safetensors")
    if isinstance(source, Checkpoint) or has_weights(path):
        config = open_for_text(source).config
    else:
        config = read_config_file(path / CONFIG)
        check_causal_lm(path, config)
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method")
        raise QCompressError(f"{path}: this checkpoint is already quantized ({method}); give the 16-bit checkpoint")
    return config


def plan_distill(teacher: PathOrCheckpoint, settings: DistillConfig) -> StudentPlan:
    """The plan for a teacher. No weights are read. Raises ValueError if the student cannot have the requested shape."""
    student = read_config(Path(settings.student)) if settings.student else None
    return make_plan(read_config(teacher), settings, student)


def make_plan(teacher: Json, settings: DistillConfig, student: Json | None = None) -> StudentPlan:
    """The plan for the teacher's config. `student` is the config of an existing student, or None to cut one."""
    check_dtype(teacher if student is None else student, settings.dtype)
    if student is None:
        shape = student_shape(teacher, **settings.sizes())
        config = student_config(teacher, shape, range(shape.num_layers))  # the choice of blocks changes no size
    else:
        shape, config = shape_of(student), plain_config(student)
    if settings.importance and (settings.student or shape.same_width(shape_of(teacher))):
        why = (
            f"--student {settings.student} is not cut" if settings.student else "the student is as wide as its teacher"
        )
        raise QCompressError(
            f"importance {settings.importance}: {why}, so no channels are removed; leave out --importance, or reduce a "
            "width (--intermediate-size, --hidden-size, --num-heads)"
        )
    large, small = plan_size(teacher), plan_size(config)
    int4 = plain_int4_bytes(config, Dtype(settings.dtype))
    sizes = small | ({} if int4 is None else {"int4_bytes": int4})
    parts = memory_parts(large["parameters"], small["parameters"], config, settings, MICRO_TOKENS["cpu"])
    return StudentPlan(teacher, config, shape, large, sizes, parts)


def check_dtype(config: Json, dtype: str) -> None:
    """Raises QCompressError if `dtype` is float16 and the family's activations overflow float16.

    vLLM refuses such checkpoints.
    """
    family = find_family(str(config.get("model_type")))
    if dtype == "float16" and family is not None and not family.float16:
        raise QCompressError(f"dtype float16: activations of {config['model_type']} overflow it; use --dtype bfloat16")


def plan_row(plan: StudentPlan, settings: DistillConfig) -> Row:
    """The plan as a report row, with the length of training."""
    shape, sizes = plan.shape, plan.student_size
    return {
        "student": f"{plan.student['model_type']}, {shape.num_layers} blocks, hidden {shape.hidden_size}, "
        f"intermediate {shape.intermediate_size}, heads {shape.num_heads}/{shape.num_kv_heads} of {shape.head_dim}",
        "teacher_parameters": plan.teacher_size["parameters"],
        **sizes,
        "memory_bytes": plan.memory,
        "memory": f"on a CPU, in float32: {format_parts(plan.memory_parts)}",
        "steps": settings.total_steps,
        "tokens_read": settings.total_tokens,
    }


def plan_gpu(plan: StudentPlan, settings: DistillConfig, card: Card) -> Row:
    """The report row of the training on a GPU. A token costs 6 operations per student weight, 2 per teacher weight."""
    teacher, student = (size["parameters"] for size in (plan.teacher_size, plan.student_size))
    read = head_size(plan.teacher) if settings.cache else teacher
    return gpu_row(plan_parts(plan, settings), 6 * student + 2 * read, settings, card)


def plan_parts(plan: StudentPlan, settings: DistillConfig) -> dict[str, int]:
    """The bytes of the training on a GPU by part."""
    teacher, student = (size["parameters"] for size in (plan.teacher_size, plan.student_size))
    return gpu_parts(teacher, student, plan.student, settings, MICRO_TOKENS["cuda"], head_size(plan.teacher))


def head_size(config: Json) -> int:
    """The number of weights of a model's output head."""
    return int(config["vocab_size"]) * int(config["hidden_size"])


def check_inputs(settings: DistillConfig, teacher: Path | None = None) -> Row:
    """A report row that names texts and cache. Only the beginning of each file is read.

    Raises QCompressError if a text is unreadable or too short. Lengths are checked only if `teacher` has a tokenizer
    and the run has no cache.
    """
    for text in settings.texts:
        check_source(text)
    if teacher is not None and has_tokenizer(teacher) and not settings.cache:
        check_lengths(settings, teacher)
    row: Row = {"texts": ", ".join(settings.texts)}
    if settings.cache:
        from compress.distill.targets.cache import settings_cache

        cache = settings_cache(settings)
        row["cache"] = f"{cache.path}, {cache.manifest.codec['name']}"
    return row


def check_lengths(settings: DistillConfig, teacher: Path) -> None:
    """Raises QCompressError, with the stage's name, if a text is too short for one window. Reads no weights."""
    from compress.distill.text.shortage import check_fits
    from compress.distill.text.stages import make_stages

    tokenizer = load_tokenizer(teacher, None)
    start = start_candidate(tokenizer, read_config_file(teacher / CONFIG)) is not None
    for stage in make_stages(settings):
        check_fits(stage, tokenizer, start=start)
