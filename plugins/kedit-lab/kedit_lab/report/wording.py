"""How figures, counts and schedules are said."""

from collections.abc import Sequence
from datetime import datetime
from math import isfinite, isnan
from unicodedata import bidirectional

from kedit_core.schedule import Schedule
from kedit_lab.report.markup import cut

PERCENT = "\N{NARROW NO-BREAK SPACE}%"
"""The sign behind a figure."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def percent(value: float) -> str:
    """Return a share as "97.5 %"; only exactly all is "100 %", and only exactly nothing "0 %"."""
    return f"{hundredths(value)}{PERCENT}" if isfinite(value) else _not_finite(value)


def hundredths(value: float) -> str:
    """Return a share in percent, without the sign."""
    shown = f"{100 * value:.1f}".replace("-", "\N{MINUS SIGN}")
    if value in (0, 1):
        shown = f"{100 * value:.0f}"
    elif shown == "100.0" and value < 1:
        shown = ">99.9"
    elif shown == "0.0":
        shown = "<0.1"
    return shown


def tick(value: float, share: bool) -> str:
    """Return a round figure beside an axis."""
    if share:
        return f"{100 * value:g}{PERCENT}"
    plain = 0.001 <= abs(value) < 1e6 or value == 0
    return (
        f"{float(f'{value:.6g}'):,g}".replace("-", "\N{MINUS SIGN}") if plain else quantity(value)
    )


def quantity(value: float) -> str:
    """Return a figure with three digits that count."""
    if not isfinite(value):
        return _not_finite(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001 or size >= 1e6:
        digits, _, power = f"{value:.2e}".partition("e")
        shown = f"{digits} × 10{str(int(power)).translate(_RAISED)}"
    elif size >= 100:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:#.3g}".rstrip(".")
    return shown.replace("-", "\N{MINUS SIGN}")


def count(number: int, thing: str) -> str:
    """Return "1 edit", "2,000 edits" and so on."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def in_words(number: int) -> str:
    """Return a small number as a word."""
    return _WORDS[number] if 0 <= number < len(_WORDS) else f"{number:,}"


def name(text: str, most: int = 60) -> str:
    """Return a name as it stands in a sentence: cut, and apart from it where it runs from right to left."""
    short = cut(text, most)
    leftward = any(bidirectional(one) in {"R", "AL", "RLE", "RLO", "RLI"} for one in short)
    return f"\N{FIRST STRONG ISOLATE}{short}\N{POP DIRECTIONAL ISOLATE}" if leftward else short


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return "a", "a and b", "a, b and c"; of more than ``most`` the rest is counted."""
    if len(names) > most:
        names = [*names[: most - 1], f"{in_words(len(names) - most + 1)} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seconds(value: float) -> str:
    """Return a time as a person says it."""
    if not isfinite(value):
        return _not_finite(value)
    if value < 100:
        return f"{quantity(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def memory(size: int) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def date(text: str) -> str:
    """Return an ISO 8601 date and time as a reader writes it; another text as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = " UTC" if when.tzinfo is not None and not when.utcoffset() else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def editing(schedule: Schedule) -> str:
    """Return how edits follow each other."""
    size = schedule.batch_size
    if size == "all":
        way = "all in one batch" if not schedule.stages else "each stage in one batch"
    else:
        way = (
            "one\N{NO-BREAK SPACE}by\N{NO-BREAK SPACE}one"
            if size == 1
            else f"{size:,}\N{NO-BREAK SPACE}at\N{NO-BREAK SPACE}a\N{NO-BREAK SPACE}time"
        )
    if schedule.stages:
        way += f", in stages of {listed([_number(one) for one in schedule.stages], most=9)}"
    return way if schedule.keep else f"{way}, each window taken out again"


def judging(schedule: Schedule, interval: int | None) -> str:
    """Return when edits are judged, and which."""
    if schedule.stages:
        when = "after each stage"
    elif interval is None:
        when = "once, at the end"
    else:
        when = "after every edit" if interval == 1 else f"after every {interval:,} edits"
    what = {"all": "all edits so far", "window": "the newest window", "batch": "the newest batch"}
    if interval is None and not schedule.stages and schedule.evaluate_on != "batch":
        return f"all edits judged {when}"
    return f"{what[schedule.evaluate_on]} judged {when}"


def _number(one: int | str) -> str:
    return one if isinstance(one, str) else f"{one:,}"


def _not_finite(value: float) -> str:
    if isnan(value):
        return "NaN"
    return "∞" if value > 0 else "\N{MINUS SIGN}∞"
