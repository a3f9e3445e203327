"""What can go wrong between us and an engine. Facts only; `gateway/errors.py` turns them into HTTP."""


class BackendError(Exception):
    """Base of all failures of engines, their files and their wire."""


class InvalidRequest(BackendError):
    """The client's request cannot be right, whoever answers it.

    Args:
        param: the field at fault, as a client would write it (`messages[0].content`).
        code: OpenAI's code; `invalid_value` where it has no better one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt and answer together, exceed the model's window. All figures in tokens."""

    def __init__(
        self, *, context_tokens: int, prompt_tokens: int, max_tokens: int = 0, param: str = "messages"
    ) -> None:
        asked = f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the prompt, {max_tokens} for the answer)"
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens. However, you requested {asked}. "
            "Please shorten the prompt or lower max_tokens.",
            param=param,
            code="context_length_exceeded",
        )
        self.context_tokens = context_tokens
        self.prompt_tokens = prompt_tokens


class BackendUnavailable(BackendError):
    """Nobody there: refused, not started, crashed before the first byte. Another backend may do.

    Args:
        retry_after_s: seconds after which asking again makes sense, if known.
    """

    def __init__(self, backend: str, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"backend '{backend}' is not available: {reason}")
        self.backend = backend
        self.reason = reason
        self.retry_after_s = retry_after_s


class BackendBusy(BackendError):
    """The backend's queue is full."""

    def __init__(self, backend: str, *, retry_after_s: float) -> None:
        super().__init__(f"backend '{backend}' is busy; try again in {retry_after_s:.0f} s")
        self.backend = backend
        self.retry_after_s = retry_after_s


class BackendTimeout(BackendError):
    """A deadline passed. `phase` is connect, first_byte, idle or total."""

    def __init__(self, backend: str, phase: str, deadline_s: float) -> None:
        super().__init__(f"backend '{backend}' did not answer in time ({phase}: {deadline_s:g} s)")
        self.backend = backend
        self.phase = phase


class UpstreamBroken(BackendError):
    """An answer came but cannot be used: 5xx, 401, not JSON, cut before or after the first byte.

    Args:
        status: its HTTP status, where that was the reason.
    """

    def __init__(self, backend: str, reason: str, *, status: int | None = None) -> None:
        super().__init__(f"backend '{backend}' gave an unusable answer: {reason}")
        self.backend = backend
        self.status = status


class UpstreamRefused(BackendError):
    """The upstream says that the request is at fault (400, 404, 409, 413, 422, 429); its words are for the client."""

    def __init__(
        self,
        backend: str,
        status: int,
        message: str,
        *,
        type_: str,
        code: str | None,
        param: str | None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.backend = backend
        self.status = status
        self.type = type_
        self.code = code
        self.param = param
        self.retry_after = retry_after


class BackendMisconfigured(BackendError):
    """Something that a backend's settings name cannot be used; found at start."""


class ModelFileUnusable(BackendError):
    """A model file is missing, damaged or of a kind llama.cpp cannot load; the message says what to do."""


class ModelFileWrong(ModelFileUnusable):
    """Its digest is not the one that was wanted: the same download would bring the same again."""
