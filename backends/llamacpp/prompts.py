"""Bodies -> the token ids that the model is given. Slow for long texts: called off the loop."""

from typing import TYPE_CHECKING, Any

from backends.errors import ContextLengthExceeded, InvalidRequest
from backends.llamacpp.chat_template import ChatTemplate, Piece
from backends.llamacpp.parameters import read_inputs, read_messages, read_prompts
from backends.llamacpp.prefixes import common_length
from backends.llamacpp.tool_formats import ToolFormat, format_of
from backends.llamacpp.tool_messages import for_template, in_words
from backends.llamacpp.tools import Tools, read_tools
from backends.wire import Body

if TYPE_CHECKING:  # whoever imports that module loads llama.cpp
    from backends.llamacpp.engine import Engine

Tokens = list[int]
Message = dict[str, Any]


class Prompts:
    """Of a model that generates."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        info = engine.info
        self._vocabulary = info.vocabulary
        self._bos = info.bos
        self._template = ChatTemplate(
            info.chat_template, control_tokens=info.control_tokens, bos=info.bos, eos=info.eos
        )
        self.form: ToolFormat = format_of(info.chat_template)

    def text(self, body: Body) -> str:
        return "".join(piece.text for piece in self._pieces(read_messages(body), read_tools(body)))

    def chat(self, body: Body) -> Tokens:
        """
        Raises:
            InvalidRequest
        """
        tokens = self._tokens(self._pieces(read_messages(body), read_tools(body)))
        if not tokens:
            raise InvalidRequest("the messages hold no text.", param="messages")
        return tokens

    def public_tokens(self, body: Body, prompt: Tokens, *, messages: int, chars: int) -> int:
        """How much of `prompt` are the first so many messages and so many characters of the next one: text that is no secret."""
        if read_tools(body) is not None:  # a client's own, and most templates put them first
            return 0
        read = [{"role": one["role"], "content": one["content"]} for one in read_messages(body)]  # no name, no calls
        known = read[:messages] + [one | {"content": one["content"][:chars]} for one in read[messages : messages + 1]]
        try:
            pieces = self._pieces(known, None, opens=False)
        except InvalidRequest:  # a template that wants a whole conversation
            return 0
        return common_length(prompt, self._tokens(pieces))

    def legacy(self, body: Body) -> list[Tokens]:
        """
        Raises:
            InvalidRequest
        """
        prompts = [
            self._engine.tokenise(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
            for prompt in read_prompts(body, vocabulary=self._vocabulary)
        ]
        if not all(prompts):
            raise InvalidRequest("'prompt' is empty, and this model has no token to begin with.", param="prompt")
        return prompts

    def of(self, body: Body) -> list[Tokens]:
        return [self.chat(body)] if "messages" in body else self.legacy(body)

    def _pieces(self, messages: list[Message], tools: Tools | None, *, opens: bool = True) -> list[Piece]:
        shown = tools.shown if tools is not None else ()
        if self.form.native:
            given = [tool.as_given for tool in shown]
            return self._template.render(for_template(messages, self.form), given, opens=opens)
        try:
            return self._template.render(in_words(messages, shown, system=True), opens=opens)
        except InvalidRequest:
            if not shown:
                raise
            return self._template.render(in_words(messages, shown, system=False), opens=opens)

    def _tokens(self, pieces: list[Piece]) -> Tokens:
        tokens: Tokens = []
        for number, piece in enumerate(pieces):
            add_special = number == 0 and not piece.text.startswith(self._bos or "\0")
            tokens += self._engine.tokenise(piece.text, add_special=add_special, parse_special=piece.trusted)
        return tokens


class Inputs:
    """Of a model that makes vectors, or scores."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def texts(self, body: Body) -> list[Tokens]:
        """
        Raises:
            InvalidRequest: one is too long, and `truncate` is not asked for.
        """
        truncate = body.read("truncate", bool, False)
        items = read_inputs(body, "input", vocabulary=self._engine.info.vocabulary)
        inputs = [self._fitting(item, truncate) for item in items]
        if not all(inputs):
            raise InvalidRequest(
                "'input' holds an empty text, and this model has no token to begin with.", param="input"
            )
        return inputs

    def _fitting(self, item: str | Tokens, truncate: bool) -> Tokens:
        engine = self._engine
        tokens = engine.tokenise(item, add_special=True, parse_special=False) if isinstance(item, str) else item
        if len(tokens) <= engine.batch_tokens:
            return tokens
        if not truncate:
            raise ContextLengthExceeded(context_tokens=engine.batch_tokens, prompt_tokens=len(tokens), param="input")
        last = engine.ending(item) if isinstance(item, str) else []
        return tokens[: engine.batch_tokens - len(last)] + last

    def pairs(self, query: str, documents: list[str]) -> list[Tokens]:
        """A query with each document, as the model was trained to read them.

        Raises:
            ContextLengthExceeded: names the document.
        """
        engine = self._engine
        pairs = [engine.pairs.tokens(query, document) for document in documents]
        for place, tokens in enumerate(pairs):
            if not tokens:
                raise InvalidRequest(
                    "an empty query and an empty document cannot be ranked.", param=f"documents[{place}]"
                )
            if len(tokens) > engine.batch_tokens:
                raise ContextLengthExceeded(
                    context_tokens=engine.batch_tokens, prompt_tokens=len(tokens), param=f"documents[{place}]"
                )
        return pairs
