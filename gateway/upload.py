"""A multipart body with one file that is for us. A large one is written to a file as it arrives, and takes no memory."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from backends.asgi import Receive, body_pieces
from backends.errors import InvalidRequest
from gateway.errors import StoreUnavailable

MAX_PARTS = 32
MAX_FIELD_BYTES = 64 * 1024
IN_MEMORY_BYTES = 1024 * 1024
PIECE_BYTES = 1024 * 1024

_BOUNDARY = re.compile(rb'boundary="?([^";,\s]{1,200})"?', re.IGNORECASE)


class Upload:
    """Close it."""

    def __init__(self, fields: Mapping[str, str], name: str, file: IO[bytes], size_bytes: int) -> None:
        self.fields = fields
        self.name = name
        """Of the file, as the client calls it."""
        self.size_bytes = size_bytes
        self._file = file

    @property
    def data(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            yield piece

    def close(self) -> None:
        self._file.close()


async def read_upload(
    receive: Receive, headers: Mapping[bytes, bytes], *, limit_bytes: int, announced_bytes: int, folder: Path
) -> Upload:
    """
    Args:
        folder: where a large file is put meanwhile.

    Raises:
        BodyTooLarge, RequestTimeout, ClientGone, StoreUnavailable
        InvalidRequest: not a whole form with a part `file`.
    """
    boundary = _BOUNDARY.search(headers.get(b"content-type", b""))
    if not headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data") or boundary is None:
        raise InvalidRequest("send multipart/form-data with a part 'file'.", param="file")
    parser = PushMultipartParser(boundary[1], max_segment_count=MAX_PARTS)
    reading = _Reading(folder)
    try:
        async for piece in body_pieces(receive, limit_bytes=limit_bytes, announced_bytes=announced_bytes):
            for event in parser.parse(piece):
                reading.take(event)
        parser.close()
        return reading.ended()
    except MultipartError as exc:
        reading.close()
        raise InvalidRequest(f"the body is not a multipart form: {exc.args[0] if exc.args else 'damaged'}.") from None
    except BaseException:
        reading.close()
        raise


class _Reading:
    """Takes the parser's events: a segment, its bytes, None at its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fields: dict[str, bytearray] = {}
        self._file: IO[bytes] | None = None
        self._name: str | None = None
        self._size = 0
        self._part = ""
        self._is_file = False

    def take(self, event: Any) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is not None and self._is_file:
            self._write(bytes(event))
        elif event is not None:
            value = self._fields[self._part]
            value += event
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"'{self._part[:40]}' is too long.", param=self._part[:40])

    def _begin(self, part: MultipartSegment) -> None:
        self._part = str(part.name)
        self._is_file = part.filename is not None
        if not self._is_file:
            self._fields[self._part] = bytearray()
            return
        if self._part != "file" or self._file is not None:
            raise InvalidRequest("the form needs one part 'file' with a file name, and no other file.", param="file")
        self._name = part.filename
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES, dir=str(self._folder))  # noqa: SIM115

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as exc:
            raise StoreUnavailable(f"the upload cannot be kept: {exc.strerror}; free some disk space") from None
        self._size += len(data)

    def ended(self) -> Upload:
        if self._file is None:
            raise InvalidRequest(
                "the form needs one part 'file' with a file name.", param="file", code="missing_required_parameter"
            )
        fields = {name: bytes(value).decode("utf-8", "replace") for name, value in self._fields.items()}
        return Upload(fields, self._name or "", self._file, self._size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
