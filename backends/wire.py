"""OpenAI's wire, read no deeper than needed. What we do not name stays the bytes it was."""

from collections.abc import Iterator
from typing import Any, TypeVar, overload

import msgspec

from backends.errors import InvalidRequest

T = TypeVar("T")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


MAX_TOKENS = 10**9


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Any = None
    """As the upstream gives it, whatever that is."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: counts that cannot be; read as no usage at all where they come from an upstream.
        """
        if not (0 <= self.prompt_tokens <= MAX_TOKENS and 0 <= self.completion_tokens <= MAX_TOKENS):
            raise ValueError("token counts out of range")

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cached_tokens(self) -> int:
        """Of the prompt; 0 where nobody has said, or said something impossible."""
        details = self.prompt_tokens_details
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return cached if type(cached) is int and 0 <= cached <= self.prompt_tokens else 0


class Body:
    """A JSON object, decoded one level deep. Values keep their bytes (digits, escapes, order) until somebody reads them.

    A name given twice keeps its last value, here and in `raw`, which is written anew: whoever reads it next must not see another
    one than we judged.

    Raises:
        InvalidRequest: `invalid_json` for anything that is not one UTF-8 JSON object.
    """

    __slots__ = ("_fields", "_raw")

    def __init__(self, raw: bytes) -> None:
        try:
            raw.decode("utf-8")
            self._fields = _fields.decode(raw)
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"the body is not valid UTF-8 (byte {exc.start})", code="invalid_json") from None
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
        except msgspec.ValidationError:
            raise InvalidRequest("the body must be a JSON object", code="invalid_json") from None
        except msgspec.DecodeError as exc:
            raise InvalidRequest(f"the body is not valid JSON: {exc}", code="invalid_json") from None
        self._raw: bytes | None = None

    @property
    def raw(self) -> bytes:
        if self._raw is None:
            self._raw = msgspec.json.encode(self._fields)
        return self._raw

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    @overload
    def read(self, name: str, type_: type[T]) -> T | None: ...
    @overload
    def read(self, name: str, type_: type[T], default: T) -> T: ...
    def read(self, name: str, type_: type[T], default: T | None = None) -> T | None:
        """The value of one field; a missing field and an explicit null give the default.

        Raises:
            InvalidRequest: the value has another type; `param` names it.
        """
        value = self._fields.get(name)
        if value is None or bytes(value) == b"null":
            return default
        try:
            return msgspec.json.decode(value, type=type_)
        except RecursionError:
            raise InvalidRequest(f"'{name}' is nested too deeply", param=name) from None
        except msgspec.MsgspecError as exc:
            # A struct says where inside it went wrong: "… - at `$[0].content`".
            what, _, where = str(exc).partition(" - at `$")
            inside = where.rstrip("`").replace("[...]", "")
            raise InvalidRequest(f"Invalid value for '{name}{inside}': {what}", param=f"{name}{inside}") from None

    def require(self, name: str, type_: type[T]) -> T:
        value = self.read(name, type_)
        if value is None:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        return value

    def replace(self, **values: Any) -> "Body":
        """A copy with these fields set (added at the end where new); all others keep their bytes."""
        fields = self._fields | {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}
        return self._copy(fields)

    def without(self, *names: str) -> "Body":
        if not any(name in self._fields for name in names):
            return self
        return self._copy({name: value for name, value in self._fields.items() if name not in names})

    @staticmethod
    def _copy(fields: dict[str, msgspec.Raw]) -> "Body":
        copy = object.__new__(Body)
        copy._fields = fields
        copy._raw = None
        return copy


def choices_of(body: Body) -> int:
    """How many answers a body asks for: `n` for each prompt, of which a legacy completion may have many.

    Raises:
        InvalidRequest: `n` is no whole number.
    """
    prompts: Any = body.read("prompt", object) if "messages" not in body else None
    many = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    return max(1, body.read("n", int, 1)) * (len(prompts) if many else 1)


NOTHING = msgspec.Raw(b"")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = NOTHING  # `Raw | None` would take nothing but null

    @property
    def size_bytes(self) -> int:
        size = _size(self.content) if self.content else 0
        if self.refusal or self.reasoning_content:
            size += _size(self.refusal or "") + _size(self.reasoning_content or "")
        return size + (len(bytes(self.tool_calls)) if self.tool_calls is not NOTHING else 0)


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None
    delta: Delta | None = None
    text: str | None = None

    @property
    def size_bytes(self) -> int:
        return (self.delta.size_bytes if self.delta is not None else 0) + (_size(self.text) if self.text else 0)


class Chunk(msgspec.Struct, gc=False):
    """The part of a streamed chunk (or a whole answer) that a gateway has to understand."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NOTHING

    @property
    def failed(self) -> bool:
        return self.error is not NOTHING and bytes(self.error) not in (b"", b"null")


_chunk = msgspec.json.Decoder(Chunk)


def read_chunk(data: bytes) -> Chunk:
    """Read a chunk leniently: a field of an unexpected shape reads as absent, it still passes through.

    Raises:
        ValueError: not a JSON object.
    """
    try:
        data.decode()  # what is skipped is not checked
        return _chunk.decode(data)
    except msgspec.ValidationError:
        return _read_leniently(data)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def read_chunks(datas: list[bytes]) -> list[Chunk] | None:
    """Many at once. None: at least one of them needs `read_chunk` to be understood, or to be found wrong.

    Between `}` and `{` no JSON value goes on, so as many objects as there are lines means one in each.
    """
    if len(datas) == 1:
        try:
            datas[0].decode()
            return [_chunk.decode(datas[0])]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None
    joined = b"\n".join(datas)
    whole = joined.startswith(b"{") and joined.endswith(b"}") and joined.count(b"}\n{") == len(datas) - 1
    if not whole and datas:
        return None
    try:
        joined.decode()
        chunks = _chunk.decode_lines(joined)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return chunks if len(chunks) == len(datas) else None


def _read_leniently(data: bytes) -> Chunk:
    try:
        fields = _fields.decode(data)
        return Chunk(
            model=_try(fields.get("model"), str),
            choices=_try(fields.get("choices"), list[Choice]),
            usage=_try(fields.get("usage"), Usage),
            error=fields.get("error", msgspec.Raw(b"")),
        )
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _try(raw: msgspec.Raw | None, type_: type[T]) -> T | None:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.MsgspecError:
        return None


def rename_model(data: bytes, name: str) -> bytes:
    """`data` with its top-level `model` set to `name`; the same bytes where it has none or is right already."""
    fields = _fields.decode(data)
    wanted = msgspec.json.encode(name)
    if "model" not in fields or bytes(fields["model"]) == wanted:
        return data
    fields["model"] = msgspec.Raw(wanted)
    return msgspec.json.encode(fields)
