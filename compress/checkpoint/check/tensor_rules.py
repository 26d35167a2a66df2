"""Rules T1–T4, T6, T8, T10, T11 and TP: names, dtypes and shapes, from the headers alone.

Every rule is a generator: it takes a Candidate and yields its findings. vLLM allocates parameters
uninitialized and does not detect missing ones, so a missing tensor gives noise without a message.
"""

import re
from collections.abc import Callable, Iterator

from compress.checkpoint.arrays import read_array
from compress.checkpoint.check.candidate import PACKED, Candidate, Findings, error, misfit, warning
from compress.checkpoint.write import TensorSpec
from compress.core.dtypes import Dtype
from compress.core.scheme import Scheme
from compress.model.shapes import Linear

UNSET = "vLLM leaves it uninitialized and generates noise (no error)"
HARMLESS = re.compile(r"(rotary_emb\.inv_freq|\.[qkv]_scale|\.(output|input)_scale)$")
FLOATS = (Dtype.float16, Dtype.bfloat16, Dtype.float32)


def planned(candidate: Candidate) -> Iterator[tuple[str, TensorSpec]]:
    """(module, tensor spec) of every tensor that the packed modules must have, for modules with a valid scheme."""
    for name, scheme in candidate.schemes.items():
        matrix = candidate.matrices[name]
        if candidate.format and scheme and not misfit(matrix, scheme):
            for spec in candidate.format.specs(matrix.out, matrix.inn, scheme):
                yield name, spec


def complete_modules(candidate: Candidate) -> Findings:
    """T1: a packed module has every tensor of its format and no .weight."""
    if candidate.format is None:
        return
    names = candidate.checkpoint.tensors
    for name, spec in planned(candidate):
        if f"{name}.{spec.name}" not in names and not (candidate.format.name == "awq" and spec.name == "qzeros"):
            unset = "GPTQModel, transformers and llama.cpp stop without it" if spec.name == "g_idx" else UNSET
            yield error("missing", f"torch.{spec.dtype} {spec.shape}", unset, tensor=f"{name}.{spec.name}")
    for name in candidate.packed:
        if f"{name}.weight" in names:
            stop = f"vLLM stops: {name} has no parameter named weight"
            yield error("present", "packed tensors only", stop, tensor=f"{name}.weight")
    for name in candidate.table.linears:
        if name not in candidate.packed and f"{name}.weight" not in names:
            yield error(
                "missing", f"{name}.{candidate.format.packed}", UNSET, tensor=f"{name}.{candidate.format.packed}"
            )


def dtypes(candidate: Candidate) -> Findings:
    """T2: codes and zeros are int32, weight_shape int64, scales 16-bit floats of the model's dtype."""
    for name, spec in planned(candidate):
        info = candidate.checkpoint.tensors.get(f"{name}.{spec.name}")
        if info is None or info.dtype == spec.dtype:
            continue
        if spec.dtype.is_floating_point and info.dtype in (Dtype.float16, Dtype.bfloat16):
            cast = "vLLM casts the scales when it loads them, which can lose their last bits"
            yield warning(f"torch.{info.dtype}", f"torch.{spec.dtype}", cast, tensor=f"{name}.{spec.name}")
        else:
            copied = "vLLM copies the numbers into a tensor of the expected dtype, with a warning at most"
            yield error(f"torch.{info.dtype}", f"torch.{spec.dtype}", copied, tensor=f"{name}.{spec.name}")


def shapes(candidate: Candidate) -> Findings:
    """T3: shapes match out, in and group size; weight_shape holds (out, in)."""
    for name, spec in planned(candidate):
        path = f"{name}.{spec.name}"
        info = candidate.checkpoint.tensors.get(path)
        if info is None:
            continue
        if info.shape != spec.shape:
            stop = "vLLM stops, or uses only the first rows (no error)"
            yield error(list(info.shape), list(spec.shape), stop, tensor=path)
        elif spec.name == "weight_shape" and info.dtype == Dtype.int64:
            stored, matrix = read_array(candidate.checkpoint, path).tolist(), candidate.matrices[name]
            if stored != [matrix.out, matrix.inn]:
                other = "vLLM ignores it; transformers unpacks to this shape and stops"
                yield error(stored, [matrix.out, matrix.inn], other, tensor=path)


def divisible_shapes(candidate: Candidate) -> Findings:
    """T4: every packed matrix divides into whole groups and words, and vLLM has a fast kernel for its shape."""
    for name, scheme in candidate.schemes.items():
        reason = scheme and misfit(candidate.matrices[name], scheme)
        if reason:
            yield error(reason, "whole groups, whole words", "vLLM stops: not divisible, or shapes differ", tensor=name)
    layers = list(packed_layers(candidate))
    for (fits, expected), consequence in KERNELS.items():
        misfits = [(name, matrix, scheme) for name, matrix, scheme in layers if not fits(matrix, scheme)]
        if misfits:
            (name, matrix, scheme), more = misfits[0], len(misfits) - 1
            where = f"{name} and {more} more" if more else name
            yield warning(
                f"{scheme.bits} bits, {matrix.inn} inputs, {matrix.out} outputs", expected, consequence, tensor=where
            )


def fits_cpu(matrix: Linear, scheme: Scheme) -> bool:
    return scheme.bits == 4 and matrix.inn % 32 == 0 and matrix.out % 32 == 0


def fits_marlin(matrix: Linear, scheme: Scheme) -> bool:
    return matrix.inn % 128 == 0 and matrix.out % 64 == 0


def fits_machete(matrix: Linear, scheme: Scheme) -> bool:
    return matrix.inn % 64 == 0 and matrix.out % 128 == 0


KERNELS: dict[tuple[Callable[[Linear, Scheme], bool], str], str] = {
    (fits_cpu, "4 bits, multiples of 32"): "vLLM has no CPU kernel for it and stops on a CPU",
    (fits_marlin, "multiples of 128 and 64"): "Marlin pads it with zeros: correct, but slower",
    (fits_machete, "multiples of 64 and 128"): "Hopper GPUs use Marlin instead of Machete: correct, but slower",
}


def packed_layers(candidate: Candidate) -> Iterator[tuple[str, Linear, Scheme]]:
    """(name, matrix, scheme) of the packed matrices that vLLM multiplies with: fused layers, and single linears.

    The embedding is left out, because it is a lookup.
    """
    for name, scheme in candidate.schemes.items():
        fused = candidate.fused_name.get(name)
        if scheme is None or name == candidate.table.embedding or (fused and candidate.table.fused[fused][0] != name):
            continue
        shards = (
            [candidate.matrices[shard] for shard in candidate.table.fused[fused]]
            if fused
            else [candidate.matrices[name]]
        )
        yield fused or name, Linear(sum(shard.out for shard in shards), shards[0].inn), scheme


def awq_zeros(candidate: Candidate) -> Findings:
    """T6: AWQ stores zeros for every linear, even if all are 8."""
    if candidate.format and candidate.format.name == "awq":
        for name, spec in planned(candidate):
            if spec.name == "qzeros" and f"{name}.qzeros" not in candidate.checkpoint.tensors:
                yield error("missing", f"torch.{spec.dtype} {spec.shape}", UNSET, tensor=f"{name}.qzeros")


def fused_layers_match(candidate: Candidate) -> Findings:
    """T8: the linears of a fused layer have one scheme. The checkpoint has the architecture's biases and no others."""
    for fused, shards in candidate.table.fused.items():
        kinds = {shard: candidate.schemes.get(shard, "plain") for shard in shards}
        if len(set(kinds.values())) > 1:
            value = ", ".join(f"{shard.rpartition('.')[2]} {kind_text(kind)}" for shard, kind in kinds.items())
            stop = "vLLM stops: only some shards are quantized; or it uses the first shard's settings (no error)"
            yield error(value, f"one kind for {fused}", stop, tensor=fused)
    names = candidate.checkpoint.tensors
    for name, matrix in candidate.table.linears.items():
        if matrix.bias:
            yield from float_parameter(candidate, f"{name}.bias", (matrix.out,))
    for name in names:
        if name.endswith(".bias") and name not in candidate.table.state_names:
            dropped = "the architecture has no bias here, so vLLM ignores it (no error)"
            yield error("present", "no such tensor", dropped, tensor=name)


def kind_text(kind: Scheme | str | None) -> str:
    return f"{kind.bits} bits, groups of {kind.group_size}" if isinstance(kind, Scheme) else str(kind)


def float_parameter(candidate: Candidate, name: str, shape: tuple[int, ...]) -> Findings:
    """A finding unless the checkpoint has the parameter `name` as a float tensor of this shape."""
    info = candidate.checkpoint.tensors.get(name)
    if info is None:
        yield error("missing", list(shape), UNSET, tensor=name)
    elif info.dtype not in FLOATS:
        yield error(
            f"torch.{info.dtype}", "a 16- or 32-bit float", "vLLM copies the integers into a float tensor", tensor=name
        )
    elif info.shape != shape:
        yield error(list(info.shape), list(shape), "vLLM stops: shapes differ", tensor=name)


def unpacked_parameters(candidate: Candidate) -> Findings:
    """T10: every unpacked parameter exists as a float tensor of the shape in config.json."""
    for name, shape in candidate.table.parameters.items():
        module, _, suffix = name.rpartition(".")
        if is_unknown_expert(candidate, name) or (suffix == "weight" and module in candidate.packed):
            continue
        linear = candidate.table.linears.get(module)
        if linear and (suffix == "bias" or (candidate.format and name not in candidate.checkpoint.tensors)):
            continue  # T8 and T1
        yield from float_parameter(candidate, name, shape)


def no_unknown_tensors(candidate: Candidate) -> Findings:
    """T11: every tensor belongs to a parameter of the model."""
    expected = candidate.table.state_names | {f"{name}.{spec.name}" for name, spec in planned(candidate)}
    for name in candidate.checkpoint.tensors:
        module, _, suffix = name.rpartition(".")
        packed = suffix in PACKED and module in candidate.matrices
        if name in expected or suffix == "bias" or is_unknown_expert(candidate, name) or HARMLESS.search(name):
            continue
        if packed and (candidate.format is None or candidate.schemes.get(module) is None):
            continue  # C1–C6 report it
        if packed and misfit(candidate.matrices[module], candidate.schemes[module]):  # type: ignore[arg-type]
            continue  # T4
        yield error("present", "no such tensor", f"vLLM stops: no module or parameter named {name}", tensor=name)


def is_unknown_expert(candidate: Candidate, name: str) -> bool:
    """Whether a tensor belongs to experts whose names in files are unknown."""
    return candidate.table.stacked and ".experts." in name
