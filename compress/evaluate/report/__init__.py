"""The comparison as one HTML file: no network, no script, readable on a phone, light and dark.

Every number is formatted from rows, and the file holds the same rows as JSON (`<script id="rows">`). Each section is
one file with a function from `ReportData` to HTML; it returns "" without data.
"""

from compress.evaluate.report.page import check_replaceable, make_report, write_report
from compress.evaluate.report.report_data import ReportData

__all__ = ["ReportData", "check_replaceable", "make_report", "write_report"]
