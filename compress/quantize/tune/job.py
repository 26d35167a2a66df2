"""Tuning inside a job: read the unfinished checkpoint back, train it, and overwrite its old values.

The trained values are first stored in a file of the work folder. If a run is killed while it overwrites the checkpoint,
the next run writes them again from this file. So no value is trained twice.
"""

from hashlib import sha256

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from compress.checkpoint.write import CheckpointWriter
from compress.core.atomic import write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import WORK_FILE
from compress.core.grid import QuantizedWeight
from compress.model.blocks import BlockModel, Weights
from compress.quantize.blocks.loop import QuantizeJob
from compress.quantize.calibrate import block_matmul_dtype
from compress.quantize.journal import TRAINED
from compress.quantize.layout.plan import LayoutPlan
from compress.quantize.tune.end_to_end import TunedWeights, TuneSettings, tune_model


def tune_checkpoint(job: QuantizeJob, writer: CheckpointWriter, ids: Tensor) -> None:
    """Train the checkpoint in `writer` on (n, seq) ids, and write the result. The journal stores the KLs."""
    file, notes = job.journal.folder / TRAINED, job.journal.notes
    if not file.is_file():
        student = make_student(writer, job.plan, job.blocks.layers_path, job.blocks.device)
        teacher, model = (float32_model(job, weights) for weights in (job.blocks.source, student.weights))
        settings = tune_settings(job)
        result = tune_model(teacher, model, student, ids, settings, job.report)
        student.multipliers = result.multipliers
        notes["tune"] = {name: getattr(result, name) for name in ("kl_before", "kl_blocks", "kl", "step")}
        data = save(changed_tensors(student, writer, job.plan))
        notes["tuned_file"] = sha256(data).hexdigest()
        job.journal.save()
        write_atomic(file, data, kind=WORK_FILE)
    elif sha256(file.read_bytes()).hexdigest() != notes.get("tuned_file"):
        raise QCompressError(f"{file}: changed since the interrupted run wrote it; start again with --restart")
    job.report({"tuned": str(writer.out), **notes["tune"]})
    for name, tensor in load_file(file).items():
        writer.write(name, tensor)


def float32_model(job: QuantizeJob, weights: Weights) -> BlockModel:
    """The job's model with these weights. It is float32 on every device: losses and gradients overflow float16."""
    return BlockModel(job.checkpoint.config, weights, torch.float32, job.blocks.device)


def tune_settings(job: QuantizeJob) -> TuneSettings:
    """The settings of tuning in this job.

    After error correction, blocks are not trained alone, because they are already fitted to these windows.
    """
    matmul_dtype = block_matmul_dtype(job.config, job.blocks.device)
    alone = 0 if job.config.error_correction else TuneSettings.block_epochs
    return TuneSettings(job.config.tune, alone, held_out=job.config.held_out, matmul_dtype=matmul_dtype)


def make_student(writer: CheckpointWriter, plan: LayoutPlan, layers_path: str, device: torch.device) -> TunedWeights:
    """The written checkpoint, with multipliers for the scales, norms and biases of all blocks.

    Embedding, final norm and head are not trained, so they have no multipliers. Half the free memory of a GPU keeps
    codes; the others are read from disk again at each step.
    """
    kept: dict[str, QuantizedWeight] = {}
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0

    def packed(module: str) -> QuantizedWeight:
        nonlocal room
        if module in kept:
            return kept[module]
        weight = plan.format.load(lambda suffix: writer.tensor(f"{module}.{suffix}"), plan.schemes[module]).to(device)
        if room >= weight.codes.nbytes:
            room, kept[module] = room - weight.codes.nbytes, weight
        return weight

    def plain(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        return packed(module).dequantize() if module in plan.tables else writer.tensor(name)

    shapes: dict[str, tuple[int, ...]] = {
        name: (out, inn // plan.schemes[name].group_size) for name, (out, inn) in plan.linears.items()
    }
    whole = (spec for spec in plan.specs if spec.name.endswith((".weight", ".bias")))
    shapes |= {spec.name: spec.shape for spec in whole if spec.name.startswith(f"{layers_path}.")}
    return TunedWeights(packed, plain, shapes, plan.scheme.dtype.torch, device)


def changed_tensors(student: TunedWeights, writer: CheckpointWriter, plan: LayoutPlan) -> dict[str, Tensor]:
    """Every tensor that training changed, by its name on disk: scales, norms, biases."""
    tensors: dict[str, Tensor] = {}
    for name in student.multipliers:
        stored = stored_tensors(student, name, plan)
        tensors |= {key: tensor for key, tensor in stored.items() if not torch.equal(tensor, writer.tensor(key))}
    return tensors


def stored_tensors(student: TunedWeights, name: str, plan: LayoutPlan) -> dict[str, Tensor]:
    """The tensors of a trained linear or parameter as they are stored on disk, by name."""
    if name not in plan.linears:
        return {name: student.plain(name).to("cpu", plan.scheme.dtype.torch)}
    parts = plan.format.save(student.packed(name).to("cpu"), plan.scheme.dtype.torch)
    return {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}
