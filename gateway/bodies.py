"""Bodies of our own shape: unknown fields are refused by name, and what is wrong is said with its place."""

from typing import TypeVar

import msgspec

from backends.errors import InvalidRequest
from backends.wire import Body

T = TypeVar("T")


def read_struct(body: Body, type_: type[T]) -> T:
    """
    Raises:
        InvalidRequest
    """
    try:
        return msgspec.json.decode(body.raw, type=type_)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at `$.")
        place = where.rstrip("`")
        raise InvalidRequest(f"Invalid value for '{place}': {what}" if place else what, param=place or None) from None
