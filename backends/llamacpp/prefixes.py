"""Which sequence of the cache begins as a new prompt does, and which one has to go. Pure: tokens in, decisions out.

Cells of a sequence that has ended stay as they are until their place is needed: the next prompt that begins alike starts from them.
A sequence belongs to a scope; prompts of other scopes never start from it, or their speed would tell what was asked there.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_SHARED = 4
"""Tokens that are worth the step of sharing them."""


@dataclass(slots=True)
class Resident:
    """What lies in the cells of a sequence."""

    sequence: int
    scope: str
    tokens: NDArray[np.int32]
    public: int = 0
    """Of `tokens`, from the first one on: those that any scope may know of."""


class Start(NamedTuple):
    """Where a prompt begins: `shared` tokens of `source` are there already."""

    source: int | None
    shared: int


NOWHERE = Start(None, 0)


class Prefixes:
    """The sequences that nobody works on, the longest unused first."""

    def __init__(self) -> None:
        self._idle: OrderedDict[int, Resident] = OrderedDict()

    def __len__(self) -> int:
        return len(self._idle)

    def keep(self, resident: Resident) -> None:
        self._idle[resident.sequence] = resident
        self._idle.move_to_end(resident.sequence)

    def take(self, sequence: int) -> Resident:
        return self._idle.pop(sequence)

    def oldest(self, *, but: int | None = None) -> int | None:
        """The sequence that was not used for longest."""
        return next((sequence for sequence in self._idle if sequence != but), None)

    def best(self, prompt: Sequence[int], scope: str, running: Iterable[Resident] = ()) -> Start:
        """The longest beginning that any sequence of this scope shares, or any at all in what is public; at least one token is left to
        decode.

        Args:
            running: sequences that are worked on, with what of them is in cells.
        """
        wanted = np.asarray(prompt[:-1], np.int32)
        best = NOWHERE
        for resident in (*self._idle.values(), *running):
            open_to_us = resident.tokens if resident.scope == scope else resident.tokens[: resident.public]
            shared = shared_tokens(wanted, open_to_us)
            if shared > best.shared:
                best = Start(resident.sequence, shared)
        return best if best.shared >= MIN_SHARED else NOWHERE

    def clear(self) -> None:
        self._idle.clear()


def shared_tokens(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    return shared_tokens(np.asarray(one, np.int32), np.asarray(other, np.int32))
