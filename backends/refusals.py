"""What an upstream says when it says no, as our failures. Secrets are taken out of its words here, and nowhere else."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from backends.errors import BackendError, UpstreamBroken, UpstreamRefused

CLIENTS_FAULT = frozenset({400, 404, 409, 413, 422, 429})
"""These keep their status and words; every other failure of an upstream is its own affair."""

_KEY = re.compile(r"\bsk-[A-Za-z0-9_\-*.]{6,}")


class Refusals:
    """
    Args:
        secrets: what must never be repeated to anybody.
    """

    def __init__(self, backend: str, secrets: Iterable[str]) -> None:
        self._backend = backend
        self._secrets = [secret for secret in secrets if len(secret) >= 8]
        self._secret_bytes = [secret.encode("utf-8", "replace") for secret in self._secrets]

    def of_status(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """An answer whose status is not 2xx."""
        message, error = self.words(body)
        if status in (401, 403):  # about our key, and so between it and us
            return UpstreamBroken(self._backend, f"status {status}: it refused the gateway's key", status=status)
        if status not in CLIENTS_FAULT:
            return UpstreamBroken(self._backend, f"status {status}: {message}", status=status)
        return self._refused(status, message, error, headers.get("retry-after"))

    def of_event(self, data: bytes) -> BackendError:
        """An error event: the client's own fault where the engine says so, else the engine's."""
        message, error = self.words(data)
        numbers = [error[name] for name in ("code", "status") if isinstance(error.get(name), int)]
        status = numbers[0] if numbers else 0
        if status in CLIENTS_FAULT or error.get("type") == "invalid_request_error":
            return self._refused(status if status in CLIENTS_FAULT else 400, message, error, None)
        return UpstreamBroken(self._backend, message)

    def words(self, body: bytes) -> tuple[str, dict[str, Any]]:
        """The message of an error body and the rest of it, as far as it is one."""
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = None
        error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return self.redact(error["message"]), error
        if isinstance(error, str):
            return self.redact(error), {}
        return self.redact(body.decode("utf-8", "replace"))[:200] or "no message", {}

    def redact_bytes(self, data: bytes) -> bytes:
        """An answer's own bytes: only what is exactly one of our secrets is taken out."""
        for secret in self._secret_bytes:
            if secret in data:
                data = data.replace(secret, b"[redacted]")
        return data

    def harmless(self, headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
        """Those of the named headers that are there and hold no secret."""
        return {
            name: headers[name] for name in names if name in headers and self.redact(headers[name]) == headers[name]
        }

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return _KEY.sub("[redacted]", text)

    def _refused(self, status: int, message: str, error: dict[str, Any], retry_after: str | None) -> UpstreamRefused:
        return UpstreamRefused(
            self._backend,
            status,
            message,
            type_=self._word(error.get("type")) or "invalid_request_error",
            code=self._word(error.get("code")),
            param=self._word(error.get("param")),
            retry_after=retry_after,
        )

    def _word(self, value: Any) -> str | None:
        return self.redact(value) if isinstance(value, str) else None
