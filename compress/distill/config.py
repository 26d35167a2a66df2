"""Settings of distillation, capture and generation. Command-line options and recipe keys are generated from the fields.

Every class checks its values in __post_init__; the ValueError names the field, its value and the limit.
"""

from dataclasses import asdict, dataclass, fields, replace
from math import ceil, isfinite
from typing import Any

from calibration.suggest import did_you_mean
from compress.core.config import EVAL_SAMPLES, EVAL_SEQ_LEN
from compress.core.errors import BadValueError
from compress.core.options import device_setting, option

DTYPES = ("float16", "bfloat16")
DIVERGENCES = ("kl", "reverse_kl", "jsd")
PACKINGS = ("documents", "full")
CODECS = ("hidden", "hybrid", "topk")
RUNTIMES = ("auto", "vllm", "transformers")
IMPORTANCES = ("activations", "weights")
STEPS = 100
TEMPERATURE = 2.0  # the default of distill and of `capture --codec hybrid` and `topk`
SHAPE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
TEXT_HELP = "Training text: a built-in NAME or a FILE. Repeatable. FILE=2 doubles the weight of a text in the mixture."
SEQ_LEN_HELP = "Tokens per window."
SEED_HELP = "Seed of all random numbers."
TEACHERS = "the teacher's"


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raises ValueError if the value is not one of the choices. The value None is valid."""
    if value is not None and value not in choices:
        raise BadValueError(f"{name}={value}: must be one of {', '.join(choices)}{did_you_mean(value, choices)}")


def check_at_least(smallest: int, **values: int | None) -> None:
    """Raises ValueError, with the value, if a value is below `smallest`. The value None is valid."""
    for name, value in values.items():
        if value is not None and value < smallest:
            raise BadValueError(f"{name}={value}: must be {smallest} or more")


def check_positive(**values: float | None) -> None:
    """Raises ValueError, with the value, if a value is 0, negative, infinite or NaN. The value None is valid."""
    for name, value in values.items():
        if value is not None and not (value > 0 and isfinite(value)):
            raise BadValueError(f"{name}={value}: must be above 0 and finite")


def as_tuple(text: Any) -> tuple[str, ...]:
    """A tuple of text sources: a single string becomes a tuple with one element."""
    return (text,) if isinstance(text, str) else tuple(text)


@dataclass(frozen=True)
class StudentConfig:
    """The student: an existing checkpoint, a number of the teacher's blocks, or a shape cut out of the teacher.

    A size of None is copied from the teacher. `blocks` has the same effect as `num_layers`.
    """

    student: str | None = option(
        None,
        "Existing checkpoint to train: a folder or a hub id. It must use the teacher's tokenizer.",
        is_path=True,
        metavar="MODEL",
    )
    blocks: int | None = option(
        None,
        "Number of the teacher's blocks that the student keeps. All other sizes stay as in the teacher.",
        minimum=1,
    )
    hidden_size: int | None = option(
        None, "Width of the student's hidden states.", group="Student", minimum=1, default_text=TEACHERS
    )
    intermediate_size: int | None = option(
        None, "MLP channels in each block of the student.", group="Student", minimum=1, default_text=TEACHERS
    )
    num_layers: int | None = option(
        None,
        "Number of blocks in the student. Use it in place of --blocks to set other sizes too.",
        group="Student",
        minimum=1,
        default_text=TEACHERS,
    )
    num_heads: int | None = option(
        None, "Query heads in each block of the student.", group="Student", minimum=1, default_text=TEACHERS
    )
    num_kv_heads: int | None = option(
        None, "Key and value heads in each block of the student.", group="Student", minimum=1, default_text=TEACHERS
    )
    importance: str | None = option(
        None,
        "Criterion that ranks channels and heads when the student is narrower than the teacher.",
        group="Student",
        choices=IMPORTANCES,
        default_text="activations, measured on --text",
    )

    def check_student(self) -> None:
        """Raises ValueError if no student or several kinds of student are chosen, or if a size is below 1."""
        shape = {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}
        kinds = [name for name in ("student", "blocks") if getattr(self, name) is not None]
        if len(kinds) + bool(shape) != 1:
            names = ", ".join([*kinds, *shape]) or "no option"
            raise BadValueError(
                f"student: {names} given; give exactly one of --student, --blocks, or a shape such as --num-layers"
            )
        check_at_least(1, blocks=self.blocks, **shape)
        check_choice("importance", self.importance, IMPORTANCES)

    def sizes(self) -> dict[str, int | None]:
        """The student's sizes; the keys are the field names of model.width.Shape."""
        return {name: getattr(self, name) for name in SHAPE} | ({"num_layers": self.blocks} if self.blocks else {})


@dataclass(frozen=True)
class LossConfig:
    """The training loss: alpha · T² · divergence + (1 − alpha) · cross-entropy + align_weight · alignment."""

    alpha: float = option(
        0.7,
        "Weight of the divergence in the loss. The cross-entropy has the weight 1 - alpha.",
        group="Loss",
        minimum=0,
        maximum=1,
    )
    temperature: float = option(
        TEMPERATURE, "Temperature that softens both distributions in the divergence.", group="Loss", above=0
    )
    divergence: str = option(
        "kl", "Divergence between the teacher's and the student's distributions.", group="Loss", choices=DIVERGENCES
    )
    beta: float = option(
        0.5,
        "Weight of the teacher's probabilities in the mixture that --divergence jsd uses.",
        group="Loss",
        above=0,
        below=1,
    )
    align_weight: float = option(
        0.0,
        "Weight in the loss of the distance between the teacher's and the student's hidden states.",
        group="Loss",
        minimum=0,
        default_text="0, off",
    )

    def check_loss(self) -> None:
        """Raises ValueError if a weight, the temperature or the divergence is invalid."""
        check_choice("divergence", self.divergence, DIVERGENCES)
        if not 0 < self.beta < 1:
            raise BadValueError(f"beta={self.beta}: must lie between 0 and 1, both excluded")
        if not 0 <= self.alpha <= 1:
            raise BadValueError(f"alpha={self.alpha}: must be from 0 (cross-entropy only) to 1 (divergence only)")
        check_positive(temperature=self.temperature)
        if not (self.align_weight >= 0 and isfinite(self.align_weight)):
            raise BadValueError(f"align_weight={self.align_weight}: must be 0 (off) or more, and finite")


@dataclass(frozen=True)
class ScheduleConfig:
    """The length of training. One step reads `batch_size` windows of `seq_len` tokens."""

    steps: int | None = option(
        None, "Optimizer steps.", group="Schedule", minimum=1, default_text=f"{STEPS}, unless --tokens is given"
    )
    tokens: int | None = option(None, "Training length in tokens, in place of --steps.", group="Schedule", minimum=1)
    batch_size: int = option(4, "Windows per optimizer step, over all processes.", group="Schedule", minimum=1)
    seq_len: int = option(256, SEQ_LEN_HELP, group="Schedule", minimum=2)
    learning_rate: float = option(3e-4, "Peak learning rate, after warm-up.", group="Schedule", above=0)
    eval_every: int = option(50, "Steps between two evaluations on --eval-text.", group="Schedule", minimum=1)
    seed: int = option(0, SEED_HELP, group="Run control", default_text="0")

    def check_schedule(self) -> None:
        """Raises ValueError if a length, a size or the learning rate is invalid."""
        if self.steps is not None and self.tokens is not None:
            raise BadValueError(f"steps={self.steps} and tokens={self.tokens}: give only one of them")
        check_at_least(1, steps=self.steps, tokens=self.tokens, batch_size=self.batch_size, eval_every=self.eval_every)
        check_at_least(2, seq_len=self.seq_len)
        check_positive(learning_rate=self.learning_rate)

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
class MemoryConfig:
    """Settings that change memory: LoRA adapters, gradient checkpointing, packing, and the dtype of the output."""

    lora_rank: int = option(
        0,
        "Rank of LoRA adapters. Only the adapters are trained, then merged into the weights.",
        group="Resources",
        minimum=0,
        default_text="0, train all weights",
    )
    lora_alpha: float | None = option(
        None,
        "LoRA scale: adapters are multiplied by alpha / rank.",
        group="Resources",
        above=0,
        default_text="2 * rank",
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, a third more time.", group="Resources"
    )
    packing: str = option(
        "documents",
        "Attention inside a window. documents: only within the same document; full: to all earlier tokens.",
        group="Text",
        choices=PACKINGS,
    )
    dtype: str = option("float16", "Dtype of the written checkpoint.", group="Resources", choices=DTYPES)

    def check_memory(self) -> None:
        """Raises ValueError if the LoRA settings, the packing or the dtype are invalid."""
        check_choice("packing", self.packing, PACKINGS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.lora_rank < 0:
            raise BadValueError(f"lora_rank={self.lora_rank}: must be 0 (off) or more")
        if self.lora_alpha is not None and not (self.lora_rank and self.lora_alpha > 0 and isfinite(self.lora_alpha)):
            raise BadValueError(f"lora_alpha={self.lora_alpha}: must be above 0, and needs a lora_rank of 1 or more")


@dataclass(frozen=True)
class TrainConfig(LossConfig, ScheduleConfig, MemoryConfig):
    """All settings that the training loop reads."""


@dataclass(frozen=True)
class TextConfig:
    """The student's training text and evaluation text. With `cache`, stored targets replace the running teacher."""

    text: tuple[str, ...] = option(("default",), TEXT_HELP)
    eval_text: str = option(
        "heldout", "Text to measure the KL to the teacher on: a built-in NAME or a FILE. It is never trained on."
    )
    cache: str | None = option(
        None, "Directory written by `qcompress capture`, used in place of the teacher.", group="Text", is_path=True
    )


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """The schedule of one stage. A field of None uses the run's value."""

    steps: int | None = None
    tokens: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    learning_rate: float | None = None
    eval_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageLoss:
    """The loss of one stage. A field of None uses the run's value."""

    alpha: float | None = None
    temperature: float | None = None
    divergence: str | None = None
    beta: float | None = None
    align_weight: float | None = None


@dataclass(frozen=True)
class StageConfig(StageSchedule, StageLoss):
    """One stage of a distillation: its name, and the settings that differ from the run's settings.

    `replay` is the fraction of the stage's text that repeats earlier stages, from 0 to below 1. With `on_policy`, the
    student writes the second part of each window and is trained on it.
    """

    name: str
    text: tuple[str, ...] | None = None
    eval_text: str | None = None
    replay: float = 0.0
    on_policy: bool = False

    def __post_init__(self) -> None:
        if self.text is not None:
            object.__setattr__(self, "text", as_tuple(self.text))
        if not self.name.isidentifier():
            raise BadValueError(
                f"stage {self.name!r}: invalid name; use letters, digits and underscores, and begin with a letter"
            )
        if not 0 <= self.replay < 1:
            raise BadValueError(f"stage {self.name}: replay={self.replay} must be from 0 to below 1")

    def changes(self) -> dict[str, Any]:
        """The fields that differ from their defaults, by name."""
        values = {"name": self.name, **asdict(self)}
        values = {name: value for name, value in values.items() if value is not None and value is not False}
        return {name: value for name, value in values.items() if value or name != "replay"}

    def overrides(self) -> dict[str, Any]:
        """The run's settings that this stage replaces, by name.

        By default an on-policy stage has no cross-entropy, because the student wrote its tokens: they are not labels.
        """
        values = {"divergence": "reverse_kl", "alpha": 1.0, "temperature": 1.0} if self.on_policy else {}
        values |= {k: v for k, v in self.changes().items() if k not in ("name", "replay", "on_policy")}
        length = {"steps": None, "tokens": None} if {"steps", "tokens"} & values.keys() else {}
        return length | values


@dataclass(frozen=True)
class DistillConfig(StudentConfig, TrainConfig, TextConfig):
    """All settings that determine the student's bytes.

    Each of the `stages` starts from the best weights of the previous stage. A run without `stages` has one stage.
    """

    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self) -> None:
        self.check_student()
        self.check_loss()
        self.check_schedule()
        self.check_memory()
        object.__setattr__(self, "text", as_tuple(self.text))
        if not self.text:
            raise BadValueError("text: 0 sources; give at least one built-in name or file")
        if self.cache and self.align_weight:
            raise BadValueError(
                f"align_weight={self.align_weight:g} and cache={self.cache}: a cache holds no hidden states of the "
                "blocks; leave out --align-weight or --cache"
            )
        self.check_stages()

    def check_stages(self) -> None:
        """Raises ValueError if the stages cannot run.

        Names must differ, the first stage cannot replay, a cache allows no stages, and each stage's settings must be
        valid.
        """
        stages = tuple(StageConfig(**stage) if isinstance(stage, dict) else stage for stage in self.stages)
        object.__setattr__(self, "stages", stages)
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise BadValueError(f"stages: names must differ: {', '.join(names)}; give each stage its own name")
        if stages and stages[0].replay:
            raise BadValueError(
                f"stage {names[0]}: replay={stages[0].replay:g}, but no stage comes before it; leave out its replay"
            )
        if stages and self.cache:
            raise BadValueError(
                f"{len(stages)} stages and cache={self.cache}: a cache holds the text of a run without stages; "
                "leave out the stages or the cache"
            )
        self.resolved()

    def resolved(self) -> tuple["DistillConfig", ...]:
        """The complete settings of every stage, in order. A run without stages counts as one stage.

        Raises ValueError, with the name of the stage, if its settings are invalid.
        """
        settings = []
        for stage in self.stages:
            try:
                settings.append(replace(self, stages=(), **stage.overrides()))
            except ValueError as error:
                raise BadValueError(f"stage {stage.name}: {error}") from None
        return tuple(settings) or (self,)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, summed over stages."""
        return sum(stage.total_steps for stage in self.resolved()) if self.stages else super().total_steps

    @property
    def total_tokens(self) -> int:
        """Tokens that the student reads in the whole run, summed over stages."""
        return sum(stage.total_tokens for stage in self.resolved()) if self.stages else super().total_tokens

    @property
    def texts(self) -> tuple[str, ...]:
        """All text sources of the run, without repetitions."""
        names = [name for stage in self.resolved() for name in (*stage.text, stage.eval_text)]
        return tuple(dict.fromkeys([*names, self.eval_text]))

    def settings(self) -> dict[str, Any]:
        """The values stored in the checkpoint's record: every field, and the number of steps."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"stages": [stage.changes() for stage in self.stages], "total_steps": self.total_steps}


@dataclass(frozen=True)
class LoopConfig:
    """The device, evaluation windows, saved states and logs of a training. `restart` discards saved work."""

    save_every: int = option(
        100,
        "Steps between two saved states. 0 saves only at the end of each stage.",
        group="Run control",
        minimum=0,
    )
    log_dir: str | None = option(
        None, "Directory for TensorBoard event files.", group="Run control", is_path=True, default_text="none written"
    )
    eval_samples: int = option(
        EVAL_SAMPLES,
        "Number of evaluation windows.",
        group="Text",
        minimum=1,
    )
    eval_seq_len: int = option(EVAL_SEQ_LEN, "Tokens per evaluation window.", group="Text", minimum=8)
    device: str = device_setting()
    restart: bool = False

    def __post_init__(self) -> None:
        if self.save_every < 0:
            raise BadValueError(f"save_every={self.save_every}: must be 0 (only at the end of stages) or more")


@dataclass(frozen=True)
class CodecConfig:
    """The codec that stores a teacher's targets, and its settings. A field of None uses the codec's default.

    Codecs hybrid and topk store probabilities at `temperature`. Codec hidden stores hidden states in `dtype`.
    """

    codec: str = option(
        "hidden",
        "Outputs to store. hidden: exact hidden states. hybrid: the likeliest tokens and a sample of the others, "
        "unbiased. topk: only the likeliest tokens, biased.",
        choices=CODECS,
    )
    temperature: float | None = option(
        None,
        "Temperature of the probabilities that hybrid and topk store. Use the same --temperature in distill.",
        group="Targets",
        above=0,
        default_text=f"{TEMPERATURE:g}, as in distill",
    )
    top_k: int | None = option(
        None,
        "Number of likeliest tokens that hybrid and topk store per position.",
        group="Targets",
        minimum=1,
        default_text="hybrid 12, topk 50",
    )
    draws: int = option(
        10,
        "Number of tokens that hybrid draws at random per position, from all tokens but the --top-k.",
        group="Targets",
        minimum=1,
    )
    renormalise: bool = option(
        True, "Scale the probabilities stored by topk to sum to 1.", group="Targets", flag="--renormalise/--raw"
    )
    dtype: str | None = option(
        None, "Dtype of stored hidden states.", group="Targets", choices=(*DTYPES, "float32"), default_text=TEACHERS
    )

    def check_codec(self) -> None:
        """Raises ValueError if a setting of the codec is invalid."""
        check_choice("codec", self.codec, CODECS)
        check_positive(temperature=self.temperature)
        if self.codec == "hidden" and self.temperature is not None:
            raise BadValueError(
                f"temperature={self.temperature}: codec hidden stores no probabilities, so no temperature applies; "
                "leave out --temperature"
            )
        check_at_least(1, draws=self.draws, top_k=self.top_k)
        check_choice("dtype", self.dtype, (*DTYPES, "float32"))

    def codec_settings(self, vocab: int, dtype: str) -> dict[str, Any]:
        """The codec's name and settings, as the manifest stores them.

        `vocab` is the number of tokens. `dtype` is the teacher's dtype; it applies when the field `dtype` is None.
        """
        temperature = TEMPERATURE if self.temperature is None else self.temperature
        sparse: dict[str, Any] = {"name": self.codec, "vocab": vocab, "temperature": temperature}
        size = {} if self.top_k is None else {"top_k": self.top_k}
        table: dict[str, dict[str, Any]] = {
            "hidden": {"name": self.codec, "dtype": self.dtype or dtype},
            "hybrid": {**sparse, "draws": self.draws, **size},
            "topk": {**sparse, "renormalise": self.renormalise, **size},
        }
        return table[self.codec]


@dataclass(frozen=True)
class CaptureConfig(CodecConfig):
    """All settings of a capture: codec, text and windows. `distill` must use the same text, windows and `packing`."""

    text: tuple[str, ...] = option(("default",), TEXT_HELP)
    samples: int = option(1024, "Number of windows. A short text gives fewer windows.", minimum=1)
    seq_len: int = option(256, SEQ_LEN_HELP, group="Text", minimum=2)
    packing: str = option(
        "documents",
        "Attention inside a window. documents: only within the same document; full: to all earlier tokens. "
        "Use the same value in distill.",
        group="Text",
        choices=PACKINGS,
    )
    device: str = device_setting()
    shard_windows: int = option(64, "Windows per file of the cache.", group="Run control", minimum=1)
    seed: int = option(0, SEED_HELP, group="Run control", default_text="0")

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", as_tuple(self.text))
        self.check_codec()
        check_choice("packing", self.packing, PACKINGS)
        check_at_least(1, samples=self.samples, shard_windows=self.shard_windows)
        check_at_least(2, seq_len=self.seq_len)


@dataclass(frozen=True)
class GenerateConfig:
    """All settings of a generation: sampling, limits, runtime and batch size."""

    max_tokens: int = option(512, "Maximum number of tokens in one answer.", minimum=1)
    temperature: float = option(
        0.0,
        "Sampling temperature. 0 always takes the likeliest token.",
        minimum=0,
        group="Essentials",
        default_text="0",
    )
    top_p: float = option(
        1.0, "Sample only from the likeliest tokens whose probabilities add up to this.", above=0, maximum=1
    )
    limit: int | None = option(
        None,
        "Number of prompts to answer, from the beginning of the file.",
        group="Limits",
        minimum=1,
        default_text="all",
    )
    keep_truncated: bool = option(
        False, "Keep answers that --max-tokens cut off. By default they are left out.", group="Limits"
    )
    runtime: str = option(
        "auto",
        "Runtime that generates. auto: the runtime of the interrupted run, else vLLM if it starts, else transformers.",
        group="Resources",
        choices=RUNTIMES,
    )
    batch_size: int | None = option(
        None, "Prompts per batch.", group="Resources", minimum=1, default_text="transformers 8, vllm 128"
    )
    seed: int = option(0, SEED_HELP, group="Run control", default_text="0")
