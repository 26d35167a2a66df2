"""Wait for processes and look at them."""

import time
from pathlib import Path


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def processes_in(file):
    return [int(number) for number in file.read_text().split()] if file.exists() else []


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
