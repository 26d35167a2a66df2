"""Lists the prompts that have no answer in the output: their places in the prompt file, the reason and the cure."""

from collections.abc import Sequence

from compress.core.report import Row

TRUNCATED, EMPTY, TOO_LONG = "truncated", "empty", "too_long"
SHOWN = 10  # places per reason in a line
REASONS = {
    TRUNCATED: "the answer did not end within --max-tokens {max_tokens}; raise --max-tokens or set --keep-truncated",
    EMPTY: "the answer is empty",
    TOO_LONG: "the prompt leaves no room for --max-tokens {max_tokens} in the teacher's context; lower --max-tokens",
}


def place(source: str) -> str:
    """The place of a prompt in its file, such as "line 3", without the path."""
    return source.rpartition(": ")[2]


def left_out_lines(left_out: Sequence[Row], max_tokens: int) -> list[str]:
    """One line of text for each reason, with the places of its prompts. `left_out` has a row for each prompt."""
    lines = []
    for reason, text in REASONS.items():
        places = [row["prompt"] for row in left_out if row["reason"] == reason]
        if places:
            more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
            lines.append(f"left out {', '.join(places[:SHOWN])}{more}: {text.format(max_tokens=max_tokens)}")
    return lines
