from compress.checkpoint.read import Checkpoint
from compress.evaluate.history.store import append_verdicts
from compress.ship.bundle.quality import quality_rows, recorded


def test_only_verdicts_on_this_checkpoint_are_repeated(tiny_awq, tmp_path):
    checkpoint, file = Checkpoint(tiny_awq), tmp_path / "history.sqlite"
    mine = {"name": "tiny", "digest": checkpoint.digest, "kl": 0.05, "reference": "base", "breakdown": [1]}
    other = {"name": "other", "digest": "sha256:0", "kl": 0.5}
    append_verdicts(file, "verify", [mine, other], tag="v1")
    append_verdicts(file, "check", [{"name": "tiny", "digest": checkpoint.digest, "errors": {}}])
    assert quality_rows(checkpoint, file) == [{"from": "verify", "reference": "base", "tag": "v1", "kl": 0.05}]


def test_the_kl_of_tuning_is_taken_from_the_record():
    assert recorded({"command": "quantize", "tune": {"kl": 0.1, "kl_before": 0.2}}) == [{"from": "quantize", "kl": 0.1}]
    assert recorded({"command": "quantize", "tune": None}) == []
