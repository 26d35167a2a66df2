"""The end of a job: write the tensors outside the blocks, tune, write the record, validate, and rename the folder."""

import json
from dataclasses import fields

from calibration.windows import Windows
from compress.checkpoint.check.run import check_written
from compress.checkpoint.door.files import COPIED, PROCESSORS
from compress.checkpoint.finite import cast_finite, check_finite
from compress.checkpoint.heldout import heldout_start, recorded_start
from compress.checkpoint.model_card import CARD, origin, write_card
from compress.checkpoint.read import RECORD
from compress.checkpoint.record import record_text
from compress.checkpoint.workdir import check_small_files_unchanged, check_weights_unchanged
from compress.checkpoint.write import CheckpointWriter, both_spellings
from compress.core.config import QuantizeConfig
from compress.core.errors import GateFailure, QCompressError
from compress.core.report import Row
from compress.quantize.blocks.loop import QuantizeJob
from compress.quantize.layout.vocabulary import pack_table
from compress.quantize.tune.job import tune_checkpoint


def finish(job: QuantizeJob, writer: CheckpointWriter, windows: Windows | None) -> None:
    """Write the tensors outside the blocks, tune the checkpoint if the config has `tune`, and publish it.

    Raises GateFailure if the validator finds an error. All files of the job are then removed.
    """
    tables = write_rest(job, writer)
    if job.config.tune and windows:
        tune_checkpoint(job, writer, windows.ids)
    checkpoint, plan = job.checkpoint, job.plan
    record = job_record(job, windows, tables)
    check_source(job)
    try:
        writer.publish(
            both_spellings(plan.written_config),
            source=checkpoint.path,
            copied=(*COPIED, *(PROCESSORS if plan.source.wrapper else ())),
            extra={RECORD: record, CARD: write_card(json.loads(record))},
            inspect=lambda folder: check_written(folder, checkpoint, source=checkpoint),
        )
    except GateFailure:
        job.journal.discard()
        raise


def check_source(job: QuantizeJob) -> None:
    """Raise QCompressError if the source changed during the run. The finished blocks are then removed."""
    try:
        check_weights_unchanged(job.checkpoint)
        check_small_files_unchanged(job.checkpoint, job.journal.settings["small_files"])
    except QCompressError:
        job.journal.discard()
        raise


def write_rest(job: QuantizeJob, writer: CheckpointWriter) -> list[Row]:
    """Write embedding, final norm and head. Returns a report row for each of them that is packed."""
    rows, tensor = [], job.checkpoint.tensor
    for module, source in job.plan.tables.items():
        weight = check_finite(source, tensor(source))
        parts, row = pack_table(weight, job.plan.format, job.plan.schemes[module])
        for suffix, part in parts.items():
            writer.write(f"{module}.{suffix}", part)
        rows.append({"linear": module, **row})
        job.report(rows[-1])
    for name in writer.specs.keys() - writer.written:
        writer.write(name, cast_finite(name, tensor(name), writer.specs[name].dtype.torch))
    return rows


def job_record(job: QuantizeJob, windows: Windows | None, tables: list[Row]) -> str:
    """The text of qcompress.json: the job's settings, and the error of each linear.

    Run times are left out, so that every run of a job writes the same text.
    """
    return record_text(
        "quantize",
        {field.name: job.journal.settings.get(field.name) for field in fields(QuantizeConfig)},
        source=origin(job.checkpoint),
        size={
            "bytes": job.plan.bytes,
            "source_bytes": job.checkpoint.bytes,
            "bits_per_weight": round(job.plan.bits_per_weight, 4),
        },
        start=heldout_start(job.checkpoint, str(job.blocks.device)) if windows else recorded_start(job.checkpoint),
        calibration=windows.manifest | {"start": job.journal.notes["start"]} if windows else None,
        rows=job.journal.rows,
        tables=tables,
        tune=job.journal.notes.get("tune"),
    )
