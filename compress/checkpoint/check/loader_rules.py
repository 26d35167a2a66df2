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
    """R3: the runtime reads the group size of every packed linear."""
    sizes = loader.group_sizes
    for name, scheme in packed_schemes(candidate) if layout_of(candidate) in loader.layouts else ():
        if sizes and scheme.group_size not in sizes:
            finding = error(f"groups of {scheme.group_size}", listed(sizes), f"{loader.name} stops", tensor=name)
            yield {**finding, "cure": f"quantize the 16-bit model with --group-size {max(128, min(sizes))}"}


def readable_tables(candidate: Candidate, loader: Loader) -> Findings:
    """R4: head and embedding are packed only if the runtime reads that."""
    if layout_of(candidate) not in loader.layouts:
        return
    for name in sorted(candidate.packed_tables):
        kind = candidate.kind(name)
        if loader.tables is None:
            undocumented = f"{loader.name} does not document packed tables: it may stop"
            yield warning(f"packed {kind}", f"a {kind} in 16 bits", undocumented, tensor=name)
        elif kind not in loader.tables:
            finding = error(f"packed {kind}", f"a {kind} in 16 bits", f"{loader.name} stops", tensor=name)
            yield {**finding, "cure": f"quantize the 16-bit model with --{kind}-bits 16"}


def known_architecture(candidate: Candidate, loader: Loader) -> Findings:
    """R5: the runtime builds the architecture."""
    names = candidate.config.get("architectures") or ["none"]
    if loader.architectures is not None and not loader.architectures.intersection(names):
        stop = f"{loader.name} stops: it has no builder for it"
        yield error(names[0], f"one of {len(loader.architectures)} architectures", stop, key="architectures")


RULES: tuple[tuple[str, Callable[[Candidate, Loader], Findings]], ...] = (
    ("R1", readable_layout),
    ("R2", readable_bits),
    ("R3", readable_groups),
    ("R4", readable_tables),
    ("R5", known_architecture),
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


def listed(values: object) -> str:
    return " or ".join(map(str, values))  # type: ignore[call-overload]
