"""The settings of a quantization. Command-line options, recipe keys and Python arguments come from these fields.

Each class checks its own fields. A ValueError names the option as it is written on the command line.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from calibration.suggest import did_you_mean
from compress.core.errors import BadValueError
from compress.core.options import option

METHODS = ("rtn", "gptq", "awq", "awq+gptq")
AUTO = "auto"  # run all METHODS, keep the one with the lowest KL on held-out windows
BACKEND_METHODS = ("auto-round", "auto-round-light", "Q4_K_M", "Q4_0", "IQ4_XS")  # methods that only backends have
FORMAT_NAMES = ("awq", "gptq", "compressed-tensors")
DEFAULT_FORMAT = {"rtn": "compressed-tensors", "gptq": "gptq", "awq": "awq", "awq+gptq": "awq", AUTO: "awq"}
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = ("auto", "fp8", "int8_per_token_head", "int4_per_token_head")  # of those in vLLM
STORAGE_DTYPES = ("float16", "bfloat16")
GROUP_SIZES = (128, 64, 32)  # those that vLLM's kernels support, largest first
TUNE_BATCH = 4  # windows per step of tuning
HEAD_BITS = (16, 8, 4)
EMBEDDING_BITS = (16, 8)
EVAL_SAMPLES, EVAL_SEQ_LEN = 24, 512  # held-out windows and their length: the defaults of every command that measures
CALIBRATION_ONLY = ("text", "samples", "seq_len", "seed", "error_correction", "compute_dtype", "activation_memory")
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TB": 10**12,
    "TIB": 2**40,
}


def parse_size(text: str) -> int:
    """The bytes in a text such as "2GB", "1.5 GiB" or "800MB". Raises ValueError, with examples, for other text."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]i?B|B)?\s*", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise BadValueError(f"size {text!r} is not valid; write it as 2GB, 1.5GiB or 800MB")
    if match[2] is None:
        raise BadValueError(f"size {text!r} has no unit; add a unit, such as {text.strip()}GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def parse_group_size(text: str) -> int:
    """The group size in "128", "64" or "32". "auto" gives 0. Raises ValueError for any other text."""
    if text not in ("auto", *map(str, GROUP_SIZES)):
        raise BadValueError(f"group size {text!r} is not supported; choose auto, 128, 64 or 32")
    return 0 if text == "auto" else int(text)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError if a value is not one of the choices of the option `name`."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise BadValueError(f"{name} {value} is not supported; choose one of {names}{did_you_mean(value, choices)}")


@dataclass(frozen=True)
class MethodConfig:
    """How codes are chosen, and how long scales and norms are trained after rounding."""

    method: str = option(
        "awq+gptq",
        "Rounding method. auto runs every method and keeps the one with the lowest KL on held-out windows. Those after "
        "auto need --backend auto-round or llama.cpp.",
        choices=(*METHODS, AUTO, *BACKEND_METHODS),
    )
    error_correction: float = option(
        0.7,
        "Error-correction strength, 0 to 1: how far each layer compensates for the rounding errors of earlier layers. "
        "0 turns it off.",
        group="Tuning",
        minimum=0,
        maximum=1,
    )
    tune: int = option(
        0,
        "After quantizing, train scales and norms for EPOCHS (2 if no number follows) to match MODEL's outputs. "
        "0 trains nothing.",
        group="Tuning",
        minimum=0,
        flag_value=2,
        metavar="[EPOCHS]",
    )
    damp_percent: float = option(
        1e-4,
        "Damping of GPTQ: this fraction of the Hessian's mean diagonal is added to its diagonal.",
        group="Tuning",
        above=0,
        below=1,
    )
    compute_dtype: str = option(
        "auto",
        "Dtype of matrix products during quantization. auto: the fastest on this CPU, or MODEL's dtype on a GPU.",
        group="Resources",
        choices=COMPUTE_DTYPES,
    )

    def __post_init__(self) -> None:
        if self.method in BACKEND_METHODS:
            raise BadValueError(f"--method {self.method}: qcompress itself has no such method; add --backend")
        check_choice("--method", self.method, (*METHODS, AUTO))
        check_choice("--compute-dtype", self.compute_dtype, COMPUTE_DTYPES)
        if not 0 <= self.error_correction <= 1:
            raise BadValueError(f"--error-correction {self.error_correction}: must be from 0 (off) to 1")
        if self.tune < 0:
            raise BadValueError(f"--tune {self.tune}: must be a number of epochs, 0 (off) or more")
        if not 0 < self.damp_percent < 1:
            raise BadValueError(f"--damp-percent {self.damp_percent}: must be above 0 and below 1")


@dataclass(frozen=True)
class LayoutConfig:
    """How many bits each part of the model gets, and the format on disk.

    If `group_size` is 0, the largest possible size is chosen. If `sym` is None, grids are symmetric only in a format
    that requires it.
    """

    format: str = option(
        None,
        "Format of the checkpoint on disk.",
        group="Layout",
        choices=FORMAT_NAMES,
        default_text="gptq for --method gptq, compressed-tensors for rtn, else awq",
    )
    bits: int = 4
    group_size: int = option(
        0,
        "Weights per scale. auto: the largest size that divides the number of inputs of every linear.",
        group="Layout",
        choices=("auto", *map(str, GROUP_SIZES)),
        parse=parse_group_size,
        default_text="auto",
    )
    sym: bool | None = option(
        None,
        "Symmetric or asymmetric grid, for --format compressed-tensors only. gptq is always symmetric, awq never.",
        group="Layout",
        flag="--sym/--asym",
        default_text="asym",
    )
    head_bits: int = option(16, "Bits of the output head. 16 leaves it unquantized.", group="Layout", choices=HEAD_BITS)
    embedding_bits: int = option(
        16,
        "Bits of the embedding. 16 leaves it unquantized. 8 needs --format compressed-tensors and runs in vLLM on "
        "a GPU only.",
        group="Layout",
        choices=EMBEDDING_BITS,
    )
    eight_bit: tuple[str, ...] = option(
        (),
        "Store linears in 8 bits if their path contains this text, such as mlp.down_proj or layers.0. Repeatable.",
        group="Layout",
        metavar="PART",
    )
    text_only: bool = option(
        False,
        "Write only the language model of a multimodal model, as a model of its own.",
        group="Layout",
    )
    tensor_parallel_size: int = option(
        1,
        "Number of GPUs that will share each linear. If no group size divides their slices, zeros are added to the "
        "MLPs, which changes no output.",
        group="Layout",
        minimum=1,
    )
    max_size: int | None = option(
        None,
        "Largest size of the weight files: 2GB, 1.5GiB, 800MB. A larger result is refused before any work.",
        group="Layout",
        parse=parse_size,
        metavar="SIZE",
        default_text="no limit",
    )
    dtype: str | None = option(
        None,
        "Dtype of all tensors that are not quantized.",
        group="Layout",
        choices=STORAGE_DTYPES,
        default_text="MODEL's dtype, or float16 if that is float32",
    )

    def __post_init__(self) -> None:
        check_choice("--format", self.format, FORMAT_NAMES)
        check_choice("bits", self.bits, (4,))
        check_choice("--group-size", self.group_size, (0, *GROUP_SIZES))
        check_choice("--head-bits", self.head_bits, HEAD_BITS)
        check_choice("--embedding-bits", self.embedding_bits, EMBEDDING_BITS)
        check_choice("--dtype", self.dtype, (None, *STORAGE_DTYPES))
        if self.tensor_parallel_size < 1:
            raise BadValueError(f"--tensor-parallel-size {self.tensor_parallel_size}: must be 1 or more")
        object.__setattr__(self, "eight_bit", tuple(self.eight_bit))
        if self.sym is not None and self.sym != self.symmetric:
            grids = "symmetric" if self.symmetric else "asymmetric"
            raise BadValueError(f"--format {self.format}: it stores {grids} grids only; leave out --sym and --asym")

    @property
    def symmetric(self) -> bool:
        """True if grids are symmetric. gptq grids always are, awq grids never; in compressed-tensors `sym` decides."""
        return {"gptq": True, "awq": False}.get(self.format, bool(self.sym))


@dataclass(frozen=True)
class CalibrationConfig:
    """The windows of text on which statistics are measured.

    `held_out` more windows follow the `samples` windows in the text. No method reads them: they only measure KL. If the
    text is too short for all these windows, methods read `held_out` fewer windows.
    """

    text: tuple[str, ...] = option(
        ("default",),
        "Calibration text: a built-in NAME or a FILE. Repeatable. FILE=2 doubles the weight of a text in the mixture.",
        group="Calibration",
        metavar="TEXT",
    )
    samples: int = option(128, "Number of calibration windows.", group="Calibration", minimum=1)
    seq_len: int = option(512, "Tokens per calibration window.", group="Calibration", minimum=8)
    seed: int = option(0, "Random seed for the choice of windows.", group="Calibration")
    held_out: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", (self.text,) if isinstance(self.text, str) else tuple(self.text))
        if not self.text:
            raise BadValueError("--text: the list of texts is empty; give a file or the name of a bundled text")
        for name, value in {"--samples": self.samples, "--seq-len": self.seq_len}.items():
            if value < 1:
                raise BadValueError(f"{name} {value}: must be 1 or more")
        if not 0 <= self.held_out < self.samples:
            raise BadValueError(f"held_out={self.held_out}: must be 0 or more, and below --samples {self.samples}")


@dataclass(frozen=True)
class QuantizeConfig(CalibrationConfig, LayoutConfig, MethodConfig):
    """All settings that determine the bytes of a quantized checkpoint."""

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        if self.format is None:
            object.__setattr__(self, "format", DEFAULT_FORMAT[self.method])
        LayoutConfig.__post_init__(self)
        CalibrationConfig.__post_init__(self)
        if (self.tune or self.method == AUTO) and self.samples < 2:
            raise BadValueError(
                f"--samples {self.samples}: must be 2 or more, because --tune and --method auto hold out windows"
            )

    @property
    def reads_text(self) -> bool:
        """True if the job needs calibration windows. All methods except rtn need them, and --tune always does."""
        return self.method != "rtn" or self.tune > 0

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the settings that have no effect with this method."""
        calibration = () if self.reads_text else CALIBRATION_ONLY
        damps = self.method in ("gptq", "awq+gptq", AUTO) or (self.method == "awq" and self.error_correction > 0)
        return calibration if damps else (*calibration, "damp_percent")

    def check_used(self, names: Iterable[str]) -> None:
        """Raise BadValueError if a setting in `names` has no effect. `names` are the settings that the user set."""
        for name in self.unused:
            if name in names:
                correction = " and --error-correction 0" if self.method == "awq" else ""
                raise BadValueError(
                    f"--{name.replace('_', '-')}: has no effect with --method {self.method}{correction}; leave it out"
                )

    def with_held_out(self) -> "QuantizeConfig":
        """The same settings, but with windows held out. If `held_out` is 0, it becomes an eighth of `samples`."""
        return self if self.held_out else replace(self, held_out=max(1, self.samples // 8))
