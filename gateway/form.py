"""A multipart body on its way through: written to a file as it arrives, so that an hour of audio takes no memory.

The parts are kept as they came, but for `model`, which each attempt puts in front under the name that its backend knows.
"""

import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from backends.asgi import Receive, body_pieces
from backends.errors import InvalidRequest
from backends.transport import SLICE_BYTES
from gateway.errors import StoreUnavailable

IN_MEMORY_BYTES = 1024 * 1024
MAX_PARTS = 128
MAX_FIELD_BYTES = 64 * 1024

_BOUNDARY = re.compile(rb'boundary="?([^";,\s]{1,200})"?', re.IGNORECASE)


class Form:
    """A whole form. Close it."""

    def __init__(self, folder: Path) -> None:
        self.fields: dict[str, str] = {}
        """`model` and `stream`."""
        self._boundary = secrets.token_hex(16)
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115 - `close`
        self._size = 0

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as exc:
            raise StoreUnavailable(f"the upload cannot be kept: {exc.strerror}; free some disk space") from None
        self._size += len(data)

    def begin_part(self, headers: list[tuple[str, str]]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.write(f"--{self._boundary}\r\n{lines}\r\n".encode("utf-8", "surrogateescape"))

    def end_part(self) -> None:
        self.write(b"\r\n")

    def named(self, model: str) -> "FormUpload":
        """The form as a backend gets it that calls the model so."""
        part = f'--{self._boundary}\r\ncontent-disposition: form-data; name="model"\r\n\r\n{model}\r\n'.encode()
        return FormUpload(part, self._file, self._size, f"--{self._boundary}--\r\n".encode())

    def close(self) -> None:
        self._file.close()


class FormUpload:
    """Implements `backends.transport.Upload`; may be read again for the next attempt."""

    def __init__(self, head: bytes, file: Any, file_bytes: int, tail: bytes) -> None:
        self.size_bytes = len(head) + file_bytes + len(tail)
        self._head, self._file, self._tail = head, file, tail

    def pieces(self) -> Iterator[bytes]:
        yield self._head
        self._file.seek(0)
        while piece := self._file.read(SLICE_BYTES):
            yield piece
        yield self._tail


async def read_form(
    receive: Receive, headers: Mapping[bytes, bytes], *, limit_bytes: int, announced_bytes: int, folder: Path
) -> Form:
    """
    Raises:
        BodyTooLarge, RequestTimeout, ClientGone, StoreUnavailable
        InvalidRequest: not a whole multipart form, or too many parts.
    """
    boundary = _BOUNDARY.search(headers.get(b"content-type", b""))
    if boundary is None:
        raise InvalidRequest("multipart/form-data needs a boundary in its content-type.")
    parser = PushMultipartParser(boundary[1], max_segment_count=MAX_PARTS)
    form = Form(folder)
    try:
        reading = _Reading(form)
        async for piece in body_pieces(receive, limit_bytes=limit_bytes, announced_bytes=announced_bytes):
            for event in parser.parse(piece):
                reading.take(event)
        parser.close()
        return form
    except MultipartError as exc:
        form.close()
        raise InvalidRequest(f"the body is not a multipart form: {exc}.") from None
    except BaseException:
        form.close()
        raise


class _Reading:
    """Takes the parser's events: a segment, its bytes, None at its end."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._field: str | None = None
        self._value = bytearray()
        self._keeps = True

    def take(self, event: Any) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is not None:
            self._grow(bytes(event))
        else:
            self._end()

    def _begin(self, part: MultipartSegment) -> None:
        self._check(part)
        self._field = part.name if part.name in ("model", "stream") else None
        self._keeps = self._field != "model"
        self._value.clear()
        if self._keeps:
            self._form.begin_part(part.headerlist)

    def _check(self, part: MultipartSegment) -> None:
        """Whoever reads the form next must not find another model in it than we do."""
        disposition = part.header("content-disposition", "").lower()
        if "name*" in disposition.replace("filename*", "") or disposition.replace("filename", "").count("name") > 1:
            raise InvalidRequest("a part of the form has more than one name.")
        if part.name in ("model", "stream") and (part.filename or part.name in self._form.fields):
            raise InvalidRequest(f"'{part.name}' is no file, and there once.", param=part.name)

    def _grow(self, data: bytes) -> None:
        if self._keeps:
            self._form.write(data)
        if self._field is not None:
            self._value += data
            if len(self._value) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"'{self._field}' is too long.", param=self._field)

    def _end(self) -> None:
        if self._keeps:
            self._form.end_part()
        if self._field is not None:
            self._form.fields[self._field] = self._value.decode("utf-8", "replace")
