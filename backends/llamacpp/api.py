"""What a worker serves: OpenAI's API for one model, and the few calls a gateway needs beside it. Bare ASGI.

POST /v1/chat/completions · /v1/completions · /v1/embeddings · /v1/rerank     as OpenAI, rerank as Jina and Cohere
POST /tokenize {content or contents, add_special?} · /apply-template {messages, tools?} · /count {any of the bodies above}
GET  /health · /v1/models · /status
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from backends.asgi import BodyTooLarge, ClientGone, Receive, Send, read_body, send_json, until_gone
from backends.errors import BackendBusy, InvalidRequest
from backends.llamacpp.embedding_queue import EmbeddingQueue
from backends.llamacpp.generating import Generating, error_object
from backends.llamacpp.generation import Generator
from backends.llamacpp.measuring import Measuring
from backends.llamacpp.worker_status import status_of
from backends.wire import Body

log = logging.getLogger("chasqui.worker")

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The gateway's own limit stands in front of this one."""

Handler = Callable[[Body, Send, dict[bytes, bytes]], Awaitable[None]]

SERVED_BY = {
    "/chat/completions": "chat",
    "/completions": "chat",
    "/apply-template": "chat",
    "/embeddings": "embeddings",
    "/rerank": "rerank",
}


class WorkerApi:
    """
    Args:
        key: every request must carry it as a bearer, `/health` excepted.
        serves: chat, embeddings or rerank; the others' paths are refused with words.
        share: requests that do not say who asks may share the beginnings of their prompts.
    """

    def __init__(
        self, engine: Generator | EmbeddingQueue, *, name: str, key: str, serves: str, share: bool = False
    ) -> None:
        self._thread = engine
        self._engine = engine.engine
        self._name = name
        self._key = f"Bearer {key}".encode()
        self._serves = serves
        self._generating: Generating | None = None
        self._handlers: dict[str, Handler] = {"/tokenize": self._tokenise}
        if isinstance(engine, Generator):
            self._generating = generating = Generating(engine, name=name, share=share)
            self._handlers |= {
                "/chat/completions": generating.chat,
                "/completions": generating.completions,
                "/apply-template": generating.apply_template,
                "/count": generating.count,
            }
        else:
            measuring = Measuring(engine, name=name)
            own: dict[str, Handler] = {"/embeddings": measuring.embeddings, "/rerank": measuring.rerank}
            self._handlers |= {f"/{serves}": own[f"/{serves}"], "/count": measuring.count}

    async def aclose(self) -> None:
        if self._generating is not None:
            await self._generating.aclose()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        path, method = scope["path"].removeprefix("/v1"), scope["method"]
        if path == "/health":
            await send_json(send, 200, {"status": "ok"})
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._key):
            await send_error(
                send, 401, "this worker needs its key", type_="authentication_error", code="invalid_api_key"
            )
        elif path == "/models" and method == "GET":
            await send_json(send, 200, {"object": "list", "data": [self._model_object()]})
        elif path == "/status" and method == "GET":
            await send_json(send, 200, self.status())
        elif path not in self._handlers and path not in SERVED_BY:
            await send_error(send, 404, f"there is no {scope['path'][:200]} here", code="not_found")
        elif method != "POST":
            await send_error(send, 405, f"{scope['path']} takes POST", code="method_not_allowed")
        else:
            await self._answer(path, headers, scope, receive, send)

    async def _answer(
        self, path: str, headers: dict[bytes, bytes], scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        try:
            body = Body(await read_body(receive, limit_bytes=MAX_BODY_BYTES))
            if path not in self._handlers:
                raise InvalidRequest(f"this model serves {self._serves}, not {SERVED_BY[path]}.", param="model")
            await until_gone(scope, self._handlers[path](body, send, headers))
        except InvalidRequest as exc:
            await send_error(send, 400, str(exc), param=exc.param, code=exc.code)
        except BackendBusy as exc:
            head = {"retry-after": f"{exc.retry_after_s:.0f}"}
            await send_error(send, 429, str(exc), type_="rate_limit_error", code="server_busy", headers=head)
        except BodyTooLarge as exc:
            await send_error(send, 413, str(exc), code="request_too_large")
        except ClientGone:
            pass
        except Exception as exc:
            log.exception("the engine failed")
            await send_error(send, 500, str(exc), type_="server_error", code="internal_error")

    def status(self) -> dict[str, Any]:
        return status_of(self._thread, name=self._name, serves=self._serves)

    async def _tokenise(self, body: Body, send: Send, _: dict[bytes, bytes]) -> None:
        """`content`: its tokens. `contents`: how many each of them has."""
        tokenise = partial(
            self._engine.tokenise, add_special=body.read("add_special", bool, False), parse_special=False
        )
        if "contents" in body:
            counts = [len(tokenise(text)) for text in body.require("contents", list[str])]
            await send_json(send, 200, {"counts": counts})
        else:
            await send_json(send, 200, {"tokens": tokenise(body.require("content", str))})

    def _model_object(self) -> dict[str, Any]:
        info = self._engine.info
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "chasqui",
            "description": info.description,
            "context_tokens": info.context_tokens,
        }


async def send_error(
    send: Send,
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    await send_json(send, status, error_object(message, type_, param, code), headers)
