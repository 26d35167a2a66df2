import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from compress.ship.boards import find_board
from compress.ship.bundle.compose import project_name

SCHEMA = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"  # the Compose specification's own


def compose(bundle):
    return yaml.safe_load((bundle / "compose.yaml").read_text())


def test_the_server_gets_the_model_read_only_and_is_offline(session_bundle):
    service = compose(session_bundle)["services"]["model"]
    model, cache = service["volumes"]
    assert model["source"] == "./model" and model["target"] == "/model" and model["read_only"]
    assert cache["type"] == "volume"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    assert offline.items() <= service["environment"].items()


def test_only_the_loopback_address_reaches_the_server(session_bundle):
    assert compose(session_bundle)["services"]["model"]["ports"] == [
        "${QCOMPRESS_BIND:-127.0.0.1}:${QCOMPRESS_PORT:-8000}:8000"
    ]


def test_the_image_is_pinned_by_its_digest(session_bundle):
    image = compose(session_bundle)["services"]["model"]["image"]
    assert re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", image)


def test_the_command_line_is_that_of_the_manifest(session_bundle):
    manifest = json.loads((session_bundle / "bundle.json").read_text())
    service = compose(session_bundle)["services"]["model"]
    assert service["command"] == manifest["runtime"]["arguments"]
    assert service["entrypoint"] == ["vllm", "serve"] and service["command"][0] == "/model"
    pairs = dict(zip(service["command"], service["command"][1:], strict=False))
    assert pairs["--max-model-len"] == "512" and pairs["--served-model-name"] == "tiny"


def test_a_jetson_names_its_runtime_and_leaves_memory_to_the_system(session_bundle):
    service = compose(session_bundle)["services"]["model"]
    assert service["runtime"] == "nvidia" and "deploy" not in service
    limit = int(service["mem_limit"].removesuffix("b"))
    predicted = json.loads((session_bundle / "bundle.json").read_text())["predicted"]["bytes"]
    assert max(predicted["needed"], predicted["load_peak"]) <= limit < find_board("orin-nano").hardware.memory - 9e8


def test_another_gpu_is_reserved_as_a_device(tiny_awq, make_bundle, tmp_path):
    service = compose(make_bundle(tiny_awq, tmp_path / "out", hardware="rtx-4090"))["services"]["model"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]} and "runtime" not in service


def test_llama_cpp_serves_the_gguf_file(gguf_bundle):
    service = compose(gguf_bundle)["services"]["model"]
    assert service["command"][:2] == ["--model", "/model/tiny.gguf"] and service["entrypoint"] == ["llama-server"]
    assert "volumes" not in compose(gguf_bundle)


def test_unusual_names_become_names_of_projects():
    assert project_name("Qwen2.5-7B_awq") == "qcompress-qwen2-5-7b_awq"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("hardware", ["orin-nano", "t4", "rtx-4090"])
def test_compose_files_follow_the_schema_of_the_specification(tiny_awq, make_bundle, tmp_path, hardware, chat):
    package = pytest.importorskip("check_jsonschema")
    schema = json.loads((Path(package.__file__).parents[1] / SCHEMA).read_text())
    bundle = make_bundle(tiny_awq, tmp_path / "out", hardware=hardware, chat=chat)
    jsonschema.validate(compose(bundle), schema)
