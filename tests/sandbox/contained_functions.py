"""Functions that test_run.py runs in the sandbox."""

import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

STATUS = b'{"status": "returned", "detail": ""}\n'


def reverse(data: bytes) -> bytes:
    return data[::-1]


def fail(data: bytes) -> bytes:
    return bytes(1 // 0)


def return_text(data: bytes) -> str:
    return "text"


def leave(data: bytes) -> bytes:
    raise SystemExit(0)


def leave_at_once(data: bytes) -> bytes:
    os._exit(0)


def loop(data: bytes) -> bytes:
    while True:
        pass


def loop_on(data: bytes) -> bytes:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    return loop(data)


def sleep(data: bytes) -> bytes:
    time.sleep(600)
    return b""


def abort(data: bytes) -> bytes:
    os.abort()


def fill_memory(data: bytes) -> bytes:
    return bytes(10 * 1024**3)


def fill_memory_slowly(data: bytes) -> bytes:
    pieces = []
    while True:
        pieces.append(bytes(2**24))


def write_a_file(data: bytes) -> bytes:
    Path("file").write_bytes(b"")
    return b""


def read_accounts(data: bytes) -> bytes:
    return Path("/etc/passwd").read_bytes()


def open_many(data: bytes) -> bytes:
    while True:
        os.dup(0)


def return_too_much(data: bytes) -> bytes:
    return bytes(1001)


def channels() -> list[int]:
    return [number for number in range(3, 64) if is_pipe(number)]


def is_pipe(number: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(number).st_mode)
    except OSError:
        return False


def flood_the_channel(data: bytes) -> bytes:
    (channel,) = channels()
    while True:
        os.write(channel, bytes(4096))


def write_a_status(data: bytes) -> bytes:
    (channel,) = channels()
    os.write(channel, STATUS)
    os._exit(3)


def write_nonsense(data: bytes) -> bytes:
    (channel,) = channels()
    os.write(channel, b"[" * 50_000 + b"\n")
    os._exit(0)


def close_the_channel(data: bytes) -> bytes:
    (channel,) = channels()
    os.close(channel)
    return sleep(data)


def yaml_to_json(data: bytes) -> bytes:
    import yaml

    return json.dumps(yaml.safe_load(data)).encode()


def import_later(data: bytes) -> bytes:
    __import__(data.decode())
    return b""


def environment(data: bytes) -> bytes:
    return json.dumps(dict(os.environ)).encode()


def writable_descriptors(data: bytes) -> bytes:
    names = []
    for number in range(64):
        try:
            mode = os.fstat(number).st_mode
            os.write(number, b"")
        except OSError:
            continue
        names.append("channel" if stat.S_ISFIFO(mode) else str(number))
    return " ".join(names).encode()


def start_threads(data: bytes) -> bytes:
    threading.Thread(target=print).start()
    return b""
