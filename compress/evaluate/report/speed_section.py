"""Two sections from `qcompress bench`: measured speed and memory, and the hardware that each checkpoint fits."""

from collections.abc import Callable, Sequence

from compress.core.units import format_bytes
from compress.evaluate.report.html import Row, dot, esc, line, section, table
from compress.evaluate.report.report_data import ReportData, css_colour
from compress.evaluate.speed.words import notes, request_text

Cell = Callable[[Row, str], str]


def milliseconds(row: Row, key: str) -> str:
    """A median time in ms or s, followed by the smallest and the largest time."""
    value, low, high = row[key], row.get(f"{key}_low"), row.get(f"{key}_high")
    unit, factor = ("ms", 1) if value < 1000 else ("s", 0.001)
    spread = "" if low is None or high is None else f" <small>{factor * low:.3g}–{factor * high:.3g}</small>"
    return f"{factor * value:.3g} {unit}{spread}"


def rate(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    spread = "" if low is None or high is None else f" <small>{low:.3g}–{high:.3g}</small>"
    return f"{row[key]:.3g}{spread}"


def size(row: Row, key: str) -> str:
    return format_bytes(row[key])


def number(row: Row, key: str) -> str:
    return f"{row[key]:,}" + ("" if row.get(f"{key}_ran") in (None, True) else " <small>predicted</small>")


COLUMNS: dict[str, tuple[str, Cell]] = {  # key of a row -> the column's heading, and the function for its cells
    "weights_bytes": ("weights", size),
    "peak_bytes": ("peak memory", size),
    "ttft_ms": ("TTFT", milliseconds),
    "tpot_ms": ("TPOT", milliseconds),
    "decode_throughput": ("decode throughput", rate),
    "output_throughput": ("output throughput", rate),
    "total_token_throughput": ("total token throughput", rate),
    "largest_batch": ("largest batch", number),
}


def speed_section(data: ReportData) -> str:
    measured = [row for row in data.speed if row.get("kind", "measured") == "measured"]
    predicted = [row for row in data.speed if row.get("kind") == "predicted"]
    return (measured_part(data, measured) if measured else "") + (hardware_part(data, predicted) if predicted else "")


def measured_part(data: ReportData, rows: Sequence[Row]) -> str:
    first = rows[0]
    tokens = f"{first['prompt_tokens']:,} tokens in and {first['new_tokens']:,} out"
    request = f"Requests of {tokens}, batch size {first['batch_size']}"
    where = " ".join(str(first[key]) for key in ("runtime", "runtime_version") if first.get(key))
    about = (
        f"{request}; {where} on {first['device']}. Each figure is the median of {first['repeats']} repeats, with their "
        "range. TTFT and TPOT are the times to the first and per later token of one request. Throughputs are tokens "
        "per second of a batch: new tokens after the first, new tokens end to end, and prompts with them. "
        "Green or red: gain or loss against the reference."
    )
    keys = shown_columns(rows)
    lines = [speed_line(data, row, keys) for row in rows] + missing_lines(data, rows, len(keys))
    heads = ["checkpoint", *(COLUMNS[key][0] for key in keys)]
    return section("Speed and memory", about, table(heads, lines) + note_lines(rows))


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """The keys of COLUMNS for which at least one row has a figure."""
    return [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]


def speed_line(data: ReportData, row: Row, keys: Sequence[str]) -> str:
    """The table row of one checkpoint. A missing figure is empty, and the reason is below the table."""
    index = data.index_of(row["digest"])
    cells = [
        f"<td>{'' if row.get(key) is None else COLUMNS[key][1](row, key)}{gain(row.get(f'{key}_gain'))}</td>"
        for key in keys
    ]
    name = row["name"] if index is None else data.rows[index]["name"]
    return line(name, css_colour(index or 0), cells)


def note_lines(rows: Sequence[Row]) -> str:
    """Every error and remark as a paragraph below the table, where it needs no column and is never cut off."""
    return "".join(f"<p>{esc(', '.join(names))}: {esc(text)}</p>" for text, names in notes(rows).items())


def missing_lines(data: ReportData, rows: Sequence[Row], columns: int) -> list[str]:
    """A table row for every compared checkpoint that was not measured."""
    measured, cell = {row["digest"] for row in rows}, f'<td class="left" colspan="{columns}">not measured</td>'
    return [
        line(row["name"], css_colour(index), [cell])
        for index, row in enumerate(data.rows)
        if row["digest"] not in measured
    ]


def gain(value: float | None) -> str:
    if value is None:
        return ""
    kind = "good" if value > 0 else "bad" if value < 0 else ""
    return f'<br><span class="gain {kind}">{value:+.0f} %</span>'


def hardware_part(data: ReportData, rows: Sequence[Row]) -> str:
    """A table with a row per hardware and a column per checkpoint: fit, largest batch, longest context."""
    names = list(dict.fromkeys(row["name"] for row in (*rows, *data.rows)))
    first = rows[0]
    about = (
        f"Predicted from config.json and file headers, not measured, for {request_text(first)}. Large figure: requests "
        "that fit at a time. Small figure: longest context of one request, in tokens."
    )
    lines = []
    for hardware in dict.fromkeys(row["hardware"] for row in rows):
        by_name = {row["name"]: row for row in rows if row["hardware"] == hardware}
        title = next(iter(by_name.values())).get("hardware_title") or hardware
        memory = format_bytes(next(iter(by_name.values()))["memory_bytes"])
        cells = "".join(fit_cell(by_name.get(name)) for name in names)
        lines.append(f"<tr><th>{esc(title)} <small>{memory}</small></th>{cells}</tr>")
    places = {row["name"]: index for index, row in enumerate(data.rows)}
    head = "".join(f"<th>{dot(css_colour(places.get(name, 0)))}{esc(name)}</th>" for name in names)
    return section("Fit on hardware", about, table(["hardware"], lines, more=head))


def fit_cell(row: Row | None) -> str:
    if row is None:
        return "<td><small>not predicted</small></td>"
    if not row["fits"]:
        return f'<td title="{esc(row.get("reason") or "")}"><b class="bad">✕</b></td>'
    figures = f"{row['largest_batch']:,} <small>{row['longest_context']:,}</small>"
    return f'<td><b class="good">✓</b> {figures}</td>'
