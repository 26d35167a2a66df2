"""compose.yaml: the server as a service of Docker Compose, by https://github.com/compose-spec/compose-spec.

The environment is offline, the model is mounted read-only, and the port is open on the loopback address only.
QCOMPRESS_BIND and QCOMPRESS_PORT change address and port.
"""

from typing import Any

import yaml

from compress.ship.bundle.chat import chat_service
from compress.ship.bundle.plan import CACHE, MODEL, PORT, BundlePlan
from compress.ship.gate import SYSTEM

COMPOSE = "compose.yaml"
SERVICE, VOLUME = "model", "compile-cache"
HEALTH = {"interval": "15s", "timeout": "10s", "retries": 4, "start_period": "15m"}  # the first start compiles kernels
LOGS = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
SHARED_MEMORY = "8gb"  # processes of several GPUs exchange tensors there
HOST_BYTES = 4 * 2**30


def compose_text(plan: BundlePlan) -> str:
    """The text of compose.yaml."""
    services = {SERVICE: model_service(plan)}
    if plan.config.chat:
        services["chat"] = chat_service(plan)
    value = {"name": project_name(plan.name), "services": services}
    if plan.for_vllm:
        value |= {"volumes": {VOLUME: {}}}
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def project_name(name: str) -> str:
    """The name in the form that Compose requires: lower-case letters, digits, "-" and "_"."""
    return "qcompress-" + "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in name.lower())


def model_service(plan: BundlePlan) -> dict[str, Any]:
    service: dict[str, Any] = {"image": plan.image.pinned}
    if plan.entrypoint:
        service["entrypoint"] = plan.entrypoint
    service |= {
        "command": plan.arguments,
        "environment": plan.environment,
        "volumes": volumes(plan),
        "ports": [f"${{QCOMPRESS_BIND:-127.0.0.1}}:${{QCOMPRESS_PORT:-{PORT}}}:{PORT}"],
        "healthcheck": {"test": ["CMD", *plan.health], **HEALTH},
        "mem_limit": f"{memory_limit(plan)}b",
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "logging": LOGS,
    }
    return service | gpus(plan)


def volumes(plan: BundlePlan) -> list[dict[str, Any]]:
    """The model, read-only, and a place for compiled kernels, so that a restart does not compile again."""
    model = {"type": "bind", "source": f"./{MODEL}", "target": f"/{MODEL}", "read_only": True}
    cache = {"type": "volume", "source": VOLUME, "target": CACHE}
    return [model | {"bind": {"create_host_path": False}}, *([cache] if plan.for_vllm else [])]


def gpus(plan: BundlePlan) -> dict[str, Any]:
    """How the container gets its GPUs: the runtime of a Jetson, or reserved devices."""
    if plan.board.runtime:
        return {"runtime": plan.board.runtime}
    count = plan.gpus
    device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
    shared = {"shm_size": SHARED_MEMORY} if count > 1 else {}
    return shared | {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def memory_limit(plan: BundlePlan) -> int:
    """Bytes of system memory that the container may use. Above, the kernel ends the server and no other program.

    Shared memory holds the model too, and SYSTEM bytes are left. Elsewhere each GPU has a process of HOST_BYTES, which
    is assumed, and the file pages of the weights.
    """
    if plan.board.unified:
        return plan.board.hardware.memory - SYSTEM
    return plan.fit.weights + HOST_BYTES * (1 + plan.gpus)
