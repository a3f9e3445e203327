"""A multipart body with one file that is for us, in memory."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from backends.asgi import Receive, body_pieces
from backends.errors import InvalidRequest

MAX_PARTS = 32
MAX_FIELD_BYTES = 64 * 1024

_BOUNDARY = re.compile(rb'boundary="?([^";,\s]{1,200})"?', re.IGNORECASE)


class Upload(NamedTuple):
    fields: Mapping[str, str]
    name: str
    """Of the file, as the client calls it."""
    data: bytes


class _Part(NamedTuple):
    name: str
    filename: str | None
    data: bytearray


async def read_upload(
    receive: Receive, headers: Mapping[bytes, bytes], *, limit_bytes: int, announced_bytes: int
) -> Upload:
    """
    Raises:
        BodyTooLarge, RequestTimeout, ClientGone
        InvalidRequest: not a whole form with a part `file`.
    """
    boundary = _BOUNDARY.search(headers.get(b"content-type", b""))
    if not headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data") or boundary is None:
        raise InvalidRequest("send multipart/form-data with the parts 'file' and 'model'.", param="file")
    parser = PushMultipartParser(boundary[1], max_segment_count=MAX_PARTS)
    parts: list[_Part] = []
    try:
        async for piece in body_pieces(receive, limit_bytes=limit_bytes, announced_bytes=announced_bytes):
            for event in parser.parse(piece):
                _take(event, parts)
        parser.close()
    except MultipartError as exc:
        raise InvalidRequest(f"the body is not a multipart form: {exc}.") from None
    files = [part for part in parts if part.name == "file" and part.filename is not None]
    if len(files) != 1:
        raise InvalidRequest(
            "the form needs one part 'file' with a file name.", param="file", code="missing_required_parameter"
        )
    fields = {part.name: part.data.decode("utf-8", "replace") for part in parts if part.filename is None}
    return Upload(fields, files[0].filename or "", bytes(files[0].data))


def _take(event: Any, parts: list[_Part]) -> None:
    """The parser's events: a segment, its bytes, None at its end."""
    if isinstance(event, MultipartSegment):
        parts.append(_Part(event.name, event.filename, bytearray()))
    elif event is not None:
        part = parts[-1]
        part.data.extend(event)
        if part.filename is None and len(part.data) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{part.name[:40]}' is too long.", param=part.name[:40])
