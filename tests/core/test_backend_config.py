"""Settings of backends: methods, formats, and options that a backend does not take."""

import pytest

from compress.core.backend_config import BACKENDS, BackendConfig, make_config
from compress.core.config import BACKEND_METHODS, METHODS, QuantizeConfig
from compress.core.errors import BadValueError


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_has_a_default_method_and_format(backend):
    config = BackendConfig(backend=backend)
    assert config.method == next(iter(BACKENDS[backend]))
    assert config.format == BACKENDS[backend][config.method][0]
    assert config.layout.format in ("awq", "gptq", "compressed-tensors")


def test_every_method_of_a_backend_is_a_choice_of_the_command_line():
    assert {method for methods in BACKENDS.values() for method in methods} <= {*METHODS, *BACKEND_METHODS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gptq"}, r"--method gptq: --backend autoawq has no such method; choose awq"),
        ({"format": "gptq"}, r"--format gptq: --backend autoawq writes awq"),
        ({"samples": 0}, r"--samples 0: must be 1 or more"),
        ({"tune": 2}, r"--tune: has no effect with --backend autoawq"),
        ({"activation_memory": 10}, r"--activation-memory: has no effect with --backend autoawq"),
    ],
)
def test_a_setting_that_a_backend_does_not_have_is_refused(settings, message):
    with pytest.raises(BadValueError, match=message):
        make_config({"backend": "autoawq", **settings}, {"backend", *settings})


def test_defaults_of_our_methods_are_not_passed_to_a_backend():
    values = {"backend": "llm-compressor", "method": "awq+gptq", "tune": 0, "group_size": 64}
    config = make_config(values, {"backend", "group_size"})
    assert isinstance(config, BackendConfig) and (config.method, config.group_size) == ("gptq", 64)


def test_without_a_backend_the_settings_are_those_of_qcompress():
    config = make_config({"backend": "qcompress", "method": "gptq", "activation_memory": 5}, {"method"})
    assert config == QuantizeConfig(method="gptq")


def test_a_method_of_a_backend_alone_is_refused_with_the_option():
    with pytest.raises(BadValueError, match="--method Q4_0: qcompress itself has no such method; add --backend"):
        QuantizeConfig(method="Q4_0")


def test_a_group_size_for_gguf_is_refused():
    with pytest.raises(BadValueError, match="--group-size: --method Q4_0 fixes the groups"):
        BackendConfig(backend="llama.cpp", method="Q4_0", group_size=32)


@pytest.mark.parametrize(("backend", "method", "sym"), [("autoawq", "awq", False), ("llm-compressor", "gptq", True)])
def test_grids_are_symmetric_except_those_of_awq(backend, method, sym):
    assert BackendConfig(backend=backend, method=method).sym is sym
