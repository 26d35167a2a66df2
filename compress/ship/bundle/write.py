"""Write a bundle beside its place, verify it, and rename it when it is complete.

Equal input gives equal bytes: no times, sorted lists. smoke.json is computed, so it also depends on this machine's
arithmetic.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.checkpoint.check.run import check_checkpoint, describe_errors, error_rows
from compress.checkpoint.digest import weights_digest
from compress.checkpoint.load import open_for_text
from compress.checkpoint.workdir import mixed, sync_folder
from compress.checkpoint.write import UNFINISHED, check_out, check_room, partial_path, sync
from compress.core.atomic import check_parent, file_errors
from compress.core.errors import GateFailure, QCompressError
from compress.core.lock import output_lock
from compress.core.report import Report, Row, silent
from compress.core.rows import ShipRow
from compress.core.units import format_bytes
from compress.ship import device
from compress.ship.boards import find_board
from compress.ship.bundle.chat import write_chat
from compress.ship.bundle.compose import COMPOSE, compose_text
from compress.ship.bundle.licenses import write_licenses
from compress.ship.bundle.manifest import MANIFEST, json_text, manifest
from compress.ship.bundle.model_files import copy_model
from compress.ship.bundle.plan import MODEL, BundlePlan, make_plan
from compress.ship.bundle.readme import README, readme_text
from compress.ship.bundle.reference import make_reference
from compress.ship.bundle.sbom import SBOM, sbom
from compress.ship.bundle.settings import ShipConfig
from compress.ship.bundle.sums import entries, write_sums
from compress.ship.bundle.units import QUADLET, SERVICE_FILE, quadlet_text, service_text
from compress.ship.bundle.verify import file_faults
from compress.ship.gate import Request, check_fit
from compress.ship.gguf.export import export_gguf

DEVICE = Path(device.__file__).parent
PROGRAMS = ("install.sh", "smoke.py")
REFERENCE = "smoke.json"


def ship(source: Path, out: Path, config: ShipConfig, report: Report = silent) -> ShipRow:
    """Write a checkpoint and all that a board needs to serve it to the folder `out`. Returns a row about the bundle.

    Raises GateFailure if the checkpoint breaks a rule of `check` or does not run on the board, and QCompressError for
    bad input. Then nothing is written.
    """
    check_parent(out)
    with output_lock(out):
        check_out(out)
        plan = plan_bundle(source, config)
        check_room(out, 2 * plan.checkpoint.bytes)
        with unfinished(out) as folder:
            write_bundle(plan, folder, report)
            check_complete(plan, folder)
            with file_errors(out):
                if out.exists():
                    out.rmdir()  # checked empty at the start
                folder.rename(out)
                sync_folder(out.parent)
    return summary(plan, out)


def plan_bundle(source: Path, config: ShipConfig) -> BundlePlan:
    """The plan of a bundle. Raises GateFailure if the checkpoint breaks a rule or does not run on the board."""
    board = find_board(config.hardware)
    checkpoint = open_for_text(source)
    request = Request(config.context, config.requests, config.kv_cache_dtype, config.tensor_parallel_size)
    plan = make_plan(checkpoint, board, check_fit(checkpoint, board, request), config)
    errors = error_rows(check_checkpoint(checkpoint, tensor_parallel_size=plan.gpus))
    if errors:
        raise GateFailure(f"{checkpoint}: {describe_errors(errors)}; ship a checkpoint that passes qcompress check")
    return plan


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A context with a new folder, inside a temporary one beside `out` that is marked as this program's."""
    folder = partial_path(out)
    with file_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / out.name).mkdir(parents=True)
        (folder / UNFINISHED).touch()
    try:
        yield folder / out.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bundle(plan: BundlePlan, folder: Path, report: Report) -> None:
    """Write all files of a bundle; SHA256SUMS is the last one."""
    report({"step": "copy the model"})
    write_model(plan, folder)
    report({"step": "compute the reference of the smoke test"})
    reference = make_reference(plan.checkpoint, plan.name, plan.config.runtime, plan.dtype, plan.fit.tokens_per_s)
    with file_errors(folder):
        write_licenses(plan.checkpoint, folder)
        for name, text in texts(plan, folder, reference).items():
            (folder / name).write_text(text, encoding="utf-8")
        for name in PROGRAMS:
            shutil.copyfile(DEVICE / name, folder / name)
        if plan.image.archive:
            (folder / "image").mkdir()
            shutil.copyfile(plan.image.archive, folder / "image" / plan.image.archive.name)
        if plan.config.chat:
            write_chat(folder)
        report({"step": "compute the digests"})
        write_sums(folder)
        set_modes(folder)


def write_model(plan: BundlePlan, folder: Path) -> None:
    """Write model/: the checkpoint's files, or the .gguf file made from them."""
    if plan.for_vllm:
        copy_model(plan.checkpoint, folder / MODEL)
        return
    (folder / MODEL).mkdir()
    export_gguf(plan.checkpoint.path, folder / MODEL / plan.gguf)
    more = (folder / MODEL / plan.gguf).stat().st_size - plan.fit.weights
    if plan.fit.needed + more > plan.fit.usable:
        raise GateFailure(
            f"{plan.checkpoint}: as a .gguf file it does not fit on {plan.board.title}: "
            f"{format_bytes(plan.fit.needed + more - plan.fit.usable)} too much; lower --context or --requests, "
            "or use a larger board"
        )


def texts(plan: BundlePlan, folder: Path, reference: Row) -> dict[str, str]:
    """The text of each generated file, by its name."""
    return {
        MANIFEST: json_text(manifest(plan)),
        COMPOSE: compose_text(plan),
        SERVICE_FILE: service_text(plan),
        QUADLET: quadlet_text(plan),
        REFERENCE: json_text(reference),
        SBOM: json_text(sbom(plan, folder)),
        README: readme_text(plan),
    }


def set_modes(folder: Path) -> None:
    """Make all files readable by everyone, as the container's user may be another, and programs executable."""
    folder.chmod(0o755)
    for name, path in entries(folder):
        path.chmod(0o755 if path.is_dir() or name in PROGRAMS else 0o644)
        if path.is_file():
            sync(path)


def check_complete(plan: BundlePlan, folder: Path) -> None:
    """Raises QCompressError if the checkpoint changed while it was copied, or if a file of the bundle has a fault.

    The model is not checked again: its bytes are those of the checkpoint that was checked.
    """
    if plan.for_vllm and weights_digest(folder / MODEL) != plan.checkpoint.digest:
        raise QCompressError(mixed(plan.checkpoint))
    for file, fault in file_faults(folder):
        raise GateFailure(f"{folder}: the bundle was removed: {file}: {fault}; report this as a bug")


def summary(plan: BundlePlan, out: Path) -> ShipRow:
    """The row about a bundle that was written."""
    return {
        "model": str(plan.checkpoint),
        "out": str(out),
        "hardware": plan.board.name,
        "runtime": plan.config.runtime,
        "image": plan.image.pinned,
        "needed_bytes": plan.fit.needed,
        "usable_bytes": plan.fit.usable,
        "tokens_per_s": plan.fit.tokens_per_s,
        "bytes": sum(path.stat().st_size for _, path in entries(out) if path.is_file()),
    }
