"""Speed and memory of every checkpoint, as `qcompress bench` measured them; and which boards it predicts to fit."""

from collections.abc import Callable, Sequence

from compress.evaluate.report.html import Row, dot, esc, line, megabytes, section, table
from compress.evaluate.report.report_data import ReportData, css_colour

Cell = Callable[[Row, str], str]


def seconds(row: Row, key: str) -> str:
    """The median, and the least and greatest of the repeats."""
    value, low, high = row[key], row.get(f"{key}_low"), row.get(f"{key}_high")
    unit, factor = ("ms", 1000) if value < 1 else ("s", 1)
    spread = "" if low is None or high is None else f" <small>{factor * low:.3g}–{factor * high:.3g}</small>"
    return f"{factor * value:.3g} {unit}{spread}"


def rate(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    spread = "" if low is None or high is None else f" <small>{low:.3g}–{high:.3g}</small>"
    return f"{row[key]:.3g}{spread}"


def size(row: Row, key: str) -> str:
    return megabytes(row[key])


def number(row: Row, key: str) -> str:
    return f"{row[key]:,}" + ("" if row.get(f"{key}_ran") in (None, True) else " <small>predicted</small>")


COLUMNS: dict[str, tuple[str, Cell]] = {  # key: heading, cell
    "weights_bytes": ("weights", size),
    "peak_bytes": ("peak memory", size),
    "ttft_s": ("first token", seconds),
    "latency_s": ("whole answer", seconds),
    "decode_tokens_per_s": ("tokens/s", rate),
    "throughput_tokens_per_s": ("tokens/s, batch", rate),
    "largest_batch": ("largest batch", number),
}


def speed_section(data: ReportData) -> str:
    measured = [row for row in data.speed if row.get("kind", "measured") == "measured"]
    predicted = [row for row in data.speed if row.get("kind") == "predicted"]
    return (measured_part(data, measured) if measured else "") + (boards_part(data, predicted) if predicted else "")


def measured_part(data: ReportData, rows: Sequence[Row]) -> str:
    first = rows[0]
    asked = f"{first['prompt_tokens']:,} tokens in, {first['new_tokens']:,} out, batches of {first['batch_size']}"
    where = " ".join(str(first[key]) for key in ("runtime", "runtime_version") if first.get(key))
    about = (
        f"{asked}; {where} on {first['device']}. Medians of {first['repeats']} with the least and greatest; in green "
        "or red what it gains over the reference."
    )
    lines = [speed_line(data, row) for row in rows]
    return section("Speed and memory", about, table(["checkpoint", *(name for name, _ in COLUMNS.values())], lines))


def speed_line(data: ReportData, row: Row) -> str:
    """A checkpoint's line; what could not be measured stays empty, and the reason stands under the name."""
    index = data.index_of(row["digest"])
    cells = [
        f"<td>{'' if row.get(key) is None else cell(row, key)}{gain(row.get(f'{key}_gain'))}</td>"
        for key, (_, cell) in COLUMNS.items()
    ]
    name = row["name"] if index is None else data.rows[index]["name"]
    return line(name, css_colour(index or 0), cells, note=row.get("error") or row.get("note"))


def gain(value: float | None) -> str:
    if value is None:
        return ""
    kind = "good" if value > 0 else "bad" if value < 0 else ""
    return f'<br><span class="gain {kind}">{value:+.0f} %</span>'


def boards_part(data: ReportData, rows: Sequence[Row]) -> str:
    """A line per board, a column per checkpoint: fits or not, and how many requests at a time."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    first = rows[0]
    about = (
        f"Predicted from config.json and the weights' headers, for requests of {first['request_tokens']:,} tokens: how "
        "many fit at a time, and the longest context of a single one."
    )
    lines = []
    for board in dict.fromkeys(row["hardware"] for row in rows):
        own = {row["name"]: row for row in rows if row["hardware"] == board}
        title = next(iter(own.values())).get("hardware_title") or board
        memory = megabytes(next(iter(own.values()))["memory_bytes"])
        cells = "".join(fit_cell(own.get(name)) for name in names)
        lines.append(f"<tr><th>{esc(title)} <small>{memory}</small></th>{cells}</tr>")
    known = {row["name"]: index for index, row in enumerate(data.rows)}
    head = "".join(f"<th>{dot(css_colour(known.get(name, 0)))}{esc(name)}</th>" for name in names)
    return section("Where it fits", about, table(["board"], lines, more=head))


def fit_cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    if not row["fits"]:
        return f'<td title="{esc(row.get("reason") or "")}"><b class="bad">✕</b></td>'
    told = f"{row['largest_batch']:,} <small>{row['longest_context']:,}</small>"
    return f'<td><b class="good">✓</b> {told}</td>'
