"""An engine that keeps books of its cells as llama.cpp does, and says the token after the sum of those before."""

import threading
from types import SimpleNamespace
from typing import Any

from backends.llamacpp.sampling import Sampling

END = 0
VOCABULARY = 50


class FakeBatch:
    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[tuple[list[int], int, int, str]] = []

    @property
    def rows(self) -> int:
        return sum(len(tokens) for tokens, *_ in self.parts)

    @property
    def room(self) -> int:
        return self.size - self.rows

    def clear(self) -> None:
        self.parts = []

    def add(self, tokens: list[int], *, position: int, sequence: int, logits: str) -> int:
        assert 0 < len(tokens) <= self.room, "llama.cpp would end the process"
        self.parts.append((list(tokens), position, sequence, logits))
        return self.rows - 1


class FakeEngine:
    """
    Args:
        cells: of the pool.
        codes: what `decode` says next, before it says the truth.
    """

    recurrent = False

    def __init__(self, *, cells: int, sequences: int, batch: int = 16, gate: threading.Event | None = None) -> None:
        self.info = SimpleNamespace(context_tokens=cells, vocabulary=VOCABULARY)
        self.cells = cells
        """Those that there really are."""
        self.sequences = sequences
        self.batch = FakeBatch(batch)
        self.codes: list[int] = []
        self.chains = 0
        self.closed = False
        self._gate = gate
        self._cells: list[tuple[set[int], int, int]] = []
        """(sequences that have it, position, token)"""
        self._logits: dict[int, list[int]] = {}

    def tokens_of(self, sequence: int) -> list[int]:
        return [token for _, token in sorted((at, token) for owners, at, token in self._cells if sequence in owners)]

    @property
    def used(self) -> int:
        return len(self._cells)

    def decode(self) -> int:
        if self._gate is not None:
            self._gate.wait(5)
        if self.codes:
            return self.codes.pop(0)
        if self.used + self.batch.rows > self.cells:
            return 1
        self._logits, row = {}, 0
        for tokens, position, sequence, logits in self.batch.parts:
            assert 0 <= sequence < self.sequences, "an invalid batch"
            assert position == len(self.tokens_of(sequence)), "positions have to go on where they ended"
            for place, token in enumerate(tokens):
                self._cells.append(({sequence}, position + place, token))
            row += len(tokens)
            if logits == "last":
                self._logits[row - 1] = self.tokens_of(sequence)
        return 0

    def sample(self, chain: Any, row: int) -> int:
        seen = self._logits[row]  # llama.cpp would end the process
        return (sum(seen) * 7 + len(seen)) % VOCABULARY

    def ends(self, token: int) -> bool:
        return token == END

    def new_chain(self, sampling: Sampling) -> object:
        self.chains += 1
        return object()

    def free_chain(self, chain: object) -> None:
        assert chain is not None
        self.chains -= 1

    def forget(self, sequence: int, start: int = 0) -> bool:
        for owners, at, _ in self._cells:
            if at >= start:
                owners.discard(sequence)
        self._cells = [cell for cell in self._cells if cell[0]]
        return True

    def share(self, source: int, target: int, tokens: int) -> None:
        assert not self.tokens_of(target)
        assert len(self.tokens_of(source)) >= tokens
        for owners, at, _ in self._cells:
            if source in owners and at < tokens:
                owners.add(target)

    def forget_all(self) -> None:
        self._cells = []

    def piece(self, token: int, special: bool = False) -> bytes:
        return f"{token} ".encode()

    def close(self) -> None:
        self.closed = True


def alone(prompt: list[int], max_tokens: int) -> tuple[list[int], str]:
    """What a sequence says when nobody is beside it."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        token = (sum(tokens) * 7 + len(tokens)) % VOCABULARY
        if token == END:
            return tokens[len(prompt) :], "stop"
        tokens.append(token)
    return tokens[len(prompt) :], "length"
