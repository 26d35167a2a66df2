"""Settings of a job: frozen, checked where they are made, written into the checkpoint."""

import re
from dataclasses import dataclass, replace

METHODS = ("rtn", "gptq", "awq", "awq+gptq")
AUTO = "auto"  # every one of METHODS, judged on held-out windows
FORMAT_NAMES = ("awq", "gptq", "compressed-tensors")
DEFAULT_FORMAT = {"rtn": "compressed-tensors", "gptq": "gptq", "awq": "awq", "awq+gptq": "awq", AUTO: "awq"}
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
GROUP_SIZES = (128, 64, 32)  # what vLLM's kernels take, largest first
HEAD_BITS = (16, 8, 4)
EMBEDDING_BITS = (16, 8)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class QuantizeConfig:
    """How a checkpoint is quantized. `group_size` 0 means auto; `sym` None means what the format takes.

    `head_bits` and `embedding_bits` 16 mean not at all; `eight_bit` names linears by parts of their paths.
    `error_correction` is the strength, 0 to 1, with which a linear compensates for the rounding of earlier ones.
    `compute_dtype` is the type that blocks multiply in, auto the fastest of the machine; statistics are float32 sums.
    `tune` epochs of training follow the rounding. `held_out` windows are read by no method: they judge. They follow
    the `samples` in the text, or are the last of these where it has no more.
    """

    method: str
    format: str
    bits: int = 4
    group_size: int = 0
    sym: bool | None = None
    damp_percent: float = 1e-4
    error_correction: float = 0.7
    compute_dtype: str = "auto"
    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    max_size: int | None = None
    head_bits: int = 16
    embedding_bits: int = 16
    eight_bit: tuple[str, ...] = ()
    tune: int = 0
    held_out: int = 0

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, AUTO) or self.format not in FORMAT_NAMES:
            raise ValueError(
                f"method {self.method}, format {self.format}: known are {(*METHODS, AUTO)} and {FORMAT_NAMES}"
            )
        if self.bits != 4:
            raise ValueError(f"bits={self.bits}: 4 is what all three formats and vLLM's kernels take")
        if self.head_bits not in HEAD_BITS or self.embedding_bits not in EMBEDDING_BITS:
            found = f"head_bits={self.head_bits}, embedding_bits={self.embedding_bits}"
            raise ValueError(f"{found}: known are {HEAD_BITS} and {EMBEDDING_BITS}")
        if self.group_size and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size={self.group_size}: vLLM's kernels take {GROUP_SIZES}")
        if self.sym is not None and self.sym != self.symmetric:
            needed = "symmetric" if self.symmetric else "asymmetric"
            raise ValueError(f"format {self.format} holds {needed} grids only; leave --sym/--asym out")
        if not 0 <= self.error_correction <= 1:
            raise ValueError(f"error_correction={self.error_correction}: must lie between 0 (off) and 1")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype={self.compute_dtype}: known are {COMPUTE_DTYPES}")
        if self.tune < 0 or not 0 <= self.held_out < self.samples:
            raise ValueError(f"tune={self.tune}, held_out={self.held_out} of samples={self.samples}")
        if (self.tune or self.method == AUTO) and self.samples < 2:
            raise ValueError(
                f"samples={self.samples}: --tune and --method auto need 2 at least, for windows that judge"
            )
        if min(self.samples, self.seq_len) < 1 or not 0 < self.damp_percent < 1:
            raise ValueError(f"samples={self.samples}, seq_len={self.seq_len}, damp_percent={self.damp_percent}")

    @property
    def symmetric(self) -> bool:
        """gptq stores symmetric grids, awq asymmetric ones, compressed-tensors both (asymmetric unless told)."""
        fixed = {"gptq": True, "awq": False}
        return fixed.get(self.format, bool(self.sym))

    def judged(self) -> "QuantizeConfig":
        """The same with windows held out: an eighth as many as calibrate, where nobody has said it."""
        return self if self.held_out else replace(self, held_out=max(1, self.samples // 8))


def parse_size(text: str) -> int:
    """Bytes of "2GB", "1.5 GiB", "800MB" or a plain number. ValueError says what is understood."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"size {text!r}: write it as 2GB, 1.5GiB or 800MB")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])
