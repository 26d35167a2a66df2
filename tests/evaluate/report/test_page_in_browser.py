"""The report in a real browser: Debian's Chromium, driven by Playwright, without a network."""

import importlib.util
import shutil
from contextlib import contextmanager

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("browser")]  # one Chromium, one report
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SEEN = "element => { const box = element.getBoundingClientRect(); return box.width > 40 && box.height > 40; }"
COLOUR = "element => getComputedStyle(element).color"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright and chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(full_page, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(full_page, encoding="utf-8")
    return file


@pytest.fixture
def opened(browser, report):
    """opened(viewport, scheme): the full report's page, the URLs it requested, and the messages of the console."""

    @contextmanager
    def open_page(viewport, scheme="light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        requests, messages = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(report.as_uri())
        yield page, requests, messages
        page.close()

    return open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_has_no_errors_or_requests_and_fits_the_screen(opened, viewport, scheme):
    with opened(viewport, scheme) as (page, requests, messages):
        assert messages == [] and len(requests) == 1 and requests[0].endswith("report.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_picture_is_drawn_once_and_inside_the_screen(opened, viewport):
    with opened(viewport) as (page, _, _):
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        figures = page.query_selector_all("figure")
        assert len(figures) >= 4
        for figure in figures:
            drawn = [svg for svg in figure.query_selector_all("svg") if svg.evaluate(SEEN)]
            assert len(drawn) == 1  # of the wide and the narrow one
            box = drawn[0].bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
            assert drawn[0].query_selector_all("path")


def test_text_has_contrast_on_light_and_dark_backgrounds(opened):
    shades = []
    for scheme in ("light", "dark"):
        with opened(DESKTOP, scheme) as (page, _, _):
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            words = [page.eval_on_selector(one, COLOUR) for one in ("h1", ".kind", ".verdict b", "figure text")]
            assert all(abs(brightness(word) - brightness(background)) > 90 for word in words)
            shades.append(brightness(background))
    assert shades[0] > 200 and shades[1] < 60


def brightness(colour):
    """Of rgb(r, g, b), 0 to 255."""
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue


BARS = """all => all.filter(one => one.querySelector("u")).map(one => {
    const left = mark => mark.getBoundingClientRect().left;
    const hundred = left(one.querySelector("s")) - left(one.querySelector("i"));
    const width = one.querySelector("u").getBoundingClientRect().width;
    return [one.querySelector(":scope > span").textContent, width, hundred];
})"""


def test_the_length_of_a_bar_matches_its_number(opened):
    with opened(DESKTOP) as (page, _, _):
        bars = page.eval_on_selector_all(".bar", BARS)
        assert len(bars) == 12
        for text, width, hundred in bars:
            assert width / hundred == pytest.approx(float(text.split()[0]) / 100, abs=0.012)  # the text is rounded


OUTSIDE = """all => all.flatMap(svg => [...svg.querySelectorAll("text")].filter(text => {
    const [inner, outer] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
    return outer.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
        inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1);
}).map(text => text.textContent))"""


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_no_label_of_a_picture_is_cut(opened, viewport):
    with opened(viewport) as (page, _, _):
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.eval_on_selector_all("figure svg", OUTSIDE) == []


HINTS = """all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => {
    const hint = one.previousElementSibling;
    return hint !== null && hint.classList.contains("hint") && hint.getBoundingClientRect().height > 0;
})"""


def test_on_a_phone_every_table_that_scrolls_has_a_hint(opened):
    with opened(PHONE) as (page, _, _):
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        hints = page.eval_on_selector_all(".scroll", HINTS)
        assert len(hints) >= 2 and all(hints)


def test_on_a_desktop_no_table_scrolls(opened):
    with opened(DESKTOP) as (page, _, _):
        assert page.eval_on_selector_all(".scroll", HINTS) == []
