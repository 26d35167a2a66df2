"""The settings of a quantization by another program, a backend. `compress/backends` runs backends.

The names, methods and formats are here, because command-line options and recipes need them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from compress.core.config import FORMAT_NAMES, CalibrationConfig, QuantizeConfig, check_choice
from compress.core.errors import BadValueError
from compress.core.options import option

OWN = "qcompress"
GGUF = "gguf"
ROUNDINGS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("auto-round", "auto-round-light"), ("gptq", "awq", "compressed-tensors")
)
BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {  # name -> method -> formats; the first one is the default
    "autoawq": {"awq": ("awq",)},
    "auto-gptq": {"gptq": ("gptq",)},
    "optimum": {"gptq": ("gptq",)},
    "gptqmodel": {"gptq": ("gptq",), "awq": ("awq",)},
    "llm-compressor": {"gptq": ("compressed-tensors",), "awq": ("compressed-tensors",)},
    "auto-round": ROUNDINGS,
    "llama.cpp": {"Q4_K_M": (GGUF,), "Q4_0": (GGUF,), "IQ4_XS": (GGUF,)},
}
BACKEND_NAMES = (OWN, *BACKENDS)
OF_THE_RUN = ("activation_memory",)  # options of a run that only qcompress's own methods have
SETTINGS = ("backend", "method", "format", "group_size", "text", "samples", "seq_len", "seed")


@dataclass(frozen=True)
class BackendChoice:
    """The option that chooses the program."""

    backend: str = option(
        OWN,
        "Program that quantizes. All but qcompress run in environments of their own: see `qcompress backends`. They "
        "use --method, --format, --group-size and the calibration options only.",
        choices=BACKEND_NAMES,
    )


@dataclass(frozen=True)
class BackendConfig(CalibrationConfig):
    """All settings that a backend gets. If `group_size` is 0, the largest possible size is chosen."""

    backend: str = ""
    method: str = ""
    format: str = ""
    group_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--backend", self.backend, tuple(BACKENDS))
        methods = BACKENDS[self.backend]
        object.__setattr__(self, "method", self.method or next(iter(methods)))
        if self.method not in methods:
            raise BadValueError(
                f"--method {self.method}: --backend {self.backend} has no such method; choose {', '.join(methods)}"
            )
        formats = methods[self.method]
        object.__setattr__(self, "format", self.format or formats[0])
        if self.format not in formats:
            raise BadValueError(
                f"--format {self.format}: --backend {self.backend} writes {' or '.join(formats)}; leave out --format"
            )
        if self.format == GGUF and self.group_size:
            raise BadValueError(f"--group-size: --method {self.method} fixes the groups; leave it out")

    @property
    def sym(self) -> bool:
        """Whether the grids are symmetric: all but those of awq are."""
        return self.format != "awq" and self.method != "awq"

    @property
    def layout(self) -> QuantizeConfig:
        """Settings of qcompress that give a checkpoint of the same layout and size. For gguf only groups are unlike."""
        name = self.format if self.format in FORMAT_NAMES else "gptq"
        sym = self.sym if name == "compressed-tensors" else None
        calibration = {key: getattr(self, key) for key in ("text", "samples", "seq_len", "seed")}
        return QuantizeConfig(method="gptq", format=name, group_size=self.group_size, sym=sym, **calibration)

    def with_group_size(self, size: int) -> "BackendConfig":
        return replace(self, group_size=size)


def make_config(values: dict[str, Any], names: Collection[str]) -> QuantizeConfig | BackendConfig:
    """The settings of `quantize` from options by name. `names` are those that the user has set.

    Raises BadValueError for a wrong value, and for a set option that has no effect.
    """
    values = dict(values)
    backend = values.pop("backend", OWN)
    if backend == OWN:
        config = QuantizeConfig(**{name: value for name, value in values.items() if name not in OF_THE_RUN})
        config.check_used(names)
        return config
    for name in names:
        if name in values and name not in SETTINGS:
            raise BadValueError(
                f"--{name.replace('_', '-')}: has no effect with --backend {backend}, which uses its own value; "
                "leave it out"
            )
    kept = {name: values[name] for name in SETTINGS if name in names and name in values}
    return BackendConfig(backend=backend, **kept)
