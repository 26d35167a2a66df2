import configparser
import shutil
import subprocess

import pytest

PLACES = ("quadlet", "/usr/libexec/podman/quadlet", "/usr/lib/podman/quadlet")
QUADLET = next(filter(None, map(shutil.which, PLACES)), None)


def sections(file):
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str
    parser.read(file)
    return parser


def test_both_units_compare_the_digests_before_every_start(session_bundle):
    for name in ("qcompress.service", "qcompress.container"):
        service = sections(session_bundle / name)["Service"]
        assert service["ExecStartPre"] == "/usr/bin/sha256sum --check --quiet --strict SHA256SUMS"
        assert service["WorkingDirectory"] == "/opt/qcompress/tiny"


def test_the_quadlet_starts_the_same_server_as_compose(session_bundle):
    text = (session_bundle / "compose.yaml").read_text()
    container = sections(session_bundle / "qcompress.container")["Container"]
    assert f"image: {container['Image']}" in text
    assert container["Exec"].startswith("serve /model --served-model-name tiny ")
    assert (
        container["Volume"].startswith("/opt/qcompress/tiny/model:/model:ro")
        or ":ro" in (session_bundle / "qcompress.container").read_text()
    )
    assert container["PublishPort"] == "127.0.0.1:8000:8000"


def test_no_line_of_a_unit_has_a_percent_sign(session_bundle):
    for name in ("qcompress.service", "qcompress.container"):
        assert "%" not in (session_bundle / name).read_text()  # systemd would replace it


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_accepts_the_unit(session_bundle, tmp_path):
    text = (session_bundle / "qcompress.service").read_text()
    (tmp_path / "qcompress.service").write_text(text.replace("/usr/bin/docker", "/usr/bin/env"))
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/usr/bin/env\n")
    command = ["systemd-analyze", "verify", str(tmp_path / "qcompress.service")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(QUADLET is None, reason="podman's quadlet is missing; apt install podman, 4.4 or newer")
def test_podman_accepts_the_quadlet(session_bundle, tmp_path):
    shutil.copyfile(session_bundle / "qcompress.container", tmp_path / "qcompress.container")
    command = [QUADLET, "--dryrun", "--user"]
    result = subprocess.run(
        command, env={"QUADLET_UNIT_DIRS": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "ExecStart=" in result.stdout and "serve /model" in result.stdout
