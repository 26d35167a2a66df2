"""Uploaded files as text, and hostile files: each is refused or bounded, in seconds and in bounded memory."""

import io
import json
import threading
import time
import zipfile

import pytest

from compress.serve.documents.content import DocumentError
from compress.serve.documents.parse import LIMITS, encodable, parse
from compress.serve.documents.pdf import join_pages
from compress.serve.documents.tables import TableText
from tests.serve.documents import make_files as make
from tests.serve.services import ask, until

SECONDS, UPLOAD = 20, {"content-type": "application/octet-stream"}
PRICES = [["fruit", "price"], ["apple", "1.25"], ["pear", "2"]]


def test_a_docx_keeps_paragraphs_and_tables_in_their_order():
    text = parse(make.word("Fruit was cheap.", table=PRICES))["text"]
    places = [text.index(part) for part in ("# Report", "Fruit was cheap.", "| apple | 1.25 |", "The end.")]
    assert places == sorted(places) and "| fruit | price |\n|---|---|" in text


def test_an_xlsx_is_a_table_below_the_name_of_its_sheet():
    row = parse(make.xlsx({"A1": "fruit", "B1": "price", "A2": "apple", "B2": 1.25, "A3": "pear", "B3": 2}))
    assert row["kind"] == "xlsx"
    assert row["text"].splitlines() == [
        "## Prices",
        "",
        "| fruit | price |",
        "|---|---|",
        "| apple | 1.25 |",
        "| pear | 2 |",
    ]


def test_a_pdf_has_its_text_page_by_page():
    row = parse(make.pdf(["first line", "second line"]))
    assert row["pages"] == 2 and row["text"] == "[page 1]\nfirst line\n\n[page 2]\nsecond line"


@pytest.mark.parametrize(
    ("data", "kind", "part"),
    [
        (b"fruit,price\napple,1.25\npear,2\n", "csv", "| apple | 1.25 |"),
        ("fruit;price\nÄpfel;1,25\n".encode("utf-16"), "csv", "| Äpfel | 1,25 |"),
        (b'{"fruit": ["apple"]}', "json", '"apple"'),
        (b"# Title\n\nSome *text*.", "text", "Some *text*."),
        ("价格表：苹果每斤五元".encode("gb18030"), "text", "苹果每斤五元"),
        ("caf\xe9 cr\xe8me br\xfbl\xe9e".encode("cp1252"), "text", "café crème brûlée"),
        ("\ufeffhello".encode(), "text", "hello"),
    ],
    ids=["csv", "utf-16 csv", "json", "markdown", "chinese", "latin", "bom"],
)
def test_the_content_decides_the_kind_and_the_encoding(data, kind, part):
    row = parse(data)
    assert row["kind"] == kind and part in row["text"]


def nested_zip():
    data = make.archive({"0.zip": bytes(1000)})
    for level in range(6):
        data = make.archive({f"{level}-{copy}.zip": data for copy in range(16)})
    return data


def declared_bomb():
    return make.archive({"word/document.xml": bytes(200_000_000)})


def lying_bomb():
    """An entry that unpacks to more than the directory declares."""
    data = bytearray(make.archive({"word/document.xml": b"<w>" + bytes(150_000_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(signature)
        data[place + offset : place + offset + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


def laughs(name="word/document.xml"):
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10))
    return make.replaced(make.word("x"), name, f"<?xml version='1.0'?><!DOCTYPE w [{entities}]><w>&a9;</w>".encode())


HOSTILE = {
    "zip bomb": (declared_bomb, "unpacks to"),
    "zip bomb that lies": (lying_bomb, "damaged|memory"),
    "nested zips": (nested_zip, "neither docx nor xlsx"),
    "too many entries": (lambda: make.archive({f"{n}.xml": b"" for n in range(2500)}), "entries"),
    "billion laughs": (laughs, "document type"),
    "laughs in relations": (lambda: laughs("word/_rels/document.xml.rels"), "document type"),
    "one cell at XFD1048576": (lambda: make.xlsx({"A1": "x", "XFD1048576": 1}), "memory"),
    "self-referencing pdf": (make.self_referencing_pdf, "no text|takes more|damaged"),
    "looping page tree": (make.looping_pages_pdf, "no text|takes more|damaged"),
    "flate bomb": (lambda: make.flate_bomb_pdf(1_000_000_000), "no text|memory|takes more|damaged"),
    "encrypted pdf": (lambda: make.pdf(["secret"], password="x"), "encrypted"),
    "empty": (lambda: b"", "empty"),
    "only spaces": (lambda: b" \n" * 1000, "empty"),
    "a program": (lambda: b"\x7fELF\x02\x01\x01\0" + bytes(1000), "none of pdf"),
    "a damaged pdf": (lambda: b"%PDF-1.7\n" + bytes(range(256)) * 100, "damaged|no text"),
    "a cut docx": (lambda: make.word("x")[:2000], "damaged"),
    "an old Word file": (lambda: bytes.fromhex("D0CF11E0A1B11AE1") + bytes(5000), "cannot be read"),
    "a docx with a password": (
        lambda: bytes.fromhex("D0CF11E0A1B11AE1") + bytes(512) + "EncryptedPackage".encode("utf-16-le"),
        "encrypted",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(name):
    build, reason = HOSTILE[name]
    data = build()
    started = time.monotonic()
    with pytest.raises(DocumentError, match=reason):
        parse(data)
    assert time.monotonic() - started < SECONDS


def test_the_limits_of_the_sandbox_are_those_that_the_documentation_promises():
    assert LIMITS.memory <= 600_000_000 and LIMITS.seconds <= SECONDS


@pytest.mark.slow
def test_ten_thousand_pages_are_read_in_part_with_a_note():
    row = parse(make.many_pages_pdf(10_000))
    assert row["pages"] == 10_000 and "of 10,000 pages were read" in row["notes"][-1]
    assert "[page 1]\nthe same page" in row["text"]


def test_a_huge_table_is_read_in_part_with_a_note():
    row = parse(b"a,b\n" + b"1,2\n" * 150_000)
    assert row["notes"] == ["only the first 200,000 cells were read"]


def test_the_note_about_cells_appears_once_for_all_sheets(monkeypatch):
    monkeypatch.setattr("compress.serve.documents.tables.MOST_CELLS", 2)
    table = TableText()
    for _ in range(3):
        table.add([["a", "b"], ["c", "d"]])
    assert table.notes == ["only the first 2 cells were read"]


def test_every_part_of_a_docx_that_is_not_read_is_in_a_note():
    row = parse(make.word_with_unread_parts())
    words = ["comments", "endnotes", "footers", "footnotes", "headers", "pictures"]
    words += ["content controls", "fields and other elements", "text boxes", "tracked insertions"]
    assert sorted(row["notes"]) == sorted(f"{word} were not read" for word in words)
    assert "hidden" not in row["text"]


def test_a_docx_of_paragraphs_links_and_tables_has_no_note():
    assert parse(make.word("Fruit was cheap.", table=PRICES))["notes"] == []


def test_a_pdf_of_damaged_pages_is_not_described_as_scanned(monkeypatch):
    class Damaged:
        pages = property(lambda self: [self] * 2)

        def extract_text(self):
            raise KeyError("/Resources")

    monkeypatch.setattr("compress.serve.documents.pdf.SECONDS", float("inf"))  # of this process, not of a sandbox
    with pytest.raises(DocumentError, match=r"^all pages are damaged$"):
        join_pages(Damaged(), 2)


def test_a_long_text_is_read_in_part_with_a_note():
    row = parse(b"word " * 1_000_000)
    assert len(row["text"]) == 2_000_000 and "of 5,000,000 characters" in row["notes"][0]


@pytest.mark.parametrize("name", ["evil.pdf", "../../etc/passwd", "a\r\nb", "x.docx\x00.txt", "<img src=x>"])
def test_the_name_decides_nothing_and_is_only_a_label(client, name):
    from urllib.parse import quote

    response = client.post(f"/api/document?name={quote(name)}", content=b"a,b\n1,2\n", headers=UPLOAD)
    row = response.json()
    assert row["kind"] == "csv" and "\n" not in row["name"] and "\r" not in row["name"]


def test_a_refused_file_is_an_error_with_the_reason(client):
    response = client.post("/api/document?name=x.pdf", content=nested_zip(), headers=UPLOAD)
    assert response.status_code == 400 and "zip archive" in response.json()["error"]["message"]


@pytest.mark.slow
def test_others_are_served_while_a_file_is_read(client):
    bomb = make.flate_bomb_pdf(400_000_000)
    thread = threading.Thread(target=client.post, args=("/api/document",), kwargs={"content": bomb, "headers": UPLOAD})
    thread.start()
    assert until(lambda: client.service.children.running == 1)
    answer = client.post("/v1/chat/completions", json=ask("still there"))
    assert answer.json()["choices"][0]["message"]["content"] == "echo: still there "
    thread.join()


def test_a_document_reaches_the_prompt(client, engine):
    row = client.post(
        "/api/document?name=prices.xlsx", content=make.xlsx({"A1": "kiwi", "B1": 7}), headers=UPLOAD
    ).json()
    message = {"role": "user", "content": "How much?", "documents": [{"name": row["name"], "text": row["text"]}]}
    client.post("/v1/chat/completions", json={"model": "small", "messages": [message]})
    prompt = engine.seen["payload"]["messages"][0]["content"]
    assert "| kiwi | 7 |" in prompt and "prices.xlsx" in prompt and prompt.endswith("How much?")
    assert json.dumps(engine.seen["payload"]).count("documents") == 0


@pytest.mark.slow
def test_the_hostile_archives_are_archives():
    for build in (declared_bomb, lying_bomb, nested_zip):
        assert zipfile.is_zipfile(io.BytesIO(build()))


def test_half_of_a_character_in_a_file_becomes_a_question_mark():
    assert encodable("a\ud800b 苹") == "a?b 苹"
