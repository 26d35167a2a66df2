"""Format sizes in bytes for people. Tables, messages and reports use these units. JSON has plain numbers of bytes."""

STEPS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def format_bytes(count: float, *, short: bool = True) -> str:
    """Bytes with a decimal unit: "1.17 GB", "16.0 GB", "108.3 MB", "4.1 kB", "999 B".

    Without `short`, 10 GB and more have two decimals too: "16.00 GB".
    """
    for unit, factor in STEPS:
        if abs(count) >= factor:
            value = count / factor
            digits = 2 if unit == "GB" and (abs(value) < 10 or not short) else 1
            return f"{value:,.{digits}f} {unit}"
    return f"{count:,.0f} B"
