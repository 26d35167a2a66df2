"""Sign a bundle, and verify a signature, with OpenSSF model-signing in key mode. Both work offline.

https://github.com/sigstore/model-transparency: the signature holds the digest of every file, so a file that was
changed, added or removed is found. It runs as a program of its own, because its requirements are large.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from compress.core.errors import GateFailure, QCompressError

SIGNATURE, RECEIPT = "model.sig", "receipt.json"  # in the bundle; the only files that are not signed
INSTALL = "install it with pip install 'qcompress[sign]'"
CHANGED = re.compile(r"Hash mismatch for \\?'([^'\\]+)\\?'")
WHOLE = "--no-ignore-git-paths"  # a model folder may have a .gitattributes, which belongs to it


def sign(bundle: Path, key: Path) -> Path:
    """Write the signature of all files of a bundle by a private key (PEM, elliptic curve). Returns its path.

    Raises QCompressError if model-signing or the key is missing, or if the key cannot be used.
    """
    check_key("--sign", key)
    signature = bundle / SIGNATURE
    done = run("--sign", "sign", "key", str(bundle), "--private_key", str(key), "--signature", str(signature), WHOLE)
    if done.returncode or not signature.is_file():
        raise QCompressError(f"--sign {key}: {last_line(done)}; give a private key of an elliptic curve as PEM")
    return signature


def verify(bundle: Path, key: Path) -> None:
    """Raises GateFailure unless the bundle has a signature of all its files by this key (public, PEM).

    Raises QCompressError if model-signing or the key is missing.
    """
    check_key("--public-key", key)
    signature = bundle / SIGNATURE
    if not signature.is_file():
        raise GateFailure(f"{bundle}: has no {SIGNATURE}, so --public-key cannot verify it; ask for a signed bundle")
    receipt = bundle / RECEIPT  # written on the device, after signing
    ignored = ("--ignore-paths", str(receipt)) if receipt.exists() else ()
    arguments = ("--signature", str(signature), "--public_key", str(key), WHOLE, *ignored)
    done = run("--public-key", "verify", "key", str(bundle), *arguments)
    if done.returncode:
        raise GateFailure(f"{bundle}: the signature does not match: {last_line(done)}; do not start it")


def check_installed(option: str) -> list[str]:
    """The command of model-signing. Raises QCompressError if it is not installed."""
    program = shutil.which("model_signing")
    if program is None and find_spec("model_signing") is None:
        raise QCompressError(f"{option}: model-signing is not installed; {INSTALL}")
    return [program] if program else [sys.executable, "-m", "model_signing"]


def check_key(option: str, key: Path) -> None:
    if not key.is_file():
        raise QCompressError(f"{option} {key}: no such file; give a key as PEM")


def run(option: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished program. Raises QCompressError if model-signing is not installed."""
    return subprocess.run([*check_installed(option), *arguments], capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The cause that the program printed last. Of changed files it has the names, without their digests."""
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    cause = lines[-1].partition("failed with error: ")[2] or lines[-1]
    changed = CHANGED.findall(cause)
    return f"changed: {', '.join(changed)}" if changed else cause[:300]
