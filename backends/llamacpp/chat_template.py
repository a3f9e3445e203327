"""Messages -> the prompt text, with the GGUF's own template in jinja2's sandbox; and that text -> pieces to tokenise.

Control tokens written by a user must stay text. They are replaced by unguessable placeholders before the template runs
and put back as pieces that are tokenised without special parsing; text without them goes through untouched, so that it
is tokenised together with its surroundings, as the model was trained.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.errors import InvalidRequest

log = logging.getLogger("chasqui.worker")

Message = dict[str, Any]

TEMPLATE_FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template can run into with messages it was not made for."""


class Piece(NamedTuple):
    text: str
    trusted: bool
    """May contain control tokens that count."""


class ChatTemplate:
    """
    Args:
        source: Jinja text from the GGUF; None: contents joined by newlines, no role markers.
        control_tokens: texts that the vocabulary gives a meaning, as `<|im_end|>`.
        now: for templates that print the date.
    """

    def __init__(
        self,
        source: str | None,
        *,
        control_tokens: Sequence[str] = (),
        bos: str = "",
        eos: str = "",
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._control_tokens = sorted(control_tokens, key=len, reverse=True)
        self._bos = bos
        self._eos = eos
        self._template = _compile(source, now) if source else None
        if not source:
            log.warning("the model has no chat template: contents are joined by newlines, without role markers")

    def render(self, messages: Sequence[Message], tools: Sequence[Message] = (), *, opens: bool = True) -> list[Piece]:
        """
        Args:
            tools: as the client gave them, for templates that know them.
            opens: the model's own turn begins.

        Raises:
            InvalidRequest: the template refuses these messages (an unknown role, an order it does not know).
        """
        marks = _Marks(self._control_tokens)
        try:
            hidden = [marks.hide(message) for message in messages]
            return marks.show(self._text(hidden, [marks.hide(tool) for tool in tools], opens=opens))
        except (jinja2.TemplateError, *TEMPLATE_FAILURES) as exc:
            raise InvalidRequest(f"the model's chat template refuses these messages: {exc}", param="messages") from None

    def _text(self, messages: Sequence[Message], tools: Sequence[Message], *, opens: bool) -> str:
        if self._template is None:
            return "\n".join(str(message.get("content") or "") for message in messages)
        return self._template.render(
            messages=messages,
            tools=list(tools) or None,
            add_generation_prompt=opens,
            bos_token=self._bos,
            eos_token=self._eos,
        )


class _Marks:
    """Placeholders of one rendering, unguessable for whoever wrote the messages."""

    def __init__(self, control_tokens: Sequence[str]) -> None:
        self._fence = f"\ue000{secrets.token_hex(8)}"
        self._control_tokens = control_tokens

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            for number, token in enumerate(self._control_tokens):
                if token in value:
                    value = value.replace(token, f"{self._fence}{number:x}\ue001")
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        return value

    def show(self, text: str) -> list[Piece]:
        """
        Raises:
            ValueError: the template has cut a placeholder to pieces.
        """
        first, *others = text.split(self._fence)
        pieces = [Piece(first, trusted=True)]
        for other in others:
            number, _, rest = other.partition("\ue001")
            pieces += [Piece(self._control_tokens[int(number, 16)], trusted=False), Piece(rest, trusted=True)]
        return [piece for piece in pieces if piece.text]


def _compile(source: str, now: Callable[[], datetime]) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **_: Any) -> str:
        return msgspec.json.encode(value).decode()

    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    environment.filters["tojson"] = to_json
    return environment.from_string(source)
