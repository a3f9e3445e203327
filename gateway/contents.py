"""What was asked and answered with a key that has `log_content: on`. Of every other key nothing of it is kept anywhere."""

MAX_BYTES = 256 * 1024
"""Of each side; what is longer is cut off there."""


class Contents:
    def __init__(self, request: bytes) -> None:
        self._request = request[:MAX_BYTES]
        self._answer: list[bytes] = []
        self._room = MAX_BYTES

    def add(self, piece: bytes) -> None:
        """A piece of the answer, as it goes onto the wire."""
        if self._room > 0:
            self._answer.append(piece[: self._room])
            self._room -= len(piece)

    @property
    def request(self) -> str:
        return as_text(self._request)

    @property
    def answer(self) -> str:
        return as_text(b"".join(self._answer))


def as_text(raw: bytes) -> str:
    """What a database takes: UTF-8 without NUL."""
    return raw.decode("utf-8", "replace").replace("\0", "\ufffd")
