"""Numbers and names as a reader wants them: a true minus sign, few digits, no underscores."""

from __future__ import annotations

import math
from typing import Any

ENSEMBLE = "ensemble:"
NONE = "–"
MINUS = "−"

NAMES = {
    "tis": "TIS (published)",
    "centre": "centre of the image",
    "brightness": "brightest patches",
    "token_frequency": "token frequency",
    "grey": "mid-grey pixels",
    "black": "black pixels",
    "mean_code": "mean code",
    "resampled_codes": "resampled codes",
    "by_id": "by id",
    "area_matched": "equal areas",
    "positions": "equal numbers of positions",
    "all": "all images",
}


def plain_name(name: object) -> str:
    """A registry name as words, or a method's name with the extractors it asks.

    Example:
        >>> plain_name("noisy_gradient_x_embedding"), plain_name("occlusion@pictures:1")
        ('noisy gradient × embedding', 'occlusion, pictures:1')
        >>> plain_name("ensemble:integrated_gradients")
        'integrated gradients of all extractors'
    """
    text = str(name)
    if text.startswith(ENSEMBLE):
        return f"{plain_name(text.removeprefix(ENSEMBLE))} of all extractors"
    if "@" in text:
        method, _, extractor = text.partition("@")
        return f"{plain_name(method)}, {extractor.replace('_', ' ')}"
    return NAMES.get(text, text.replace("_x_", " × ").replace("_", " "))


def is_number(value: object) -> bool:
    """Whether a value can be drawn: a finite number that is not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", MINUS)


def number(value: Any, digits: int = 3) -> str:
    """A number with at most so many decimals; a dash for None, NaN and infinity.

    Example:
        >>> number(-0.25, 1), number(3.0), number(None)
        ('−0.2', '3', '–')
    """
    if not is_number(value):
        return NONE
    return fixed(value, 0 if float(value).is_integer() else digits)


def signed(value: Any, digits: int = 3) -> str:
    """As `number`, with a plus sign where it is above 0."""
    text = number(value, digits)
    return f"+{text}" if is_number(value) and value > 0 else text


def percent(value: Any, digits: int = 0) -> str:
    """A share, 0 to 1, in percent."""
    return f"{fixed(value * 100, digits)} %" if is_number(value) else NONE


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """Both ends in brackets; nothing where there is no interval."""
    if not (is_number(low) and is_number(high)):
        return ""
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"


def estimate(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """A value and its interval."""
    return f"{number(value, digits)} {interval(low, high, digits)}".strip()


def count_of(items: int, one: str, many: str = "") -> str:
    """A number with its noun.

    Example:
        >>> count_of(1, "image"), count_of(2, "image"), count_of(1200, "entry", "entries")
        ('1 image', '2 images', '1,200 entries')
    """
    return f"{items:,} {one if items == 1 else many or one + 's'}"


def listed(items: list[str]) -> str:
    """Words joined as in a sentence.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def cell(value: Any) -> str:
    """One value of any table."""
    if isinstance(value, (list, tuple)):
        more = f", … ({len(value)} in all)" if len(value) > 8 else ""
        return ", ".join(cell(one) for one in value[:8]) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else number(value) if isinstance(value, (int, float)) else str(value)
