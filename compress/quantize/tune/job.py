"""Tuning inside a job: the unfinished checkpoint is read back, trained, and its better scales are written over it.

What was found lies in a file of its own in the work folder before anything is overwritten, so that a run killed in
between writes the same again instead of training on what it has changed.
"""

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from compress.checkpoint.write import CheckpointWriter
from compress.core.atomic import write_atomic
from compress.core.grid import QuantizedWeight
from compress.model.blocks import BlockModel
from compress.quantize.blocks.loop import QuantizeJob
from compress.quantize.calibrate import block_matmul_dtype
from compress.quantize.layout.plan import LayoutPlan
from compress.quantize.tune.end_to_end import TunedWeights, TuneSettings, tune_model

FOUND = "tuned.safetensors"


def tune_checkpoint(job: QuantizeJob, writer: CheckpointWriter, ids: Tensor) -> None:
    """Train what `writer` holds on (n, seq) ids and write the better values; the journal notes what it brought."""
    file, notes = job.journal.folder / FOUND, job.journal.notes
    if not file.is_file():
        student = make_student(writer, job.plan, job.blocks.layers_path)
        model = BlockModel(job.checkpoint.config, student.weights, job.blocks.dtype, job.blocks.device)
        settings = tune_settings(job)
        found = tune_model(job.blocks, model, student, ids, settings, job.report)
        student.multipliers = found.multipliers
        notes["tune"] = {name: getattr(found, name) for name in ("kl_before", "kl_blocks", "kl", "step")}
        job.journal.save()
        write_atomic(file, save(changed_tensors(student, writer, job.plan)))
    job.report({"tuned": str(writer.out), **notes["tune"]})
    for name, tensor in load_file(file).items():
        writer.write(name, tensor)


def tune_settings(job: QuantizeJob) -> TuneSettings:
    """Blocks are trained one by one only without error correction, which has already fitted them to these windows."""
    matmul_dtype = block_matmul_dtype(job.config, job.blocks.device)
    alone = 0 if job.config.error_correction else TuneSettings.block_epochs
    return TuneSettings(job.config.tune, alone, held_out=job.config.held_out, matmul_dtype=matmul_dtype)


def make_student(writer: CheckpointWriter, plan: LayoutPlan, layers_path: str) -> TunedWeights:
    """The written checkpoint as a student. Scales of all block linears, and the blocks' norms and biases, are trained;
    embedding, final norm and head stay as they are."""

    def packed(module: str) -> QuantizedWeight:
        return plan.format.load(lambda suffix: writer.tensor(f"{module}.{suffix}"), plan.schemes[module])

    def plain(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        return packed(module).dequantize() if module in plan.tables else writer.tensor(name)

    shapes: dict[str, tuple[int, ...]] = {
        name: (out, inn // plan.schemes[name].group_size) for name, (out, inn) in plan.linears.items()
    }
    whole = (spec for spec in plan.specs if spec.name.endswith((".weight", ".bias")))
    shapes |= {spec.name: spec.shape for spec in whole if spec.name.startswith(f"{layers_path}.")}
    return TunedWeights(packed, plain, shapes, plan.scheme.dtype)


def changed_tensors(student: TunedWeights, writer: CheckpointWriter, plan: LayoutPlan) -> dict[str, Tensor]:
    """By name on disk, every tensor that is not what `writer` holds: scales, norms, biases."""
    tensors: dict[str, Tensor] = {}
    for name in student.multipliers:
        now = written_as(student, name, plan)
        tensors |= {key: tensor for key, tensor in now.items() if not torch.equal(tensor, writer.tensor(key))}
    return tensors


def written_as(student: TunedWeights, name: str, plan: LayoutPlan) -> dict[str, Tensor]:
    """What a trained linear or parameter is on disk, by name."""
    if name not in plan.linears:
        return {name: student.plain(name).to(plan.scheme.dtype)}
    parts = plan.format.save(student.packed(name), plan.scheme.dtype)
    return {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}
