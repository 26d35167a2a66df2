"""The chat page as a second container: `qcompress serve --upstream`, which needs neither torch nor a GPU.

The folder chat/ has a Dockerfile, a wheel of this qcompress, and the versions of the packages that the page needs.
`docker compose build` makes the image where there is a network; `docker save` carries it on.
"""

import base64
import hashlib
import io
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from compress.core.errors import QCompressError
from compress.ship.bundle.plan import PORT, BundlePlan

FOLDER, PAGE_PORT = "chat", 7860
PYTHON_IMAGE = "python:3.12-slim-bookworm"
ROOM_BYTES = 2**30  # of memory: the page, and the children that read documents
PACKAGES = (  # what `qcompress serve --upstream` imports
    *("click", "rich", "numpy", "psutil", "jsonschema", "jinja2", "PyYAML", "anyio", "tokenizers"),
    *("starlette", "uvicorn", "httpx2", "pypdf", "python-docx", "python-calamine", "bm25s"),
)
TOP = ("compress", "calibration")
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the wheel, so that equal files give equal bytes
DOCKERFILE = """\
FROM {image}
COPY requirements.txt {wheel} /tmp/
RUN pip install --no-cache-dir -r /tmp/requirements.txt && pip install --no-cache-dir --no-deps /tmp/{wheel}
USER 1000:1000
ENTRYPOINT ["qcompress", "serve"]
"""


def chat_service(plan: BundlePlan) -> dict[str, Any]:
    """The service of the page. Clients need the token in QCOMPRESS_SERVE_TOKEN."""
    return {
        "image": f"qcompress-chat:{version('qcompress')}",
        "build": f"./{FOLDER}",
        "command": ["--upstream", f"http://model:{PORT}", "--host", "0.0.0.0", "--port", str(PAGE_PORT)],
        "environment": {"QCOMPRESS_SERVE_TOKEN": "${QCOMPRESS_SERVE_TOKEN:?set a token of 12 or more characters}"},
        "depends_on": {"model": {"condition": "service_healthy"}},
        "ports": [f"${{QCOMPRESS_BIND:-127.0.0.1}}:{PAGE_PORT}:{PAGE_PORT}"],
        "mem_limit": f"{ROOM_BYTES}b",
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }


def write_chat(folder: Path) -> None:
    """Write the folder chat/ of a bundle. Raises QCompressError if a package of the page is not installed."""
    place = folder / FOLDER
    place.mkdir()
    try:
        pins = "".join(f"{name}=={version(name)}\n" for name in sorted(PACKAGES, key=str.lower))
    except ImportError as error:
        raise QCompressError(f"--chat: {error.name} is not installed; run `pip install 'qcompress[serve]'`") from None
    wheel = f"qcompress-{version('qcompress')}-py3-none-any.whl"
    (place / "requirements.txt").write_text(pins)
    (place / "Dockerfile").write_text(DOCKERFILE.format(image=PYTHON_IMAGE, wheel=wheel))
    (place / wheel).write_bytes(wheel_bytes())


def wheel_bytes() -> bytes:
    """This qcompress as a wheel, by https://packaging.python.org/en/latest/specifications/binary-distribution-format."""
    root, info = Path(__file__).parents[3], f"qcompress-{version('qcompress')}.dist-info"
    files = {path.relative_to(root).as_posix(): path.read_bytes() for top in TOP for path in package_files(root / top)}
    files[f"{info}/METADATA"] = (distribution("qcompress").read_text("METADATA") or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: qcompress\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nqcompress = compress.cli:cli\n"
    rows = "".join(f"{name},sha256={record_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{rows}{info}/RECORD,,\n".encode()
    stream = io.BytesIO()
    with ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(ZipInfo(name, DATE), content, ZIP_DEFLATED)
    return stream.getvalue()


def package_files(top: Path) -> list[Path]:
    """The files of a package, sorted, without what Python has compiled."""
    files = (path for path in top.rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc")


def record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
