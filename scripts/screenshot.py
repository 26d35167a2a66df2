#!/usr/bin/env python
"""Take four pictures of a report in a browser: python scripts/screenshot.py report.html OUT

Writes pictures of desktop and phone width, light and dark, to the folder OUT. Needs playwright
(pip install 'qcompress[dev]') and Chromium: Debian's, or the program whose path is in CHROMIUM. If the page scrolls
sideways or logs an error, the script prints this on stderr, and its exit code is 1.
"""

import os
import shutil
import sys
from pathlib import Path

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]


def find_chromium() -> str | None:
    """The path of Chromium. None if it is not installed."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def main(report: Path, out: Path) -> int:
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    troubles: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        for name, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
                page.goto(report.absolute().as_uri())
                page.screenshot(path=out / f"{name}-{scheme}.png", full_page=True)
                page_width = page.evaluate("document.documentElement.scrollWidth")
                if page_width > width:
                    troubles.append(f"{name}: the page is {page_width} pixels wide, but the screen only {width}")
                page.close()
        browser.close()
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return int(bool(troubles))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
