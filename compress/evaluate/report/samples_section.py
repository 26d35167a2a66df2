"""The section "Answers side by side": the answers of all checkpoints to the same prompts."""

from collections.abc import Sequence

from compress.core.rows import AnswerRow, SampleRow
from compress.evaluate.report.html import dot, esc, section
from compress.evaluate.report.report_data import ReportData, css_colour
from compress.evaluate.report.retention_section import NAMES


def samples_section(data: ReportData) -> str:
    if not data.samples:
        return ""
    scored = any(answer["score"] is not None for sample in data.samples for answer in sample["answers"])
    about = "The answers of every checkpoint to the same prompts, unedited, with greedy decoding."
    if scored:
        about += " Kinds of task alternate; within a kind, prompts with the largest difference in score come first."
    return section("Answers side by side", about, *(sample_block(data, sample) for sample in data.samples))


def sample_block(data: ReportData, sample: SampleRow) -> str:
    """One prompt, followed by a column of answers per checkpoint."""
    turns = numbered(sample["turns"])
    prompt = "".join(f"<p>{mark(number, len(sample['turns']))}{esc(text)}</p>" for number, text in turns)
    kind = esc(NAMES.get(sample["kind"], sample["kind"]))
    columns = "".join(answer_block(data, answer) for answer in sample["answers"])
    answered = {answer["digest"] for answer in sample["answers"]}
    missing = [index for index, row in enumerate(data.rows) if row["digest"] not in answered]
    columns += "".join(missing_block(data.rows[index]["name"], css_colour(index)) for index in missing)
    question = f'<div class="prompt"><h3>{kind}</h3>{prompt}</div>'
    return f'<article class="sample">{question}<div class="answers">{columns}</div></article>'


def numbered(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(str(number), text) for number, text in enumerate(texts, 1)]


def mark(number: str, count: int) -> str:
    """The number of a turn as HTML, or "" if the conversation has a single turn."""
    return f"<small>{number}</small> " if count > 1 else ""


def answer_block(data: ReportData, answer: AnswerRow) -> str:
    """One checkpoint's answers, one per turn, and their score."""
    index = data.index_of(answer["digest"])
    name = answer["name"] if index is None else data.rows[index]["name"]
    texts = "".join(
        f"<pre>{mark(number, len(answer['answers']))}{esc(text) or '<i>empty answer</i>'}</pre>"
        for number, text in numbered(answer["answers"])
    )
    return f"<div><h4>{dot(css_colour(index or 0))}{esc(name)}{grade(answer)}</h4>{texts}</div>"


def missing_block(name: str, colour: str) -> str:
    """The column of a checkpoint that has no answer to the prompt."""
    return f"<div><h4>{dot(colour)}{esc(name)}</h4><p>not evaluated</p></div>"


def grade(answer: AnswerRow) -> str:
    """✓, ✕ or the score in %, with the scorer's reason as tooltip. "" if the answer was not scored."""
    if answer["score"] is None:
        return ""
    score = answer["score"]
    kind, text = ("good", "✓") if score == 1 else ("bad", "✕") if score == 0 else ("", f"{100 * score:.0f} %")
    return f' <b class="{kind}" title="{esc(answer["reason"] or "")}">{text}</b>'
