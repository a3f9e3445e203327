"""Windows of time that limits count in: rolling ones in slices, and the calendar's own, in UTC.

A slice is the smallest part of a window that is known by itself. It counts until `lasting` more slices have passed.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar, NamedTuple

SLICES = 60
DAY_S = 86_400

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": DAY_S}


@dataclass(frozen=True)
class Rolling:
    """The last `seconds`, in sixty slices. A partly expired slice counts in full, so no window ever holds more than allowed."""

    seconds: float

    lasting: ClassVar[int] = SLICES

    def slice_at(self, now_s: float) -> int:
        return math.floor(now_s * SLICES / self.seconds)

    def start_s(self, number: int) -> float:
        return number * self.seconds / SLICES

    def __str__(self) -> str:
        for unit, size in (("d", DAY_S), ("h", 3600), ("m", 60)):
            if self.seconds >= size and self.seconds % size == 0:
                return f"{self.seconds // size:.0f}{unit}"
        return f"{self.seconds:g}s"


@dataclass(frozen=True)
class Calendar:
    """The present hour, day, week (from Monday on) or month in UTC: one slice, which ends with it."""

    unit: str

    lasting: ClassVar[int] = 0

    def slice_at(self, now_s: float) -> int:
        return PERIODS[self.unit].number(now_s)

    def start_s(self, number: int) -> float:
        return PERIODS[self.unit].start_s(number)

    def __str__(self) -> str:
        return self.unit


Span = Rolling | Calendar


class Period(NamedTuple):
    number: Callable[[float], int]
    """Unix seconds -> the number of the period that they lie in."""
    start_s: Callable[[int], float]
    """The other way round."""


def _month_at(now_s: float) -> int:
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now_s)).date()
    return day.year * 12 + day.month - 1


def _month_start_s(number: int) -> float:
    return float((date(number // 12, number % 12 + 1, 1) - date(1970, 1, 1)).days * DAY_S)


MONDAY_S = -3 * DAY_S
"""The first of January 1970 was a Thursday."""


def _week_at(now_s: float) -> int:
    return math.floor((now_s - MONDAY_S) / (7 * DAY_S))


PERIODS = {
    "hour": Period(lambda now_s: math.floor(now_s / 3600), lambda number: number * 3600.0),
    "day": Period(lambda now_s: math.floor(now_s / DAY_S), lambda number: number * float(DAY_S)),
    "week": Period(_week_at, lambda number: number * 7.0 * DAY_S + MONDAY_S),
    "month": Period(_month_at, _month_start_s),
}


def expires_s(span: Span, number: int) -> float:
    """When a slice no longer counts, in Unix seconds."""
    return span.start_s(number + span.lasting + 1)


def reaches_back_to_s(span: Span, now_s: float) -> float:
    """The beginning of the oldest slice that counts now."""
    return span.start_s(span.slice_at(now_s) - span.lasting)


def span_of(words: str) -> Span:
    """`10s`, `5m`, `1h`, `30d` (between 10 s and 30 days), or `hour`, `day`, `week`, `month`.

    Raises:
        ValueError: with what it should be.
    """
    if words in PERIODS:
        return Calendar(words)
    match = re.fullmatch(r"(\d{1,7})([smhd])", words)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 10 <= seconds <= 30 * DAY_S:
        raise ValueError("is a time like 10s, 5m, 1h or 30d, between 10s and 30d, or one of hour, day, week, month")
    return Rolling(float(seconds))
