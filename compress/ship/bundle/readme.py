"""README.md of a bundle: one screen for the person who installs it."""

from compress.core.units import format_bytes
from compress.ship.bundle.plan import PORT, BundlePlan

README = "README.md"


def readme_text(plan: BundlePlan) -> str:
    """The text of README.md."""
    fit, config = plan.fit, plan.config
    speed = f"at most {fit.tokens_per_s:.0f} tokens/s predicted" if fit.tokens_per_s else "speed not predicted"
    requests = "1 request" if config.requests == 1 else f"{config.requests} requests"
    return f"""\
# {plan.name} for {plan.board.title}

{plan.config.runtime} serves the model in `model/` at http://127.0.0.1:{PORT}/v1, for {requests} at once of up to
{config.context:,} tokens. Memory: {format_bytes(fit.needed)} of {format_bytes(fit.usable)}, {speed}.

    sudo ./install.sh            # compare the digests, start, wait, run the smoke test
    ./install.sh --check         # compare the digests only
    python3 smoke.py             # the smoke test alone; the exit code is 0 if it passed
    docker compose down          # stop

{image_note(plan)}

Start at boot, one of these; both compare the digests before every start:

    sudo mv "$PWD" {plan.place}
    sudo cp {plan.place}/qcompress.service /etc/systemd/system/ && sudo systemctl enable --now qcompress
    sudo cp {plan.place}/qcompress.container /etc/containers/systemd/ && sudo systemctl daemon-reload

| file | content |
|---|---|
| SHA256SUMS | the digest of every other file |
| bundle.json | board, image, command line, predicted bytes, measured quality, ancestors |
| smoke.py, smoke.json | what these weights answer, and how far this device may differ |
| receipt.json | the result of the last smoke test, written here |
| compose.yaml, qcompress.service, qcompress.container | the service, for Docker and for Podman |
| sbom.cdx.json, LICENSES/ | bill of materials (CycloneDX 1.6), licences |
{chat_note(plan)}"""


def image_note(plan: BundlePlan) -> str:
    image = f"Image: `{plan.image.pinned}`"
    if plan.image.archive:
        return f"{image}, in `image/`. No network is needed."
    if plan.image.digest:
        return f"{image}. It is pulled once; then no network is needed."
    return f"{image}. **Only its tag is known**, so the registry may change it. It is pulled once."


def chat_note(plan: BundlePlan) -> str:
    if not plan.config.chat:
        return ""
    return """
The chat page is a second container, at http://127.0.0.1:7860. Set QCOMPRESS_SERVE_TOKEN to a secret of 12 characters
or more before the start. Its image is built from `chat/` by `docker compose build`, which needs a network once.
"""
