"""How numbers look on the page: one format for each kind of number."""

from __future__ import annotations

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float) -> str:
    """`0.857` -> `85.7 %`; shares that would round to none or all say so."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def interval(low: float, high: float) -> str:
    """`80.1–90.3`, in percent."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


def points(difference: float) -> str:
    """A signed difference of shares in percentage points: `+3.2`, `−0.4`, `0.0`."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return text if text[1:] != "0.0" else "0.0"


def count(number: int) -> str:
    return f"{number:,}"


def quantity(number: float) -> str:
    """A number that may be whole: `12`, `12.5`."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"


def ratio(part: float, whole: float) -> str:
    """`2.0`; a dash where there is nothing to divide by."""
    return f"{part / whole:.1f}" if whole else "–"


def digest(sha256: str) -> str:
    """Enough of a digest to tell two apart."""
    return sha256[:12]


def scientific(number: float) -> str:
    """`1.8e-06` -> `1.8 × 10⁻⁶`."""
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.replace('-', '−')} × 10{power(int(exponent))}"


def rate(number: float) -> str:
    """A learning rate: `0.0003` -> `3 × 10⁻⁴`."""
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{float(mantissa):g} × 10{power(int(exponent))}".replace("-", "−")


def power(exponent: int) -> str:
    """An exponent as superscript: `-6` -> `⁻⁶`."""
    return str(exponent).translate(_SUPERSCRIPT)
