"""Rules R1–R5: another runtime than vLLM reads the checkpoint. LOADERS has the facts.

An error has a `cure`: the command that makes a checkpoint which this runtime reads.
"""

from collections.abc import Callable

from compress.checkpoint.check.candidate import Candidate, Finding, Findings, error, warning
from compress.checkpoint.check.loaders import GGUF, PLAIN, Loader
from compress.core.scheme import Scheme

QUANT_METHOD = "quantization_config.quant_method"


def readable_layout(candidate: Candidate, loader: Loader) -> Findings:
    """R1: the runtime reads the layout."""
    layout = layout_of(candidate)
    if layout not in loader.layouts:
        yield cured(error(layout, listed(loader.layouts), loader.consequence, key=QUANT_METHOD), candidate, loader)


def readable_bits(candidate: Candidate, loader: Loader) -> Findings:
    """R2: the runtime reads the number of bits of every packed module."""
    bits = loader.layouts.get(layout_of(candidate), ())
    for name, scheme in packed_schemes(candidate):
        if bits and scheme.bits not in bits:
            stop = f"{loader.name} has no kernel for it"
            yield cured(error(f"{scheme.bits} bits", f"{listed(bits)} bits", stop, tensor=name), candidate, loader)


def readable_groups(candidate: Candidate, loader: Loader) -> Findings:
    """R3: the runtime reads the group size, and groups and words divide its kernels' blocks."""
    sizes, (inputs, outputs) = loader.group_sizes, loader.multiple
    if layout_of(candidate) not in loader.layouts:
        return
    for name, scheme in packed_schemes(candidate):
        matrix = candidate.matrices[name]
        if sizes and scheme.group_size not in sizes:
            stop = f"{loader.name} stops"
            yield requantize(error(f"groups of {scheme.group_size}", listed(sizes), stop, tensor=name), sizes)
        elif matrix.inn % inputs or matrix.out % outputs:
            value = f"{matrix.out} × {matrix.inn}"
            expected = f"multiples of {outputs} × {inputs}"
            yield error(value, expected, f"{loader.name} has no kernel for the shape", tensor=name)


def readable_tables(candidate: Candidate, loader: Loader) -> Findings:
    """R4: head and embedding are packed only if the runtime reads that."""
    for name in sorted(candidate.packed_tables):
        kind = candidate.kind(name)
        if kind not in loader.tables and layout_of(candidate) in loader.layouts:
            finding = error(f"packed {kind}", f"a {kind} in 16 bits", f"{loader.name} stops", tensor=name)
            yield {**finding, "cure": f"quantize again with --{kind}-bits 16"}


def known_model(candidate: Candidate, loader: Loader) -> Findings:
    """R5: the runtime's documentation lists the model type."""
    model_type = candidate.config.get("model_type")
    if loader.model_types is not None and model_type not in loader.model_types:
        listed_types = listed(sorted(loader.model_types))
        yield warning(model_type, listed_types, f"{loader.name} may not have the model", key="model_type")


RULES: tuple[tuple[str, Callable[[Candidate, Loader], Findings]], ...] = (
    ("R1", readable_layout),
    ("R2", readable_bits),
    ("R3", readable_groups),
    ("R4", readable_tables),
    ("R5", known_model),
)


def layout_of(candidate: Candidate) -> str:
    return candidate.format.name if candidate.format else str(candidate.quant.get("quant_method") or PLAIN)


def packed_schemes(candidate: Candidate) -> list[tuple[str, Scheme]]:
    """The packed linears with a valid scheme. R4 covers head and embedding."""
    schemes = candidate.schemes.items()
    return [(name, scheme) for name, scheme in schemes if scheme and name not in candidate.packed_tables]


def cured(finding: Finding, candidate: Candidate, loader: Loader) -> Finding:
    """The finding with the command for the first layout of the runtime that holds the same codes."""
    target = convertible(candidate, loader)
    if target is None:
        then = ", then convert it with --to gguf" if GGUF in loader.layouts else ""
        return {**finding, "cure": f"quantize the 16-bit model with --format {preferred(loader)}{then}"}
    out = f"{candidate.checkpoint.path.name}.gguf" if target == GGUF else f"{candidate.checkpoint.path.name}-{target}"
    return {**finding, "cure": f"qcompress convert {candidate.checkpoint.path} --to {target} -o {out}"}


def convertible(candidate: Candidate, loader: Loader) -> str | None:
    """The runtime's first layout that `convert` writes from this checkpoint exactly, or None."""
    schemes = [scheme for scheme in candidate.schemes.values() if scheme]
    plain_embedding = candidate.table.embedding not in candidate.packed
    holds = {
        "awq": plain_embedding and all(scheme.bits == 4 for scheme in schemes),
        "gptq": plain_embedding and all(scheme.sym for scheme in schemes),
        GGUF: all(scheme.sym or scheme.bits == 4 for scheme in schemes),
    }
    present = layout_of(candidate)
    for layout, bits in loader.layouts.items():
        if schemes and layout != present and holds.get(layout) and all(scheme.bits in bits for scheme in schemes):
            return layout
    return None


def preferred(loader: Loader) -> str:
    return next((layout for layout in loader.layouts if layout not in (PLAIN, GGUF)), "gptq")


def requantize(finding: Finding, sizes: tuple[int, ...]) -> Finding:
    return {**finding, "cure": f"quantize the 16-bit model again with --group-size {max(sizes)}"}


def listed(values: object) -> str:
    return " or ".join(map(str, values))  # type: ignore[call-overload]
