"""qcompress ship: a folder that a board can serve, and the verification of such a folder."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, imports, print_written, report, results, size_fact
from compress.cli.model_path import MODEL, OutPath
from compress.cli.options import Command, json_option, make_settings, settings_options, shared_option
from compress.core.errors import GateFailure
from compress.core.rows import FaultRow
from compress.ship import signing
from compress.ship.bundle.distribute import Distribution, distribute
from compress.ship.bundle.settings import ShipConfig


@click.command("ship", cls=Command)
@click.argument("checkpoint", metavar="[CKPT]", required=False, type=MODEL)
@shared_option(
    "-o", "--out", group="Essentials", type=OutPath(path_type=Path), help="Folder for the bundle, new or empty."
)
@settings_options(ShipConfig, Distribution)
@shared_option(
    "--verify",
    "bundle",
    group="Essentials",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Verify this bundle, and write nothing.",
)
@shared_option(
    "--public-key",
    group="Essentials",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="With --verify: public key (PEM) that must have signed the bundle.",
)
@json_option
def command(
    checkpoint: Path | None,
    out: Path | None,
    bundle: Path | None,
    public_key: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a bundle: CKPT with all that a board needs to serve it, offline, and to prove what it runs.

    The bundle has the model, digests of all files, a service for Docker and one for Podman, and a bill of materials.
    Its install.sh compares the digests, starts the server and runs a smoke test: the answers of these weights here.
    If CKPT does not run on the board, nothing is written, and the exit code is 3.

    \b
    qcompress ship qwen-awq --hardware orin-nano -o bundle
    qcompress ship qwen-gptq --hardware orin-nano --runtime llama.cpp -o bundle
    qcompress ship qwen-awq --hardware rtx-4060 --oci layout --push localhost:5000/qwen-awq:v1 -o bundle
    qcompress ship --verify bundle
    """
    if bundle is not None:
        if checkpoint is not None or out is not None:
            raise click.UsageError("--verify takes neither CKPT nor --out; leave them out.")
        return verify(bundle, public_key, as_json=as_json)
    if public_key is not None:
        raise click.UsageError("--public-key needs --verify.")
    if checkpoint is None or out is None or not options["hardware"]:
        raise click.UsageError("Give CKPT, --hardware NAME and --out BUNDLE; or --verify BUNDLE.")
    config, distribution = make_settings(ShipConfig, options), make_settings(Distribution, options)
    distribution.check()
    with imports():
        from compress.ship.bundle.write import ship

    row = ship(checkpoint, out, config, report)
    emit({**row, **distribute(out, distribution)}, as_json=as_json)
    print_written(out, size_fact(row["bytes"]), next_command=f"qcompress ship --verify {out}", as_json=as_json)
    return None


def verify(bundle: Path, public_key: Path | None, *, as_json: bool) -> None:
    """Print one line per fault of a bundle. Raises GateFailure if there is one, or if the signature does not match."""
    if public_key is not None:
        signing.verify(bundle, public_key)
    with imports():
        from compress.ship.bundle.verify import verify_bundle

    faults = verify_bundle(bundle)
    if as_json:
        rows: list[FaultRow] = [{"file": file, "fault": fault} for file, fault in faults]
        emit(rows, as_json=True)
    else:
        for file, fault in faults:
            results.print(f"{file}: {fault}", markup=False)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise GateFailure(f"{bundle}: {count}; do not start it; copy the bundle again, or make a new one")
    if not as_json:
        results.print(f"{bundle}: every file has its digest, and the model runs on its board", markup=False)
