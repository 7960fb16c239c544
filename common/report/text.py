"""Numbers and words as the report prints them, and the escaping that Markdown tables need."""

import math
import re
from typing import Any

MISSING = "—"
RECALLED = "†"
VERDICTS = ("reproduced", "held", "failed", "inconclusive", "not run")
_UNITS = {"percent": "%", "percentage points": "points"}


def plain(value: float | int | None) -> str:
    """A number as its author wrote it, up to 6 significant digits (`11.08`); a dash for None."""
    if value is None:
        return MISSING
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.6g}"


def decimals(spread: float) -> int:
    """Decimals that show two significant digits of a spread (an interval's half-width, a standard deviation)."""
    if not math.isfinite(spread) or spread <= 0:
        return 2
    return max(0, min(8, 1 - math.floor(math.log10(spread))))


def rounded(value: float | None, spread: float | None) -> str:
    """A measured number, rounded by its spread; without a spread to 4 significant digits."""
    if value is None:
        return MISSING
    if spread is None or spread <= 0 or not math.isfinite(spread):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    text = f"{value:,.{decimals(spread)}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def with_spread(mean: float | None, half: float | None) -> str:
    """`14.7 ± 3.2`; the mean alone where there is no spread."""
    if mean is None:
        return MISSING
    return rounded(mean, half) if half is None else f"{rounded(mean, half)} ± {rounded(half, half)}"


def interval(measured: dict[str, Any] | None) -> str:
    """`14.7 [11.5, 17.9]`. An end that was never reached (censored) is infinite."""
    if measured is None:
        return MISSING
    mean, low, high = measured["mean"], measured["low"], measured["high"]
    known = [end for end in (low, mean, high) if end is not None]
    spread = (max(known) - min(known)) / (1 if None in (low, high) else 2) if known else None
    if low is None and high is None:
        return rounded(mean, None)
    if low == high:
        return plain(mean)
    low_text = "-∞" if low is None else rounded(low, spread)
    high_text = "∞" if high is None else rounded(high, spread)
    return f"{rounded(mean, spread)} [{low_text}, {high_text}]"


def unit(name: str | None) -> str:
    """A unit as printed after a number: `%`, `points`, `s`; nothing for a pure number."""
    return "" if not name or name in ("1", "none") else _UNITS.get(name, name)


def with_unit(text: str, name: str | None) -> str:
    """`text unit`."""
    return text if text == MISSING or not unit(name) else f"{text} {unit(name)}"


def duration(seconds: float | None) -> str:
    """`8.4 s`, `12.5 min`, `3.1 h`."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rate(value: float | None) -> str:
    """A throughput, 3 significant digits with thousands separated."""
    if value is None:
        return MISSING
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def slug(text: str) -> str:
    """A piece of a file name: lower case, everything but letters, digits, dots and underscores a dash."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.") or "x"


def shorten(text: str, width: int) -> str:
    """At most `width` characters on one line, cut at a word with an ellipsis."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    cut = text[: width - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > width // 2 else cut).rstrip(" ,;:") + "…"


def markdown(text: str) -> str:
    """Text that Markdown shows literally, on one line and inside a table cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|$])", r"\\\1", text).replace("](", "]\\(")
    # An underscore inside a word is literal in GitHub's Markdown; elsewhere it could open emphasis.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
