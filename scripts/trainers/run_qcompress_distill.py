"""Run qcompress's distillation and time its steps: PYTHON run_qcompress_distill.py TEACHER OUT SETTINGS.json

SETTINGS.json has the settings of `qcompress distill`. Prints one JSON line with the seconds of every step except the
last one, the losses, and the peak memory. The last step is left out, because the evaluation follows it. The run also
succeeds if so few steps did not improve the student.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import peak_bytes

from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.job import distill_checkpoint


def main(teacher: str, out: str, settings: str) -> None:
    losses_at: list[tuple[float, float]] = []

    def report(row: dict[str, Any]) -> None:
        if "loss" in row:
            losses_at.append((time.perf_counter(), row["loss"]))

    config = DistillConfig(**json.loads(Path(settings).read_text()))
    try:
        distill_checkpoint(Path(teacher), Path(out), config, report)
    except QCompressError:
        if len(losses_at) != config.total_steps:
            raise
    ends = [end for end, _ in losses_at[:-1]]
    seconds = [end - start for start, end in pairwise(ends)]
    # The start of the first step is unknown, so its time is None. This step is not measured anyway.
    row = {"seconds": [None, *seconds], "losses": [loss for _, loss in losses_at], "peak_bytes": peak_bytes()}
    print("\n" + json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
