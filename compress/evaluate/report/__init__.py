"""The comparison as one HTML file: no network, no script, readable on a phone, light and dark.

Every number is formatted from rows, and the rows stand in the file as JSON (`<script id="rows">`), so what is shown
and what a machine reads cannot differ. Each section is one file: a function from `ReportData` to HTML, "" where it has
nothing to say.
"""

from compress.evaluate.report.page import make_report, write_report
from compress.evaluate.report.report_data import ReportData

__all__ = ["ReportData", "make_report", "write_report"]
