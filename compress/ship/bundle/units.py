"""qcompress.service for systemd with Docker Compose, and qcompress.container for Podman: two ways to start at boot.

Both compare SHA256SUMS before every start. They expect the bundle in /opt/qcompress/NAME.
"""

import shlex

from compress.ship.bundle.compose import COMPOSE, memory_limit
from compress.ship.bundle.plan import CACHE, MODEL, PORT, BundlePlan
from compress.ship.bundle.sums import SUMS

SERVICE_FILE, QUADLET = "qcompress.service", "qcompress.container"
START_SECONDS = 1800  # sums of large weights on a slow disk, and the first compilation
VERIFY = f"/usr/bin/sha256sum --check --quiet --strict {SUMS}"


def service_text(plan: BundlePlan) -> str:
    """The text of the systemd unit."""
    return f"""\
[Unit]
Description={plan.name} on port {PORT}
Requires=docker.service
After=docker.service

[Service]
WorkingDirectory={plan.place}
ExecStartPre={VERIFY}
ExecStart=/usr/bin/docker compose --file {COMPOSE} up --no-color
ExecStop=/usr/bin/docker compose --file {COMPOSE} stop
Restart=on-failure
RestartSec=10
TimeoutStartSec={START_SECONDS}

[Install]
WantedBy=multi-user.target
"""


def quadlet_text(plan: BundlePlan) -> str:
    """The text of the Quadlet. Podman 4.4 and newer turn it into a systemd unit."""
    lines = [
        "[Unit]",
        f"Description={plan.name} on port {PORT}",
        "",
        "[Container]",
        f"Image={plan.image.pinned}",
        f"ContainerName=qcompress-{plan.name}",
        *entry(plan),
        *(f"Environment={name}={value}" for name, value in plan.environment.items()),
        f"Volume={plan.place}/{MODEL}:/{MODEL}:ro",
        *([f"Volume=qcompress-{plan.name}-cache:{CACHE}"] if plan.for_vllm else []),
        f"PublishPort=127.0.0.1:{PORT}:{PORT}",
        f"AddDevice=nvidia.com/gpu={gpu_names(plan)}",
        "NoNewPrivileges=true",
        f"HealthCmd={shlex.join(plan.health)}",
        "HealthInterval=15s",
        "HealthStartPeriod=15m",
        f"PodmanArgs=--memory={memory_limit(plan)}b",
        "",
        "[Service]",
        f"WorkingDirectory={plan.place}",
        f"ExecStartPre={VERIFY}",
        "Restart=always",
        "RestartSec=10",
        f"TimeoutStartSec={START_SECONDS}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def entry(plan: BundlePlan) -> list[str]:
    """The program and its arguments. Podman 4 has no key for the program, so it is a raw argument."""
    program = plan.entrypoint or []
    arguments = shlex.join([*program[1:], *plan.arguments])
    return [*(f"PodmanArgs=--entrypoint={word}" for word in program[:1]), f"Exec={arguments}"]


def gpu_names(plan: BundlePlan) -> str:
    """The GPUs by their names in the container device interface."""
    return "all" if plan.gpus > 1 or plan.board.runtime else "0"
