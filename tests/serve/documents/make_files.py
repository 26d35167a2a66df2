"""Files for the tests: ordinary ones, and the hostile ones of the threat model."""

import io
import zipfile

import docx

CONTENT_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/xl/workbook.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>'
)
RELATION = (
    '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{}" Target="{}"/>'
)
RELATIONS = '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
WORKBOOK = (
    f'<?xml version="1.0"?><workbook {MAIN} '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">'
    '<sheets><sheet name="Prices" sheetId="1" r:id="r1"/></sheets></workbook>'
)

SHEET = f'<?xml version="1.0"?><worksheet {MAIN}><sheetData>{{}}</sheetData></worksheet>'


def archive(entries: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def xlsx(cells: dict[str, str | float]) -> bytes:
    """A workbook with one sheet of these cells, such as {"A1": "name"}. Each cell is a row element of its own."""
    rows = []
    for place, value in cells.items():
        number = int("".join(filter(str.isdigit, place)))
        text = isinstance(value, str)
        inner = f"<is><t>{value}</t></is>" if text else f"<v>{value}</v>"
        rows.append((number, f'<c r="{place}"{" t=" + chr(34) + "inlineStr" + chr(34) if text else ""}>{inner}</c>'))
    lines = "".join(
        f'<row r="{number}">{"".join(cell for other, cell in rows if other == number)}</row>'
        for number in sorted({number for number, _ in rows})
    )
    return archive(
        {
            "[Content_Types].xml": CONTENT_TYPES,
            "_rels/.rels": RELATIONS.format(RELATION.format("officeDocument", "xl/workbook.xml")),
            "xl/workbook.xml": WORKBOOK,
            "xl/_rels/workbook.xml.rels": RELATIONS.format(RELATION.format("worksheet", "worksheets/sheet1.xml")),
            "xl/worksheets/sheet1.xml": SHEET.format(lines),
        }
    )


def word(*texts: str, table: list[list[str]] | None = None) -> bytes:
    """A docx with a heading, paragraphs and a table."""
    document = docx.Document()
    document.add_heading("Report", 1)
    for text in texts:
        document.add_paragraph(text)
    if table:
        grid = document.add_table(len(table), len(table[0]))
        for row, cells in zip(grid.rows, table, strict=True):
            for cell, text in zip(row.cells, cells, strict=True):
                cell.text = text
    document.add_paragraph("The end.")
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
HIDDEN = "<w:r><w:t>hidden</w:t></w:r>"
UNREAD = f"""<w:p xmlns:w="{WORD}"><w:r><w:t>shown</w:t></w:r><w:ins>{HIDDEN}</w:ins>
<w:fldSimple>{HIDDEN}</w:fldSimple><w:r><w:pict><w:txbxContent><w:p>{HIDDEN}</w:p></w:txbxContent></w:pict></w:r>
<w:sdt><w:sdtContent>{HIDDEN}</w:sdtContent></w:sdt></w:p>"""


def word_with_unread_parts() -> bytes:
    """A docx with the text "hidden" in each place that is not read, and a picture."""
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part
    from docx.oxml import parse_xml

    document = docx.Document()
    document.element.body.insert(0, parse_xml(UNREAD))
    section = document.sections[0]
    section.header.paragraphs[0].text = section.footer.paragraphs[0].text = "hidden"
    text = f'<w:x xmlns:w="{WORD}"><w:p>{HIDDEN}</w:p></w:x>'.encode()
    parts = {"footnotes.xml": text, "endnotes.xml": text, "comments.xml": text, "media/image1.png": b"picture"}
    for name, content in parts.items():
        kind = "image/png" if name.endswith("png") else "application/xml"
        part = Part(PackURI(f"/word/{name}"), kind, content, document.part.package)
        document.part.relate_to(part, f"http://schemas.openxmlformats.org/test/{name}")
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def replaced(data: bytes, name: str, content: bytes) -> bytes:
    """A zip archive in which one entry is replaced."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    return archive(entries | {name: content})


def pdf(pages: list[str], *, password: str | None = None) -> bytes:
    """A pdf with one line of text per page."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    reference = writer._add_object(font)
    for text in pages:
        page = writer.add_blank_page(300, 200)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): reference})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def raw_pdf(objects: list[bytes]) -> bytes:
    """A pdf of these objects, numbered from 1; the first one is the catalog."""
    body, places = b"%PDF-1.5\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + table + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(body))


def self_referencing_pdf() -> bytes:
    """A page that draws a form, which draws itself."""
    form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F 5 0 R>>>>/Length 20>>"
    return raw_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>",
            b"<</Length 5>>\nstream\n/F Do\nendstream",
            form + b"\nstream\n/F Do /F Do /F Do  \nendstream",
        ]
    )


def looping_pages_pdf() -> bytes:
    """A page tree whose node is its own child."""
    return raw_pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 4>>"])


def many_pages_pdf(count: int) -> bytes:
    """A pdf of `count` pages that share one content."""
    kids = b" ".join(b"%d 0 R" % (number + 5) for number in range(count))
    stream = b"BT /F1 12 Tf 20 100 Td (the same page) Tj ET"
    return raw_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count),
            b"<</Length %d>>\nstream\n%s\nendstream" % (len(stream), stream),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            *[
                b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 3 0 R/Resources<</Font<</F1 4 0 R>>>>>>"
                for _ in range(count)
            ],
        ]
    )


def flate_bomb_pdf(size: int) -> bytes:
    """A page whose content unpacks to `size` bytes."""
    import zlib

    packed = zlib.compress(b" " * size, 9)
    return raw_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<<>>>>",
            b"<</Length %d/Filter/FlateDecode>>\nstream\n%s\nendstream" % (len(packed), packed),
        ]
    )
