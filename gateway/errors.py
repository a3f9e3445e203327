"""The one table from failures to OpenAI error bodies. No other file maps a failure to a status.

docs/errors.md repeats the rows, and a test compares.
"""

import logging
import math
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from litestar import Request, Response
from litestar.exceptions import HTTPException
from sqlalchemy.exc import SQLAlchemyError

from backends.asgi import BodyTooLarge, ClientGone, RequestTimeout
from backends.errors import (
    BackendBusy,
    BackendMisconfigured,
    BackendTimeout,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
    ModelFileUnusable,
    ModelFileWrong,
    UpstreamBroken,
    UpstreamRefused,
)
from gateway.exchange import Exchange
from policies.errors import (
    KeyNotFound,
    KeysThrottled,
    KeyUnknown,
    ModelUnknown,
    NotThere,
    PathForbidden,
    PathHidden,
    PromptInvalid,
    QuotaExceeded,
    QuotaStoreDown,
    RoleForbidden,
    RoleUnknown,
)
from policies.quotas import Measure
from policies.retries import retry_after_s
from retrieval.errors import (
    AlreadyDone,
    CollectionNotReady,
    CursorUnknown,
    DocumentUnreadable,
    EmbeddingFailed,
    FilterInvalid,
    Gone,
    Overtaken,
    PageRefused,
    PageUnavailable,
    RoomExceeded,
    TokensUndecodable,
)

log = logging.getLogger("chasqui")

PLAIN_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""Of an upstream's codes, those that go on, into logs as well; the others might be anything, a prompt for one."""


class GatewayError(Exception):
    """Base of what only the HTTP surface knows."""


class HeadersTooLarge(GatewayError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request's headers are larger than {limit_bytes // 1024} KB")


class GatewayStopping(GatewayError):
    """The time that requests in work are given at a stop is over."""

    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("the gateway is stopping; try again")


class StoreUnavailable(GatewayError):
    """The journal cannot be written, so nothing may be started."""


class Meaning(NamedTuple):
    status: int
    type: str
    code: str


MEANINGS: dict[type[Exception], Meaning] = {
    InvalidRequest: Meaning(400, "invalid_request_error", "invalid_value"),  # the exception may name a closer code
    ContextLengthExceeded: Meaning(400, "invalid_request_error", "context_length_exceeded"),
    PromptInvalid: Meaning(400, "invalid_request_error", "invalid_value"),
    RoleUnknown: Meaning(400, "invalid_request_error", "invalid_value"),
    TokensUndecodable: Meaning(400, "invalid_request_error", "invalid_value"),
    DocumentUnreadable: Meaning(400, "invalid_request_error", "invalid_value"),
    FilterInvalid: Meaning(400, "invalid_request_error", "invalid_value"),
    CursorUnknown: Meaning(400, "invalid_request_error", "invalid_value"),
    RoomExceeded: Meaning(400, "invalid_request_error", "invalid_value"),
    AlreadyDone: Meaning(400, "invalid_request_error", "invalid_value"),
    PageRefused: Meaning(400, "invalid_request_error", "invalid_value"),
    KeyUnknown: Meaning(401, "authentication_error", "invalid_api_key"),
    PathForbidden: Meaning(403, "permission_denied", "permission_denied"),
    RoleForbidden: Meaning(403, "permission_denied", "permission_denied"),
    PathHidden: Meaning(404, "invalid_request_error", "not_found"),
    KeyNotFound: Meaning(404, "invalid_request_error", "not_found"),
    NotThere: Meaning(404, "invalid_request_error", "not_found"),
    Gone: Meaning(404, "invalid_request_error", "not_found"),
    ModelUnknown: Meaning(404, "invalid_request_error", "model_not_found"),
    RequestTimeout: Meaning(408, "invalid_request_error", "request_timeout"),
    ClientGone: Meaning(499, "invalid_request_error", "client_closed_request"),  # nobody reads it; the log does
    BodyTooLarge: Meaning(413, "invalid_request_error", "request_too_large"),
    HeadersTooLarge: Meaning(431, "invalid_request_error", "headers_too_large"),
    QuotaExceeded: Meaning(429, "rate_limit_error", "rate_limit_exceeded"),
    KeysThrottled: Meaning(429, "rate_limit_error", "rate_limit_exceeded"),
    BackendBusy: Meaning(429, "rate_limit_error", "server_busy"),
    UpstreamRefused: Meaning(400, "invalid_request_error", "invalid_value"),  # keeps its own status, type and code
    UpstreamBroken: Meaning(502, "server_error", "upstream_error"),
    EmbeddingFailed: Meaning(502, "server_error", "upstream_error"),
    PageUnavailable: Meaning(502, "server_error", "upstream_error"),
    BackendUnavailable: Meaning(503, "server_error", "backend_unavailable"),
    BackendMisconfigured: Meaning(503, "server_error", "backend_unavailable"),
    ModelFileUnusable: Meaning(503, "server_error", "backend_unavailable"),
    ModelFileWrong: Meaning(503, "server_error", "backend_unavailable"),
    Overtaken: Meaning(500, "server_error", "internal_error"),  # the builder keeps it to itself
    CollectionNotReady: Meaning(503, "server_error", "backend_unavailable"),
    GatewayStopping: Meaning(503, "server_error", "backend_unavailable"),
    QuotaStoreDown: Meaning(503, "server_error", "store_unavailable"),
    StoreUnavailable: Meaning(503, "server_error", "store_unavailable"),
    SQLAlchemyError: Meaning(503, "server_error", "store_unavailable"),
    BackendTimeout: Meaning(504, "server_error", "backend_timeout"),
}

FRAMEWORK: dict[int, Meaning] = {
    400: Meaning(400, "invalid_request_error", "invalid_value"),
    401: Meaning(401, "authentication_error", "invalid_api_key"),
    403: Meaning(403, "permission_denied", "permission_denied"),
    404: Meaning(404, "invalid_request_error", "not_found"),
    405: Meaning(405, "invalid_request_error", "method_not_allowed"),
    413: Meaning(413, "invalid_request_error", "request_too_large"),
}
"""What Litestar refuses by itself."""

BUG = Meaning(500, "server_error", "internal_error")

CODES = frozenset(meaning.code for meaning in (*MEANINGS.values(), *FRAMEWORK.values(), BUG)) | {
    "insufficient_quota",
    "invalid_json",
    "missing_required_parameter",
}

BUSY_RETRY_S = 1.0


class Failure(NamedTuple):
    """A failure as it goes out."""

    meaning: Meaning
    message: str
    param: str | None
    headers: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.meaning, self.param)


def error_body(message: str, meaning: Meaning, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": meaning.type, "param": param, "code": meaning.code}}


def explain(exc: BaseException) -> Failure:
    """What a caller is told about a failure. A bug's cause goes to the log only."""
    if isinstance(exc, HTTPException):
        return _explain_framework(exc)
    meaning = next((MEANINGS[kind] for kind in type(exc).__mro__ if kind in MEANINGS), None)
    if meaning is None:
        return Failure(
            BUG, "The gateway failed to answer; the cause is in its log, under this answer's x-request-id.", None, {}
        )
    message, param = str(exc), getattr(exc, "param", None)
    match exc:
        case UpstreamRefused():
            meaning = _upstream_meaning(exc)
        case InvalidRequest():
            meaning = meaning._replace(code=exc.code)
        case QuotaExceeded() if exc.measure is Measure.COST:
            meaning = meaning._replace(code="insufficient_quota")
        case ModelUnknown():
            param = "model"
        case SQLAlchemyError():
            full = "full" in str(getattr(exc, "orig", ""))
            message = "The disk is full; free some space." if full else "The database does not answer; try again."
    return Failure(meaning, message, param, _retry_headers(exc, meaning))


def _upstream_meaning(exc: UpstreamRefused) -> Meaning:
    default = {404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}.get(exc.status, "invalid_value")
    plain = exc.code is not None and PLAIN_CODE.fullmatch(exc.code)
    return Meaning(exc.status, exc.type, exc.code if exc.code and plain else default)


def _retry_headers(exc: BaseException, meaning: Meaning) -> dict[str, str]:
    if isinstance(exc, UpstreamRefused):
        wait_s = retry_after_s(exc.retry_after, datetime.now(UTC))
    else:
        wait_s = getattr(exc, "retry_after_s", None)
    if wait_s is None and meaning.status == 429:
        # A request larger than its whole window never fits; clients that retry anyway should do so rarely.
        wait_s = 3600.0 if isinstance(exc, QuotaExceeded) else BUSY_RETRY_S
    return {"retry-after": str(max(1, math.ceil(wait_s)))} if wait_s is not None else {}


def _explain_framework(exc: HTTPException) -> Failure:
    meaning = FRAMEWORK.get(exc.status_code, BUG)
    message = {
        404: "There is nothing at this address; see /schema for what there is.",
        405: "This address does not take this method; see the allow header.",
    }.get(exc.status_code, exc.detail if meaning is not BUG else "The gateway failed to answer.")
    invalid = (getattr(exc, "extra", None) or [{}]) if exc.status_code == 400 else [{}]
    param = invalid[0].get("key") if isinstance(invalid, list) and isinstance(invalid[0], dict) else None
    if param:
        message = f"Invalid value for '{param}': {invalid[0].get('message', 'not allowed')}"
    allow = {name: value for name, value in (exc.headers or {}).items() if name.lower() == "allow"}
    return Failure(meaning, message, param, allow)


def explain_to(exchange: Exchange, exc: BaseException) -> Failure:
    """`explain`, with what the log and the metrics should know; a bug's cause goes to the log here."""
    failure = explain(exc)
    if failure.meaning is BUG:
        log.error("bug in %s, %s", exchange.path, exchange.id, exc_info=exc)
    exchange.error = failure.meaning.code
    return failure


def answer_failure(request: Request[Any, Any, Any], exc: Exception) -> Response[dict[str, Any]]:
    """Litestar's handler for every exception, its own included."""
    exchange: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
    failure = explain_to(exchange, exc)
    headers = exchange.headers() | failure.headers
    return Response(failure.body, status_code=failure.meaning.status, headers=headers, media_type="application/json")
