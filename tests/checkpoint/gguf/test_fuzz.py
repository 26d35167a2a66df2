"""Random damage: an import ends with 0 or 1 and one line, whatever the file holds."""

import random
import shutil
import time

from click.testing import CliRunner

from compress.checkpoint.gguf.reader import read_file
from compress.cli import cli

SECONDS, ROUNDS = 7, 400  # of this process's time
NUMBERS = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def damaged(data, header, chance):
    """Bits flipped, numbers replaced, bytes cut out or repeated, mostly inside the header."""
    end = header if chance.random() < 0.9 else len(data)
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        place = chance.randrange(end)
        match chance.choice(["bit", "bit", "byte", "number", "cut", "end", "repeat"]):
            case "bit":
                data[place] ^= 2 ** chance.randrange(8)
            case "byte":
                data[place] = chance.randrange(256)
            case "number":
                width = chance.choice([4, 8])
                value = chance.choice(NUMBERS) % 2 ** (8 * width)
                data[place : place + width] = value.to_bytes(width, "little")
            case "cut":
                del data[place : place + chance.choice([1, 8, 200])]
            case "end":
                del data[place:]
            case _:
                data[place:place] = data[place : place + chance.choice([1, 8, 200])]
        end = min(end, len(data)) or 1
        data = data or bytearray(1)
    return bytes(data)


def test_random_damage_is_one_line_and_exit_code_0_or_1(llama, tmp_path):
    file, out = llama.write(tmp_path / "model.gguf"), tmp_path / "out"
    data = file.read_bytes()
    header = min(tensor.offset for tensor in read_file(file).tensors.values())
    assert CliRunner().invoke(cli, ["import", str(file), "-o", str(out)]).exit_code == 0  # imports are not timed
    shutil.rmtree(out)
    chance, started, codes = random.Random(7), time.process_time(), []
    for _ in range(ROUNDS):
        if time.process_time() - started > SECONDS:
            break
        file.write_bytes(damaged(data, header, chance))
        began = time.process_time()
        result = CliRunner().invoke(cli, ["import", str(file), "-o", str(out)])
        codes.append(result.exit_code)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]  # notes of transformers
        assert result.exit_code in (0, 1) and len(lines) == result.exit_code, result.stderr
        assert "bug in qcompress" not in result.output and "Traceback" not in result.output, result.output
        assert time.process_time() - began < 5 and str(file) in "".join(lines or [str(file)])
        shutil.rmtree(out, ignore_errors=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]
    assert len(codes) > 50 and set(codes) == {0, 1}
