"""Byte sizes as text for people. JSON keeps plain numbers."""

UNITS = (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1))  # unit, bytes, decimal places


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that is not larger than the size: "1.17 GB", "83.1 MB", "5.0 kB" or "512 B"."""
    for unit, factor, digits in UNITS:
        if abs(count) >= factor:
            return f"{count / factor:,.{digits}f} {unit}"
    return f"{count:,.0f} B"
