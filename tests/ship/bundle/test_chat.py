import io
import zipfile

import yaml

from compress.ship.bundle.chat import PACKAGES, wheel_bytes


def test_the_page_is_a_service_that_waits_for_the_model(tiny_awq, make_bundle, tmp_path):
    bundle = make_bundle(tiny_awq, tmp_path / "out", chat=True)
    services = yaml.safe_load((bundle / "compose.yaml").read_text())["services"]
    chat = services["chat"]
    assert chat["command"][:2] == ["--upstream", "http://model:8000"]
    assert chat["depends_on"] == {"model": {"condition": "service_healthy"}}
    assert chat["ports"] == ["${QCOMPRESS_BIND:-127.0.0.1}:7860:7860"]
    assert chat["environment"]["QCOMPRESS_SERVE_TOKEN"].startswith("${QCOMPRESS_SERVE_TOKEN:?")
    [wheel] = [path.name for path in (bundle / "chat").glob("*.whl")]
    assert wheel in (bundle / "chat" / "Dockerfile").read_text()
    assert len((bundle / "chat" / "requirements.txt").read_text().splitlines()) == len(PACKAGES)


def test_without_chat_there_is_one_service(session_bundle):
    assert list(yaml.safe_load((session_bundle / "compose.yaml").read_text())["services"]) == ["model"]
    assert not (session_bundle / "chat").exists()


def test_the_wheel_has_equal_bytes_and_every_file_of_the_page():
    assert wheel_bytes() == wheel_bytes()
    with zipfile.ZipFile(io.BytesIO(wheel_bytes())) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert {"compress/serve/page/page.html", "compress/ship/device/install.sh"} <= {*names}
    assert not [name for name in names if "__pycache__" in name]
