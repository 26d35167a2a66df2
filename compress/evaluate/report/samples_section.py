"""The same prompts, answered by every checkpoint, side by side."""

from collections.abc import Sequence

from compress.evaluate.report.html import Row, dot, esc, section
from compress.evaluate.report.report_data import ReportData, css_colour
from compress.evaluate.report.retention_section import NAMES


def samples_section(data: ReportData) -> str:
    if not data.samples:
        return ""
    scored = any(answer["score"] is not None for sample in data.samples for answer in sample["answers"])
    about = "Greedy answers to the same prompts, word for word."
    if scored:
        about += " Kinds take turns; within a kind those come first on which the checkpoints differ most."
    return section("In their own words", about, *(sample_block(data, sample) for sample in data.samples))


def sample_block(data: ReportData, sample: Row) -> str:
    """The prompt, then one column per checkpoint."""
    told = (("1", sample["turns"][0]),) if len(sample["turns"]) == 1 else numbered(sample["turns"])
    prompt = "".join(f"<p>{mark(number, len(sample['turns']))}{esc(text)}</p>" for number, text in told)
    kind = esc(NAMES.get(sample["kind"], sample["kind"]))
    columns = "".join(answer_block(data, answer) for answer in sample["answers"])
    asked = f'<div class="prompt"><h3>{kind}</h3>{prompt}</div>'
    return f'<article class="sample">{asked}<div class="said">{columns}</div></article>'


def numbered(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(str(number), text) for number, text in enumerate(texts, 1)]


def mark(number: str, count: int) -> str:
    """A turn's number, where there are several."""
    return f"<small>{number}</small> " if count > 1 else ""


def answer_block(data: ReportData, answer: Row) -> str:
    """A checkpoint's answers, each to its turn, and how they were scored."""
    index = data.index_of(answer["digest"])
    name = answer["name"] if index is None else data.rows[index]["name"]
    texts = "".join(
        f"<pre>{mark(number, len(answer['answers']))}{esc(text) or '<i>nothing</i>'}</pre>"
        for number, text in numbered(answer["answers"])
    )
    return f"<div><h4>{dot(css_colour(index or 0))}{esc(name)}{grade(answer)}</h4>{texts}</div>"


def grade(answer: Row) -> str:
    """✓, ✕ or the part that was right; the scorer's reason as its title. "" where nothing judged."""
    if answer["score"] is None:
        return ""
    score = answer["score"]
    kind, text = ("good", "✓") if score == 1 else ("bad", "✕") if score == 0 else ("", f"{100 * score:.0f} %")
    return f' <b class="{kind}" title="{esc(answer["reason"] or "")}">{text}</b>'
