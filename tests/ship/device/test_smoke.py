import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.ship.device import smoke

LIMITS = {"mean": 0.01, "largest": 0.1, "tie": 0.1}


def run(bundle, url, *options):
    """Exit code, output and receipt of a bundle's smoke test."""
    command = [sys.executable, "-I", str(bundle / "smoke.py"), "--url", url, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    return result.returncode, result.stdout, json.loads((bundle / "receipt.json").read_text())


def test_it_needs_only_the_standard_library_of_python_3_8():
    tree = ast.parse(Path(smoke.__file__).read_text(), feature_version=(3, 8))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    aliases = [node for value in ast.walk(tree) if isinstance(value, ast.Assign) for node in ast.walk(value)]
    generic = {ast.unparse(node.value) for node in aliases if isinstance(node, ast.Subscript)}
    assert not generic & {"list", "dict", "tuple"}  # types of which Python 3.8 has no generic form


@pytest.mark.slow
def test_a_server_of_the_same_weights_passes(bundle, serve):
    code, output, receipt = run(bundle, serve(bundle / "model").url)
    assert code == 0 and output.startswith("smoke test: passed")
    assert receipt["passed"] and receipt["faults"] == [] and receipt["tokenizer_compared"]
    assert receipt["steps"] == receipt["agreeing_steps"] == 192 and receipt["mean_difference"] < 0.001
    assert receipt["tokens_per_s"] > 0 and receipt["predicted_tokens_per_s"] > 0


@pytest.mark.slow
def test_a_server_with_one_changed_scale_fails(bundle, serve):
    def change(model):
        model.model.layers[1].mlp.down_proj.weight[5, 32:64] *= 16

    code, output, receipt = run(bundle, serve(bundle / "model", change=change).url)
    assert code == 1 and "mean difference of log-probabilities is" in output
    assert not receipt["passed"] and receipt["mean_difference"] > receipt["limits"]["mean"]


@pytest.mark.slow
def test_a_llama_cpp_server_of_the_same_weights_passes(gguf_bundle, serve, tmp_path):
    bundle = shutil.copytree(gguf_bundle, tmp_path / "bundle")
    code, output, receipt = run(bundle, serve(gguf_bundle.parent / "gptq").url)
    assert code == 0 and output.startswith("smoke test: passed") and receipt["runtime"] == "llama.cpp"


@pytest.mark.slow
def test_a_server_below_the_least_speed_fails(bundle, serve):
    code, output, _ = run(bundle, serve(bundle / "model").url, "--min-tokens-per-s", "1e9")
    assert code == 1 and "tokens/s, the limit is 1e+09" in output


@pytest.mark.slow
def test_another_tokenizer_fails(bundle, serve):
    server = serve(bundle / "model")
    encode = server.tokenizer
    server.tokenizer = lambda text: {"input_ids": encode(text)["input_ids"][1:]}
    code, output, _ = run(bundle, server.url)
    assert code == 1 and "gets other token ids" in output


def test_a_server_of_another_model_is_refused(bundle, serve):
    code, output, receipt = run(bundle, serve(bundle / "model", name="other").url)
    assert code == 1 and "serves ['other'], not 'tiny'" in output and not receipt["passed"]


def test_no_server_is_a_failure_with_a_receipt(bundle):
    code, output, receipt = run(bundle, "http://127.0.0.1:1")
    assert code == 1 and "127.0.0.1:1/v1/models" in output
    assert not receipt["passed"] and len(receipt["faults"]) == 1


def prompt(tokens, top):
    return {"ids": [1, 2], "tokens": tokens, "top": top}


def test_after_a_near_tie_the_server_is_put_back_on_the_text():
    top = [[[5, -0.70], [6, -0.71]], [[7, -0.1], [8, -3.0]], [[9, -0.2], [4, -2.0]]]
    requests = []

    def answer(ids, count):
        requests.append((ids, count))
        steps = [(6, {5: -0.71, 6: -0.70}), (7, {7: -0.1, 8: -3.0}), (9, {9: -0.2, 4: -2.0})]
        return steps[len(ids) - 2 :]

    rows = smoke.compare_prompt(answer, prompt([5, 7, 9], top))
    assert requests == [([1, 2], 3), ([1, 2, 5], 2)]
    assert [row["agrees"] for row in rows] == [False, True, True]
    assert rows[0]["gap"] == pytest.approx(0.01)
    assert smoke.verdict(rows, LIMITS)["faults"] == []


def test_a_stop_token_inside_the_continuation_ends_no_comparison():
    top = [[[3, -0.1], [6, -2.5]], [[7, -0.1], [8, -3.0]]]
    steps = {2: [(3, {3: -0.1, 6: -2.5})], 3: [(7, {7: -0.1, 8: -3.0})]}  # the server stops after token 3
    rows = smoke.compare_prompt(lambda ids, count: steps[len(ids)], prompt([6, 7], top))
    assert len(rows) == 2 and all(row["agrees"] for row in rows)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({5: -0.6, 6: -1.0}, None),
        ({5: -0.5, 6: -1.2}, "mean difference"),
        ({5: -1.0, 6: -0.6}, "largest gap"),
        ({7: -0.1, 8: -4.0}, "largest gap"),
        ({5: float("nan"), 6: -1.0}, "mean difference"),
    ],
)
def test_each_limit_refuses_what_exceeds_it(table, fault):
    rows = [smoke.compare_step([[5, -0.6], [6, -1.0]], table)]
    faults = smoke.verdict(rows, {"mean": 0.1, "largest": 0.2, "tie": 0.3})["faults"]
    assert bool(faults) == bool(fault) and (fault is None or any(fault in text for text in faults))


def test_an_unlisted_token_counts_the_distance_to_the_end_of_the_list():
    row = smoke.compare_step([[5, -0.6], [6, -1.0]], {5: -0.6, 7: -3.5})
    assert row["differences"] == pytest.approx([0.0, 2.5])
