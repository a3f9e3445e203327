"""llama.cpp's batch with its arrays seen as numpy, filled by slices. Not safe for two threads."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib


class Batch:
    """
    Args:
        size: rows; llama.cpp ends the process when more than its `n_batch` are decoded.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows = 0
        self._batch = lib.llama_batch_init(size, 0, 1)
        self._token = np.ctypeslib.as_array(self._batch.token, shape=(size,))
        self._pos = np.ctypeslib.as_array(self._batch.pos, shape=(size,))
        self._logits = np.ctypeslib.as_array(self._batch.logits, shape=(size,))
        np.ctypeslib.as_array(self._batch.n_seq_id, shape=(size,))[:] = 1
        # Each row points to a sequence id of its own; pointing all of them into one array makes a row a slice, too.
        self._sequence = np.zeros(size, np.int32)
        self._pointer = type(self._batch.seq_id[0])
        # As numbers: a pointer that is read out of an array of ctypes changes with its place in the array.
        self._theirs = [ctypes.cast(self._batch.seq_id[row], ctypes.c_void_p).value or 0 for row in range(size)]
        start = self._sequence.ctypes.data
        for row in range(size):
            self._batch.seq_id[row] = ctypes.cast(start + 4 * row, self._pointer)

    @property
    def room(self) -> int:
        return self.size - self.rows

    def clear(self) -> None:
        self.rows = 0

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, logits: str) -> int:
        """Rows for tokens that follow each other from `position` on.

        Args:
            logits: none, last, or all.

        Returns:
            The row of the last one.
        """
        start, end = self.rows, self.rows + len(tokens)
        if end > self.size:
            raise ValueError(f"{len(tokens)} more rows in a batch of {self.size} with {self.rows}")
        self._token[start:end] = tokens
        self._pos[start:end] = np.arange(position, position + len(tokens))
        self._sequence[start:end] = sequence
        self._logits[start:end] = logits == "all"
        if logits == "last":
            self._logits[end - 1] = True
        self.rows = end
        return end - 1

    def filled(self) -> Any:
        """For `llama_decode`."""
        self._batch.n_tokens = self.rows
        return self._batch

    def free(self) -> None:
        for row, address in enumerate(self._theirs):  # llama.cpp frees what it has made
            self._batch.seq_id[row] = ctypes.cast(address, self._pointer)
        lib.llama_batch_free(self._batch)
