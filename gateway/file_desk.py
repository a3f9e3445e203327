"""Uploads: what is checked before a file is kept."""

import re
import time
from collections.abc import Callable

import msgspec

from backends.asgi import BodyTooLarge
from backends.errors import InvalidRequest
from gateway.bookkeeping import Bookkeeping
from gateway.collection_objects import file_object
from gateway.exchange import Exchange
from gateway.knowledge import Knowledge
from gateway.outlet import Outlet
from gateway.upload import Upload
from retrieval.errors import RoomExceeded

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
MAX_NAME_CHARS = 255

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class FileDesk:
    def __init__(
        self, knowledge: Knowledge, books: Bookkeeping, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._knowledge = knowledge
        self._books = books
        self._clock = clock

    async def add(self, exchange: Exchange, upload: Upload, outlet: Outlet) -> None:
        """
        Raises:
            InvalidRequest, PolicyError, SQLAlchemyError
        """
        assert exchange.caller is not None
        caller, files = exchange.caller, self._knowledge.library.files
        purpose, expires_after_s = read_fields(upload)
        exchange.model = "files"
        if upload.size_bytes > (most := int(self._knowledge.limits.max_mb * 2**20)):
            raise BodyTooLarge(most)
        with self._books.of(exchange, outlet):
            await self._books.admit(exchange)
            most_mb = self._knowledge.limits.role_mb
            try:
                kept = await files.add(
                    upload.pieces(),
                    owner=caller.role.name,
                    key=caller.key_id,
                    filename=plain_name(upload.name),
                    purpose=purpose,
                    expires_after_s=expires_after_s,
                    size_bytes=upload.size_bytes,
                    most_bytes=None if most_mb is None else int(most_mb * 2**20),
                )
            except RoomExceeded:
                reason = f"the files of this role would be more than {most_mb:g} MB (files.role_mb); delete some."
                raise InvalidRequest(reason, param="file") from None
            exchange.outcome = "complete"
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(msgspec.json.encode(file_object(kept)), {"content-type": "application/json"})


def read_fields(upload: Upload) -> tuple[str, int | None]:
    """Purpose, and the seconds after which it goes.

    Raises:
        InvalidRequest
    """
    fields = dict(upload.fields)
    purpose = fields.pop("purpose", "")
    if not purpose:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if purpose not in PURPOSES:
        raise InvalidRequest(f"'purpose' is one of {', '.join(PURPOSES)}.", param="purpose")
    anchor, seconds = fields.pop("expires_after[anchor]", None), fields.pop("expires_after[seconds]", None)
    for name in fields:
        raise InvalidRequest(f"'{name[:40]}' is no field of this form.", param=name[:40])
    if anchor is None and seconds is None:
        return purpose, None
    if anchor != "created_at":
        raise InvalidRequest("'expires_after[anchor]' is created_at.", param="expires_after[anchor]")
    if not (seconds or "").isascii() or not (seconds or "").isdigit() or len(seconds or "") > 9:
        raise InvalidRequest("'expires_after[seconds]' is a whole number.", param="expires_after[seconds]")
    if not MIN_EXPIRY_S <= int(seconds or 0) <= MAX_EXPIRY_S:
        raise InvalidRequest(
            f"'expires_after[seconds]' lies between {MIN_EXPIRY_S} and {MAX_EXPIRY_S}.", param="expires_after[seconds]"
        )
    return purpose, int(seconds or 0)


def plain_name(name: str) -> str:
    """What comes last in a path, in characters that can be shown. It is never the name of a file of ours."""
    last = _UNPRINTABLE.sub("", name.replace("\\", "/").rsplit("/", 1)[-1]).strip()
    if len(last) > MAX_NAME_CHARS:
        stem, dot, suffix = last.rpartition(".")
        last = f"{stem[: MAX_NAME_CHARS - 20]}{dot}{suffix[:19]}"
    return last if last not in ("", ".", "..") else "file"
