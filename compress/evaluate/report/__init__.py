"""The comparison as one HTML file. It needs no network and no script, fits a phone, and has a light and a dark style.

All numbers come from rows, and the file contains the same rows as JSON (`<script id="rows">`). Each section of the page
is a module with a function that turns `ReportData` into HTML, or into "" if the data is missing.
"""

from compress.evaluate.report.page import make_report, write_report
from compress.evaluate.report.report_data import ReportData

__all__ = ["ReportData", "make_report", "write_report"]
