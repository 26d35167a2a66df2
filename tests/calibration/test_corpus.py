import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import calibration
from calibration.corpus import EMBEDDED, load_documents, parse_source, source_digest
from calibration.errors import CalibrationError

MESSAGES = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": "so"}]
ROWS = [
    {"text": "the river"},
    {"messages": MESSAGES},
    {"prompt": "how?", "response": "so"},
    {"instruction": "how?", "input": "now", "output": "so"},
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def contents(source):
    """The text and messages of every document in a source."""
    return [(document.text, document.messages) for document in load_documents(source)]


def failure(source):
    with pytest.raises(CalibrationError) as error:
        load_documents(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_row_kind_is_read(tmp_path):
    text, chat, answered, instructed = load_documents(write(tmp_path / "a.jsonl", lines(ROWS)))
    assert text.text == "the river" and text.messages is None
    assert list(chat.messages) == MESSAGES and chat.text is None
    assert list(answered.messages) == MESSAGES and answered.text == "how?\n\nso"
    assert instructed.messages[0]["content"] == "how?\n\nnow" and instructed.text == "how?\n\nnow\n\nso"
    assert instructed.source == f"{tmp_path / 'a.jsonl'}: line 4"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.json.gz", "list.json", "a.parquet"])
def test_the_kind_of_file_never_changes_the_documents(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        from pyarrow import Table

        columns = {"id": 1, "text": None, "messages": None, "instruction": None, "input": None, "output": None}
        expected = [row for row in ROWS if "prompt" not in row]
        parquet.write_table(Table.from_pylist([columns | row for row in expected]), path)
    else:
        write(path, json.dumps(ROWS) if name == "list.json" else lines(ROWS))
        expected = ROWS
    assert contents(str(path)) == contents(write(tmp_path / "expected.jsonl", lines(expected)))


def test_a_parquet_row_is_numbered(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    parquet.write_table(Table.from_pylist([{"text": "one"}, {"text": "two"}, {"text": None}]), tmp_path / "a.parquet")
    assert failure(str(tmp_path / "a.parquet")).startswith(f"{tmp_path / 'a.parquet'}: row 3: no usable key")


def test_a_text_file_is_one_document_with_plain_line_ends(tmp_path):
    assert contents(write(tmp_path / "a.txt", b"\xef\xbb\xbf one\r\ntwo\r\n")) == [(" one\ntwo\n", None)]


def test_empty_rows_and_blank_lines_are_skipped(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n{"text": "  "}\n{"text": "two"}\n')
    assert [document.source[-6:] for document in load_documents(source)] == ["line 1", "line 4"]


def test_a_null_key_does_not_hide_the_other_keys(tmp_path):
    source = write(tmp_path / "a.jsonl", lines([{"messages": None, "text": "one", "prompt": None}]))
    assert contents(source) == [("one", None)]


def test_the_digest_depends_on_the_text_only(tmp_path):
    digest = source_digest(write(tmp_path / "a.txt", "one\ntwo"))
    assert digest.startswith("sha256:") and len(digest) == 71
    assert digest == source_digest(write(tmp_path / "b.md", "one\r\ntwo\r\n"))
    assert digest == source_digest(write(tmp_path / "c.jsonl", lines([{"text": "one\ntwo"}])) + "=3")
    assert digest == source_digest(write(tmp_path / "d.jsonl", lines([{"text": " one\r\ntwo"}])))
    assert digest != source_digest(write(tmp_path / "e.txt", "one two"))


def test_the_digest_ignores_the_order_of_the_documents_but_not_their_borders(tmp_path):
    forward = source_digest(write(tmp_path / "a.jsonl", lines(ROWS)))
    assert forward == source_digest(write(tmp_path / "b.jsonl", lines(ROWS[::-1])))
    joined = write(tmp_path / "c.jsonl", lines([{"text": "one\ntwo"}]))
    assert source_digest(joined) != source_digest(
        write(tmp_path / "d.jsonl", lines([{"text": "one"}, {"text": "two"}]))
    )


def test_the_digest_of_a_conversation_depends_on_the_roles(tmp_path):
    swapped = [{**MESSAGES[0], "role": "assistant"}, {**MESSAGES[1], "role": "user"}]
    first = write(tmp_path / "a.jsonl", lines([{"messages": MESSAGES}]))
    assert source_digest(first) != source_digest(write(tmp_path / "b.jsonl", lines([{"messages": swapped}])))


@pytest.mark.parametrize(
    ("source", "name", "weight"),
    [("default", "default", 1.0), ("a.txt=2.5", "a.txt", 2.5), ("x=y.txt=1e-1", "x=y.txt", 0.1)],
)
def test_a_weight_follows_the_last_equals_sign(source, name, weight):
    assert (parse_source(source).name, parse_source(source).weight) == (name, weight)


def test_an_existing_file_with_an_equals_sign_in_its_name_is_a_file(tmp_path):
    source = write(tmp_path / "a=1", "")
    assert parse_source(source).name == source


def test_a_label_contains_no_directory(tmp_path):
    assert parse_source(f"{tmp_path}/a.txt=2").label == "a.txt"
    assert parse_source("org/name:config").label == "org/name:config"


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", "1e308", "1e-300"])
def test_a_weight_that_is_not_a_positive_number_is_rejected(weight):
    with pytest.raises(CalibrationError, match=f"weight.*{weight}"):
        parse_source(f"a.txt={weight}")


BAD_FILES = [
    ("a.txt", b"", ["empty", "0 bytes"]),
    ("a.txt", b" \n\t\n", ["empty", "contains text"]),
    ("a.txt", b"abc\xff", ["not UTF-8", "byte 3"]),
    ("a.txt.gz", b"abcd\xff", ["not UTF-8", "byte 4"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2", "invalid JSON"]),
    ("a.json", b'[{"text": "a"},\n{"text" 1}]', ["line 2 column 9", "invalid JSON"]),
    ("a.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}\n', ["line 2", "'body', 'id'", "`prompt` with `response`"]),
    ("a.jsonl", b'{"text": "a"}\n["b"]\n', ["line 2", "is list, not an object"]),
    ("a.jsonl", b'{"text": 3}\n', ["line 1", "`text` is int"]),
    ("a.jsonl", b'{"messages": "hi"}\n', ["line 1", "list of objects"]),
    ("a.jsonl", b'{"messages": [{"role": "human", "content": "hi"}]}\n', ["message 1", "'human'", "assistant"]),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}\n', ["message 1", "`content` is NoneType"]),
    ("a.json", b'[{"text": "a"}, {"body": 1}]', ["row 2", "no usable key", "'body'"]),
    ("a.parquet", b"PAR1 but not really", ["parquet"]),
    ("a.csv", b"a,b\n", [".csv files are not supported", ".jsonl"]),
]


@pytest.mark.parametrize(("name", "data", "words"), BAD_FILES)
def test_a_bad_file_is_an_error_of_one_line_with_file_place_and_cure(tmp_path, name, data, words):
    path = tmp_path / name
    message = failure(write(path, data))
    assert message.startswith(str(path)) and all(word in message for word in words)


def test_a_damaged_gzip_file_is_an_error_with_its_path(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"the river " * 99)[:-12])
    assert failure(str(path)).startswith(f"{path}: the file cannot be read")


def test_an_unknown_name_lists_the_embedded_texts(tmp_path):
    assert "default, heldout, python" in failure("defualt")
    assert "no such file" in failure(str(tmp_path / "absent.txt"))
    assert "is a folder" in failure(str(tmp_path))


def test_a_missing_package_is_an_error_with_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'qcompress[hub]'" in failure("org/name")
    assert "pip install pyarrow" in failure(write(tmp_path / "a.parquet", "x"))


def test_an_unreachable_hub_is_an_error_of_one_line(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert failure("org/name").startswith("org/name: no such file") and "go online" in failure("org/name")


def test_a_hub_name_selects_config_and_split(monkeypatch):
    def load_dataset(path, config, *, split, streaming):
        assert streaming
        return SimpleNamespace(take=lambda count: [{"text": f"{path} {config} {split}"}] * min(count, 2))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert contents("org/name") == [("org/name None train", None)] * 2
    assert contents("org/name:small") == [("org/name small train", None)] * 2
    assert contents("org/name::test=2") == [("org/name None test", None)] * 2
    assert load_documents("org/name:small:test")[1].source == "org/name:small:test: row 2"


def test_calibration_imports_neither_compress_nor_transformers():
    for path in Path(calibration.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not {name.split(".")[0] for name in names} & {"compress", "transformers"}, path
    code = "import sys, calibration.corpus; print(*{'torch', 'datasets', 'pyarrow', 'jinja2'} & set(sys.modules))"
    root = Path(calibration.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_corpus_is_identical_when_read_again(name):
    assert contents(name) == contents(name)


def test_embedded_corpora_share_no_paragraph():
    paragraphs = {}
    for name in EMBEDDED:
        texts = [d.text or "\n\n".join(m["content"] for m in d.messages) for d in load_documents(name)]
        parts = [" ".join(part.split()) for text in texts for part in text.split("\n\n")]
        paragraphs[name] = {part for part in parts if len(part) >= 80}
    assert len({source_digest(name) for name in EMBEDDED}) == 3
    assert not paragraphs["default"] & paragraphs["heldout"]
    assert not paragraphs["python"] & paragraphs["heldout"]
    assert not paragraphs["python"] & paragraphs["default"]


@pytest.mark.parametrize(("name", "size"), [("default", 250_000), ("heldout", 70_000), ("python", 1_000_000)])
def test_an_embedded_corpus_is_large_enough_for_its_use(name, size):
    documents = load_documents(name)
    assert sum(len(d.text or str(d.messages)) for d in documents) > size
    assert len({d.text or str(d.messages) for d in documents}) == len(documents)


@pytest.mark.parametrize("name", ["default", "heldout"])
def test_written_corpora_contain_conversations_code_and_chinese(name):
    documents = [d for d in load_documents(name) if f"{name}.jsonl" in d.source]
    texts = [d.text or "\n".join(m["content"] for m in d.messages) for d in documents]
    assert sum(d.messages is not None for d in documents) >= 8
    assert sum("```python" in text for text in texts) >= 2
    assert sum("的" in text for text in texts) >= 3
    assert not any("\ufffd" in text for text in texts)
