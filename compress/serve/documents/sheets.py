"""Spreadsheets as Markdown tables, with python-calamine: xlsx and the older xls. Values are read, formulas are not."""

import io

from compress.serve.documents.content import Content, DocumentError
from compress.serve.documents.tables import TableText


def read_xlsx(data: bytes) -> Content:
    return read_sheets(data, "xlsx")


def read_xls(data: bytes) -> Content:
    return read_sheets(data, "xls")


def read_sheets(data: bytes, kind: str) -> Content:
    """All sheets, each below its name. Raises DocumentError if calamine cannot read the file."""
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        workbook = CalamineWorkbook.from_filelike(io.BytesIO(data))
        table = TableText()
        for name in workbook.sheet_names:
            table.add(workbook.get_sheet_by_name(name).iter_rows(), title=name)
    except (CalamineError, ValueError, OSError) as error:
        secret = "password" in str(error).lower() or "encrypt" in str(error).lower()
        reason = "is encrypted; save it without a password" if secret else f"cannot be read: {str(error)[:120]}"
        raise DocumentError(f"the spreadsheet {reason}") from None
    return Content(kind, table.text.strip(), table.notes)
