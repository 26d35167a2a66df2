import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from compress.core.errors import QCompressError
from compress.core.proportion import ENOUGH
from compress.evaluate.drift.limits import HELP_DRIFT
from compress.evaluate.report import ReportData, write_report
from compress.evaluate.report import make_report as make_page
from compress.evaluate.report.blocks_section import blocks_section, describe
from compress.evaluate.report.drift_section import drift_section
from compress.evaluate.report.linears_section import stage_borders
from compress.evaluate.report.numbers_table import size_picture, spread_labels
from compress.evaluate.report.plots import NARROW, STYLE, WIDE
from compress.evaluate.report.retention_section import retention_section
from compress.evaluate.report.samples_section import samples_section
from compress.evaluate.report.speed_section import speed_section
from compress.evaluate.report.trend_section import trend_rows, trend_section
from compress.evaluate.report.verdicts_section import beats, card, cards, headline, standing

pytestmark = pytest.mark.slow  # runs whole jobs

EVIL = "</script><b onclick='x()'>&$x_1$ \"é"


def make_report(rows, **others):
    return make_page(ReportData(rows, **others))


class Page(HTMLParser):
    """The tags of a page in order, and the text inside its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.shown, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.shown).append(data)


def embedded(text):
    (script,) = Page(text).scripts
    return json.loads(script)


def test_the_page_embeds_the_rows_unchanged(make_row, make_rows, linears):
    rows = make_rows(make_row("a", record={"rows": linears}), make_row(EVIL, kl=0.1 + 0.2))
    assert embedded(make_report(rows)) == {"rows": rows}
    verdicts = [{"name": "a", "passed": True, "reason": None}]
    verdicts += [
        {"name": EVIL, "passed": False, "reason": "KL 0.3 nats is above the limit 0.2 (max_kl)", "cure": HELP_DRIFT}
    ]
    assert embedded(make_report(rows, limits={"max_kl": 0.2})) == {
        "rows": rows, "verdicts": verdicts, "limits": {"max_kl": 0.2}
    }  # fmt: skip


def test_shown_figures_change_with_the_rows(make_row, make_rows):
    before, after = (
        " ".join(Page(make_report(make_rows(make_row("a", kl=kl, top1=top)))).shown)
        for kl, top in ((0.1234, 0.5), (0.4321, 0.75))
    )
    assert "0.1234" in before and "50.0 %" in before and "0.4321" not in before
    assert "0.4321" in after and "75.0 %" in after and "0.1234" not in after


def numbers_in(value):
    """Every number of nested rows."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def spellings(value):
    """A number as a person may read it: rounded, in %, in thousands, millions or thousandths."""
    for factor in (1, 100, 1000, 1e-6, 1e-9):
        scaled = abs(factor * value)
        yield from (f"{scaled:,.{digits}f}" for digits in range(5))
        yield f"{scaled:.3g}"


def test_every_number_on_the_page_occurs_in_its_json(full_page, linears, curve):
    text = full_page
    page = Page(re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", text, flags=re.DOTALL))
    shown = " ".join(part for part in page.shown if "bay" not in part.lower() and "sha256" not in part)
    rows = embedded(text)
    spelled = {word for value in numbers_in(rows) for word in spellings(value)}
    sizes = [row["bytes"] / rows["rows"][0]["bytes"] for row in rows["rows"]]
    spelled |= {word for size in sizes for share in (size, 1 - size) for word in spellings(share)}
    spelled |= {word for row in linears for word in spellings(row["error"] / row["rtn_error"])}
    spelled |= {"95", "100", "99", "99 %", "3"}  # of the explanations: intervals, percentiles; how many candidates
    spelled |= {str(len(numbers)) for numbers in rows.values()} | {str(len(curve))}
    number = re.compile(r"(?<![\w.:-])\d[\d,]*(?:\.\d+)?(?![\w:]|\.\d)")
    spelled |= {word.rstrip(",") for row in rows["verdicts"] for word in number.findall(row["reason"] or "")}
    words = number.findall(shown)
    assert len(words) > 200
    assert [word for word in words if word.rstrip(",") not in spelled] == []


def test_names_texts_and_records_cannot_inject_markup(make_row, make_rows, linears, curve):
    record = {"command": EVIL, "settings": {EVIL: EVIL}, "source": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    record |= {"calibration": {"sources": [{"name": EVIL, "digest": EVIL, "tokens": EVIL}]}}
    record |= {"rows": [row | {"linear": EVIL} for row in linears], "loss": curve}
    rows = make_rows(make_row(EVIL, format=EVIL, method=EVIL, text=EVIL, digest=EVIL, record=record), make_row("b"))
    rows[0] |= {"name": EVIL + "0", "text": EVIL, "record": record}
    retention = [{"digest": EVIL, "role": "candidate", "kind": EVIL, "retention": 50.0, "items": 1}]
    assert EVIL in ReportData(rows, retention=retention, limits={"min_retention": 85}).verdict_by_name[EVIL]["reason"]
    retention[0] |= {"name": EVIL, "items": 1, "errors": 0, "empty": 0, "score": 0.5, "score_se": None, "runtime": EVIL}
    retention[0] |= {"retention_low": None, "retention_high": None, "suite": EVIL, "suite_digest": EVIL}
    text = make_report(rows, retention=retention, limits={"min_retention": 85}, title=EVIL, command=EVIL)
    page = Page(text)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "rows"}
    ]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert embedded(text)["rows"] == rows
    for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)  # well-formed


def test_the_page_loads_nothing_from_the_network(make_row, make_rows, linears, curve):
    text = make_report(make_rows(make_row("a", record={"rows": linears, "loss": curve})))
    links = [
        value
        for _, attributes in Page(text).tags
        for name, value in attributes.items()
        if "href" in name or name == "src"
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import|<link", text)


def test_the_same_rows_give_the_same_bytes(tmp_path, make_row, make_rows, linears, curve):
    rows = make_rows(make_row("a", record={"rows": linears, "loss": curve}))
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, ReportData(rows))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_a_failed_report_keeps_the_old_file(tmp_path, make_row, make_rows):
    path = tmp_path / "report.html"
    write_report(path, ReportData(make_rows(make_row("a"))))
    old = path.read_bytes()
    for rows in (make_rows()[:1], make_rows(make_row("a", kl_p95=float("nan")))):
        with pytest.raises(ValueError):
            write_report(path, ReportData(rows))
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_a_report_replaces_no_file_of_another_program(tmp_path, make_row, make_rows):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(QCompressError, match=r"config\.json: exists, and qcompress did not write it; .* --html"):
        write_report(path, ReportData(make_rows(make_row("a"))))
    assert path.read_text() == "{}"
    write_report(tmp_path / "r.html", ReportData(make_rows(make_row("a"))))
    write_report(tmp_path / "r.html", ReportData(make_rows(make_row("b"))))
    with pytest.raises(QCompressError, match="exists, and qcompress did not write it"):
        write_report(tmp_path, ReportData(make_rows(make_row("a"))))


def test_the_loss_plot_marks_the_start_of_every_stage(make_row, make_rows, linears, curve):
    staged = [{**row, "stage": "general" if row["step"] < 5 else "task<1>"} for row in curve]
    assert stage_borders(staged) == [(1, "general"), (5, "task<1>")] and stage_borders(curve) == []
    text = make_report(make_rows(make_row("a", record={"rows": linears, "loss": staged})))
    assert "general" in text and "task&lt;1&gt;" in text and "task<1>" not in text


def test_plots_of_linears_and_loss_need_rows_in_the_record(make_row, make_rows, linears, curve):
    bare = make_report(make_rows())
    assert bare.count("<figure") == 1
    full = make_report(make_rows(make_row("a", record={"rows": linears, "loss": curve}), make_row("b")))
    assert full.count("<figure") == 3 and "Median over linears: 0.50 ×" in full
    rounding = [row | {"error": row["rtn_error"]} for row in linears]
    assert make_report(make_rows(make_row("a", record={"rows": rounding}))).count("<figure") == 1


def test_the_report_shows_kl_before_and_after_distillation(make_rows, curve):
    outcome = {"kl_before": 2.9, "kl_after": 0.58, "factor": 5.0}
    rows = make_rows()
    rows[0]["record"] = {"loss": curve, "rows": [outcome]}
    assert "evaluation text: 2.900 nats before, 0.580 after." in make_report(rows)
    outcome |= {"kl_before_se": 0.2, "kl_after_se": 0.03, "tokens_scored": 12131}
    assert "12,131 scored tokens: 2.900 ± 0.200 nats before, 0.580 ± 0.030 after." in make_report(rows)


@pytest.mark.parametrize("changes", [{"kl": 0.0, "kl_median": 0.0, "kl_p95": 0.0, "kl_p99": 0.0}, {"kl": -1e-9}])
def test_candidates_without_drift_can_be_drawn(changes, make_row, make_rows):
    make_report(make_rows(make_row("a", **changes), make_row("b", **changes)))


def test_a_single_window_shows_no_standard_error(make_row, make_rows):
    none = {"perplexity_se": None, "perplexity_ratio_se": None, "kl_se": None, "top1_se": None}
    rows = make_rows(make_row("a", **none), make_row("b", **none))
    rows[0] |= none
    assert "± 0" not in make_report(rows).split("<tbody>")[1].split("</tbody>")[0]


def test_the_headline_names_the_lowest_kl_within_the_limits(make_row, make_rows):
    rows = make_rows(make_row("near", kl=0.1, top1=0.9), make_row("far", kl=0.3, top1=0.7))
    assert headline(ReportData(rows)).startswith("near predicts the same next token for 90\u00a0% of tokens")
    rows[1]["blocks"] = [{"block": 3, "gain": 1.05, "error": 0.01, "score": 9.0, "outlier": True}]
    assert headline(ReportData(rows)).startswith("far predicts")
    assert headline(ReportData(rows, limits={"max_kl": 0.2})) == "No candidate for base is within its limits"
    invalid = [{"name": "far", "passed": False, "reason": "breaks rule D1"}]
    assert headline(ReportData(rows, verdicts=invalid)) == "No candidate for base is within its limits"


def test_a_failed_verdict_appears_before_the_plots(make_rows):
    text = make_report(make_rows(), limits={"max_kl": 0.05})
    assert text.index("✕ KL 0.07654 nats is above the limit 0.05") < text.index("<figure")
    assert "No candidate" in text


def test_a_candidate_beats_another_only_if_as_small_and_clearly_closer(make_row):
    row = make_row("a", kl=0.2, kl_se=0.01)
    assert beats(make_row("b", kl=0.1), row)
    assert not beats(make_row("b", kl=0.19), row)  # within two standard errors
    assert not beats(make_row("b", kl=0.1, bytes=120_000_000), row)  # larger
    assert beats(make_row("b", kl=0.1, bytes=114_500_000), row)  # larger by half a percent
    assert not beats(row, row)


def test_standings_distinguish_closest_smallest_and_beaten(make_row):
    rows = [make_row("near", kl=0.1, bytes=200_000_000), make_row("small", kl=0.3, bytes=100_000_000)]
    rows += [make_row("between", kl=0.2, bytes=150_000_000), make_row("worse", kl=0.4, bytes=150_000_000)]
    assert [standing(row, rows).split(":")[0] for row in rows] == [
        "lowest KL", "smallest", "a trade-off between size and KL",
        "worse than between, which has a lower KL and the same size",
    ]  # fmt: skip


def test_only_the_candidate_with_the_fewest_bytes_is_the_smallest(make_row):
    rows = [make_row("a", kl=0.1), make_row("b", kl=0.1, bytes=114_000_001)]
    assert [standing(row, rows) for row in rows] == ["lowest KL and smallest", "lowest KL"]


@pytest.mark.parametrize(
    ("size", "words"),
    [(113_000_000, "is smaller"), (114_000_000, "the same size"), (114_500_000, "is less than 1 % larger")],
)
def test_a_worse_candidate_is_compared_by_its_real_size(make_row, size, words):
    row, rival = make_row("a", kl=0.2), make_row("b", kl=0.1, bytes=size)
    assert standing(row, [row, rival]) == f"worse than b, which has a lower KL and {words}"


def test_overlapping_labels_move_apart_and_keep_their_order():
    moved = spread_labels([0.5, 0.1, 0.11, 0.9], 0.1)
    assert moved == pytest.approx([0.5, 0.1, 0.2, 0.9])
    assert spread_labels([0.95, 0.96, 1.0], 0.1, highest=1.0) == pytest.approx([0.8, 0.9, 1.0])


@pytest.mark.parametrize("number", [1, 4, 8])
@pytest.mark.parametrize("narrow", [False, True])
def test_no_text_of_the_first_picture_is_cut(make_row, make_rows, number, narrow):
    names = [f"student-awq-with-groups-of-{index}" if index % 2 else f"small-{index}" for index in range(number)]
    candidates = [
        make_row(name, kl=0.05 + index % 3 / 10, bytes=10**8 + 10**7 * index) for index, name in enumerate(names)
    ]
    rows = make_rows(*candidates)
    picture = size_picture(ReportData(rows, limits={"max_kl": 0.2, "max_size": 150_000_000}))
    assert cut_texts(picture, narrow) == []


def cut_texts(picture, narrow):
    """The texts of a picture that lie outside of it."""
    figure = Figure(figsize=(NARROW, picture.narrow_height) if narrow else (WIDE, picture.height), dpi=72)
    with rc_context(STYLE):
        picture.draw(figure, narrow)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    width, height = figure.get_size_inches() * 72
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    ticks = {text for axis in axes for text in axis.findobj(Text)} - {axis.label for axis in axes}
    texts = [text for text in figure.findobj(Text) if text not in ticks and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
    assert len(boxes) >= 4
    return [name for name, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]


def test_an_outlier_block_is_named_before_the_plots(full_page):
    text, words = full_page, "✕ block 3 (gain 1.050, error 0.0258) is an outlier"
    assert words in text and text.index(words) < text.index("<figure")
    assert "block 3 has gain 1.050" in text and text.count("no outlier") == 2


def test_an_outlier_block_is_shown_with_its_worst_linear():
    block = {"block": 3, "gain": 1.05, "error": 0.01}
    linears = [
        {"name": "q_proj", "error": 0.02, "recorded": 0.019},
        {"name": "up_proj", "error": 0.01, "recorded": 0.002},
    ]
    assert describe(block | {"linears": linears}) == "block 3 has gain 1.050 and error 0.0100, mostly from up_proj"
    unrecorded = [row | {"recorded": None} for row in linears]
    assert describe(block | {"linears": unrecorded}).endswith("mostly from q_proj")
    assert describe(block | {"linears": unrecorded, "linear": "up_proj"}).endswith("mostly from up_proj")


def test_two_reports_to_one_path_do_not_share_a_partial_file(tmp_path, make_row, make_rows):
    (tmp_path / ".r.html.partial").mkdir()
    write_report(tmp_path / "r.html", ReportData(make_rows(make_row("a"))))
    assert (tmp_path / "r.html").read_text().startswith("<!")


def test_missing_speed_and_hardware_without_fit_have_a_reason(full_data):
    speed = [row | {"error": "killed by the <kernel>", "tpot_ms": None} for row in full_data.speed]
    text = speed_section(replace(full_data, speed=speed))
    assert "killed by the &lt;kernel&gt;" in text and 'title="too large"' in text and "42.2 ms" not in text


def test_a_note_on_measured_rows_stands_whole_below_the_table(full_data):
    measured = [row for row in full_data.speed if row["kind"] == "measured"]
    speed = [row | {"note": "dequantizes & more", "largest_batch": None} for row in measured]
    text = speed_section(replace(full_data, speed=speed))
    names = ", ".join(row["name"] for row in measured)
    assert f"</table></div><p>{names}: dequantizes &amp; more</p>" in text
    assert "largest batch" not in text and "<th>output throughput</th>" in text


def test_the_fit_names_the_request_and_the_cap_of_the_prediction(full_data):
    text = speed_section(full_data)
    request = "requests of 1,024 prompt tokens and 512 new tokens, at most 256 at once (vLLM&#x27;s default)"
    assert f"for {request}. Large figure: requests that fit at a time" in text


def test_sections_without_rows_are_left_out(make_rows):
    text = make_report(make_rows())
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == ["Size and drift", "All figures", "Provenance"]


def test_a_kind_where_the_reference_scores_0_has_no_bar(full_data):
    groups = re.findall(r'<div class="scores">.*?</div></div>', retention_section(full_data), re.DOTALL)
    (mathematics,) = [group for group in groups if "Mathematics" in group]
    assert mathematics.count("n/a") == 3 and "<u " not in mathematics and "<em " not in mathematics


def test_the_trend_needs_two_verdicts_on_a_checkpoint(full_data):
    assert "Over time" in trend_section(full_data)
    assert trend_section(replace(full_data, history=full_data.history[:1])) == ""
    rows = [{"name": "near", "kind": kind, "time": "t", "score": 0.5} for kind in ("qa", "all")]
    rows += [{"name": "other", "kind": "all", "time": "t", "score": 0.5}, {"name": "near", "time": "t", "passed": True}]
    assert trend_rows(rows, full_data.rows) == [{"time": "t", "name": "near", "kind": "all", "score": 0.5}]


def test_a_teacher_outside_the_comparison_is_named_with_its_score(full_data):
    rows = [
        row | {"name": "smollm2", "digest": "sha256:teacher"} if row["role"] == "reference" else row
        for row in full_data.retention
    ]
    text = retention_section(replace(full_data, retention=rows))
    assert "teacher smollm2 scores 50 of 100" in text and "the reference" not in text
    assert "the reference scores 50 of 100" in retention_section(full_data)


def without(rows, name):
    return [row for row in rows if row["name"] != name]


def test_a_candidate_without_results_is_shown_as_not_evaluated(full_data):
    data = replace(full_data, retention=without(full_data.retention, "near"), speed=without(full_data.speed, "near"))
    samples = [sample | {"answers": without(sample["answers"], "near")} for sample in full_data.samples]
    assert cards(data).count("not evaluated") == 1
    assert retention_section(data).count("not evaluated") == len({row["kind"] for row in data.retention})
    assert speed_section(data).count(">not measured<") == speed_section(data).count(">not predicted<") == 1
    assert samples_section(replace(full_data, samples=samples)).count("not evaluated") == len(samples)
    assert not {"not evaluated", "not measured", "not predicted"} & {*Page(make_page(full_data)).shown}


@pytest.mark.parametrize(("items", "few"), [(2, True), (ENOUGH, False)])
def test_a_card_with_few_tasks_has_a_note(full_data, items, few):
    rows = [row | {"items": items if row["kind"] != "all" else 4 * items} for row in full_data.retention]
    rows = [row | {"retention": 0.0} if row["role"] == "candidate" else row for row in rows]
    text = cards(replace(full_data, retention=rows))
    assert text.count("<b>0 %</b>") == 3 and text.count("too few items to tell") == (3 if few else 0)


def test_longer_bars_are_better_in_every_card(make_row, make_rows):
    rows = make_rows(
        make_row("good", kl=0.1, top1=0.9, bytes=10**8), make_row("poor", kl=0.3, top1=0.7, bytes=2 * 10**8)
    )
    widths = [re.findall(r"width:([\d.]+)%", card(ReportData(rows), index)) for index in (1, 2)]
    pairs = [(float(good), float(poor)) for good, poor in zip(*widths, strict=True)]
    assert len(pairs) == 3 and all(good > poor for good, poor in pairs)


def test_a_limit_explains_the_grey_area(make_rows):
    assert "the grey area is beyond a limit" in make_report(make_rows(), limits={"max_kl": 0.2})
    assert "grey" not in re.sub("<style>.*</style>", "", make_report(make_rows()), flags=re.DOTALL)


def test_a_wide_table_has_a_hint_that_it_scrolls(full_page):
    for heading in ("All figures", "Speed and memory"):
        part = full_page[full_page.index(f"<h2>{heading}</h2>") :]
        assert part.index('class="hint"') < part.index("<table>")


def test_eight_candidates_have_eight_colours(make_row, make_rows):
    data = ReportData(make_rows(*(make_row(f"m{number}") for number in range(8))))
    assert len({colour for colour, _ in data.names}) == 8
    page = make_page(data)
    assert all(page.count(f"{colour[4:-1]}: #") == 2 for colour, _ in data.names)  # a light and a dark one


def test_chinese_texts_have_a_note_on_fonts(full_data):
    turns = [full_data.samples[0] | {"turns": ["退货放在哪个货位?"]}]
    assert "install Noto Sans CJK" in make_page(replace(full_data, samples=turns))
    assert '<p class="note">' not in make_page(full_data)
    stacks = re.findall(r"--(?:sans|mono): (.*?);", make_page(full_data))
    generic = [", sans-serif, ", ", monospace, "]  # before the fonts for Chinese, which have Latin letters too
    assert len(stacks) == 2
    for stack, name in zip(stacks, generic, strict=True):
        assert stack.index(name) < stack.index('"Noto Sans CJK SC"')


@pytest.mark.parametrize("section", [drift_section, blocks_section, trend_section])
def test_a_legend_is_below_the_picture_and_names_every_candidate(full_data, section):
    text = section(full_data)
    start = text.index("<figcaption")
    below = text[start : text.index("</figure>")]
    assert text.rindex("</svg>") < start
    assert all(row["name"] in below for row in full_data.candidates)
