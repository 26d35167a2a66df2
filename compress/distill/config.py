"""What a distillation is told: flags, fields, recipe keys and the record in the checkpoint have the same names."""

from dataclasses import asdict, dataclass, fields, replace
from math import ceil, isfinite
from typing import Any

DTYPES = ("float16", "bfloat16")
DIVERGENCES = ("kl", "reverse_kl", "jsd")
PACKINGS = ("documents", "full")
CODECS = ("hidden", "hybrid", "topk")
STEPS = 100
TEMPERATURE = 2.0  # of a distillation, and so of a cache that holds for one temperature only
IMPORTANCES = ("activations", "weights")
SHAPE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")


@dataclass(frozen=True)
class StudentConfig:
    """Which student: an existing checkpoint, or so many of the teacher's blocks, or a shape cut out of the teacher.

    None of a shape is the teacher's own. `blocks` alone is `num_layers` alone. `importance` says by what the channels
    and heads of a narrower one are chosen, None: by their activations.
    """

    student: str | None = None
    blocks: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    importance: str | None = None

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
        if self.importance is not None and self.importance not in IMPORTANCES:
            raise ValueError(f"importance={self.importance}: known are {', '.join(IMPORTANCES)}")

    def sizes(self) -> dict[str, int | None]:
        """The shape by the names of model.width.Shape."""
        return {name: getattr(self, name) for name in SHAPE} | ({"num_layers": self.blocks} if self.blocks else {})


def check_packing_name(packing: str) -> None:
    """ValueError for one that is not known."""
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing}: known are {', '.join(PACKINGS)}")


@dataclass(frozen=True)
class TrainConfig:
    """How it learns. One step is `batch_size` windows of `seq_len` tokens; `tokens` says steps in another unit.

    `align_weight` is that of the hidden states beside the loss, 0: none. With a `lora_rank` above 0 only adapters of
    that rank learn, their product times `lora_alpha` / rank (None: twice the rank).
    `gradient_checkpointing` takes time for memory. With `packing` "documents" a document sees nothing of the
    others in its window, with "full" all that comes before it.
    """

    alpha: float = 0.7
    temperature: float = TEMPERATURE
    divergence: str = "kl"
    beta: float = 0.5
    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 4
    seq_len: int = 256
    learning_rate: float = 3e-4
    eval_every: int = 50
    seed: int = 0
    align_weight: float = 0.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    gradient_checkpointing: bool = False
    packing: str = "documents"

    def check(self) -> None:
        if self.steps is not None and self.tokens is not None:
            raise ValueError(f"steps={self.steps} and tokens={self.tokens}: give one of them")
        for name in ("steps", "tokens", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be 1 or more")
        if self.seq_len < 2:
            raise ValueError(f"seq_len={self.seq_len}: a window needs 2 tokens, one to read and one to predict")
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence={self.divergence}: known are {', '.join(DIVERGENCES)}")
        check_packing_name(self.packing)
        if not 0 < self.beta < 1:
            raise ValueError(f"beta={self.beta}: the teacher's share of a jsd's mixture lies between 0 and 1")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: must be from 0 (cross-entropy only) to 1 (KL only)")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            if not (value > 0 and isfinite(value)):
                raise ValueError(f"{name}={value}: must be above 0 and finite")
        if not (self.align_weight >= 0 and isfinite(self.align_weight)):
            raise ValueError(f"align_weight={self.align_weight}: must be 0 (off) or more, and finite")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank}: must be 0 (off) or more")
        if self.lora_alpha is not None and not (self.lora_rank and self.lora_alpha > 0 and isfinite(self.lora_alpha)):
            raise ValueError(f"lora_alpha={self.lora_alpha}: must be above 0, and needs a lora_rank of 1 or more")

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
class StageConfig:
    """One stage of a distillation: what it does otherwise than the whole; None is the whole's own.

    `replay` is the share of its text that comes from the stages before. With `on_policy` the student answers the
    beginnings of the windows, and learns from what the teacher says of its answers.
    """

    name: str
    data: tuple[str, ...] | None = None
    heldout: str | None = None
    replay: float = 0.0
    on_policy: bool = False
    steps: int | None = None
    tokens: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    learning_rate: float | None = None
    eval_every: int | None = None
    alpha: float | None = None
    temperature: float | None = None
    divergence: str | None = None
    beta: float | None = None
    align_weight: float | None = None

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        if not self.name.isidentifier():
            raise ValueError(f"stage {self.name!r}: a name is letters, digits and underscores, no digit first")
        if not 0 <= self.replay < 1:
            raise ValueError(f"stage {self.name}: replay={self.replay} must be from 0 to below 1")

    def given(self) -> dict[str, Any]:
        """What it says at all; a 0 is said, but for no replay."""
        found = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return {name: value for name, value in found.items() if value or name != "replay"}

    def overrides(self) -> dict[str, Any]:
        """Fields of the whole's settings that differ here. On-policy tokens are the student's own: no CE on them."""
        own = {"divergence": "reverse_kl", "alpha": 1.0, "temperature": 1.0} if self.on_policy else {}
        found = own | {k: v for k, v in self.given().items() if k not in ("name", "replay", "on_policy")}
        length = {"steps": None, "tokens": None} if {"steps", "tokens"} & found.keys() else {}
        return length | found


@dataclass(frozen=True)
class DistillConfig(StudentConfig, TrainConfig):
    """All of it. `data` are calibration sources ("NAME" or "FILE", with "=WEIGHT"); `heldout` is never trained on.

    `cache` is the directory of a capture, which then answers for the teacher in training. `stages` follow one another,
    each from the best weights of the one before; without any, the whole is one stage.
    """

    data: tuple[str, ...] = ("default",)
    heldout: str = "heldout"
    cache: str | None = None
    dtype: str = "float16"
    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self) -> None:
        StudentConfig.check(self)
        TrainConfig.check(self)
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        if not self.data:
            raise ValueError("data: 0 sources; give a name or a file")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}: checkpoints are written in {' or '.join(DTYPES)}")
        if self.cache and self.align_weight:
            raise ValueError(
                f"align_weight={self.align_weight:g} and cache={self.cache}: a cache has no hidden states of the "
                "blocks; leave out one of them"
            )
        self._check_stages()

    def _check_stages(self) -> None:
        made = (StageConfig(**stage) if isinstance(stage, dict) else stage for stage in self.stages)
        object.__setattr__(self, "stages", tuple(made))
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ: {', '.join(names)}")
        if self.stages and self.stages[0].replay:
            raise ValueError(f"stage {names[0]}: replay={self.stages[0].replay:g}, but no stage comes before it")
        if self.stages and self.cache:
            raise ValueError(f"{len(self.stages)} stages and cache={self.cache}: a cache is of one text; drop one")
        self.resolved()

    def resolved(self) -> tuple["DistillConfig", ...]:
        """The settings of every stage, itself where there are none. ValueError names the stage that cannot be."""
        found = []
        for stage in self.stages:
            try:
                found.append(replace(self, stages=(), **stage.overrides()))
            except ValueError as error:
                raise ValueError(f"stage {stage.name}: {error}") from None
        return tuple(found) or (self,)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, over all stages."""
        return sum(one.total_steps for one in self.resolved()) if self.stages else super().total_steps

    @property
    def total_tokens(self) -> int:
        """Tokens that the student reads in the whole run, over all stages."""
        return sum(one.total_tokens for one in self.resolved()) if self.stages else super().total_tokens

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that is read, once."""
        named = [text for one in self.resolved() for text in (*one.data, one.heldout)]
        return tuple(dict.fromkeys([*named, self.heldout]))

    def settings(self) -> dict[str, Any]:
        """What the record keeps: every field, and the steps that came of them."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"stages": [stage.given() for stage in self.stages], "total_steps": self.total_steps}


@dataclass(frozen=True)
class LoopConfig:
    """How a training is run, none of which changes what comes of it.

    The state to go on from is kept every `save_every` steps (0: only at the end of stages); `restart` begins anew;
    `log_dir` gets TensorBoard's event files.
    """

    save_every: int = 100
    restart: bool = False
    log_dir: str | None = None

    def __post_init__(self) -> None:
        if self.save_every < 0:
            raise ValueError(f"save_every={self.save_every}: must be 1 or more, or 0 to keep no state but stages' ends")


@dataclass(frozen=True)
class CaptureConfig:
    """What a teacher's cache holds, and of which text. None of `top_k` is the codec's own number.

    `temperature`, `top_k`, `samples` and `renormalise` are for codecs that store probabilities, at the temperature of
    a distillation where None is given; `dtype` is that of hidden states, None the teacher's. A shard holds
    `shard_windows` windows. `packing` is that of the distillation.
    """

    codec: str = "hidden"
    temperature: float | None = None
    top_k: int | None = None
    samples: int = 10
    renormalise: bool = True
    dtype: str | None = None
    data: tuple[str, ...] = ("default",)
    n_samples: int = 1024
    seq_len: int = 256
    seed: int = 0
    shard_windows: int = 64
    packing: str = "documents"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        if self.codec not in CODECS:
            raise ValueError(f"codec={self.codec}: known are {', '.join(CODECS)}")
        check_packing_name(self.packing)
        if self.temperature is not None and not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature}: must be above 0 and finite")
        if self.codec == "hidden" and self.temperature is not None:
            raise ValueError(f"temperature={self.temperature}: hidden states hold for any; leave it out")
        least = {"n_samples": 1, "seq_len": 2, "shard_windows": 1, "samples": 1, "top_k": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name}={value}: must be {smallest} or more")
        if self.dtype is not None and self.dtype not in (*DTYPES, "float32"):
            raise ValueError(f"dtype={self.dtype}: hidden states are kept in float16, bfloat16 or float32")

    def codec_settings(self, vocab: int, dtype: str) -> dict[str, Any]:
        """Name and settings of the codec over `vocab` tokens, as a manifest keeps them; `dtype` is the teacher's."""
        temperature = TEMPERATURE if self.temperature is None else self.temperature
        sparse: dict[str, Any] = {"name": self.codec, "vocab": vocab, "temperature": temperature}
        kept = {} if self.top_k is None else {"top_k": self.top_k}
        table: dict[str, dict[str, Any]] = {
            "hidden": {"name": self.codec, "dtype": self.dtype or dtype},
            "hybrid": {**sparse, "samples": self.samples, **kept},
            "topk": {**sparse, "renormalise": self.renormalise, **kept},
        }
        return table[self.codec]
