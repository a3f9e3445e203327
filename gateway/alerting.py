"""Tells a webhook when a budget passes a threshold. Looks at what keys have used that have just used something, as the ledger says (what
is only held may never be used); says it again until the other side has taken it, for a day.

The call is signed as https://www.standardwebhooks.com describes, which is what OpenAI's own webhooks do.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpx
import msgspec
from sqlalchemy.exc import SQLAlchemyError

from gateway.settings_schema import AlertSettings
from gateway.settings_secrets import signing_key
from policies.alerts import AlertRow, Alerts, crossings
from policies.errors import QuotaStoreDown
from policies.quotas import History
from policies.roles import Caller
from policies.spans import reaches_back_to_s

log = logging.getLogger("chasqui.alerts")

EVERY_S = 2.0
GIVEN_UP_S = 86_400.0
TIMEOUT_S = 10.0


class _Line(msgspec.Struct):
    key: str


_line = msgspec.json.Decoder(_Line)


class WebhookRefused(Exception):
    """It answered, and not with 2xx."""


class Alerting:
    """
    Args:
        secret: signs the calls; None: they are not signed.
        callers: all usable keys, now.
        clock: Unix seconds.
    """

    def __init__(
        self,
        settings: AlertSettings,
        alerts: Alerts,
        history: History,
        *,
        secret: str | None,
        callers: Callable[[], Iterable[Caller]],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._alerts = alerts
        self._history = history
        self._secret = signing_key(secret) if secret else None
        self._callers = callers
        self._clock = clock
        self._sleep = sleep
        self._touched: set[str] = set()
        self._failing = False

    def used(self, lines: Sequence[bytes]) -> None:
        """Of the ledger: whose limits are worth a look."""
        self._touched.update(_line.decode(line).key for line in lines)

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            while True:
                await self._sleep(EVERY_S)
                try:
                    await self._look()
                    if await self._tell(client):
                        self._failing = False
                except (SQLAlchemyError, OSError, QuotaStoreDown) as exc:
                    self._say(exc)

    async def _look(self) -> None:
        touched, callers = self._touched, {caller.key_id: caller for caller in self._callers()}
        self._touched = set()
        try:
            for key in list(touched):
                if key in callers:
                    await self._look_at(callers[key])
                touched.discard(key)
        finally:
            self._touched |= touched  # those that could not be looked at

    async def _look_at(self, caller: Caller) -> None:
        now_s = self._clock()
        for limit in caller.limits:
            if limit.span is None or limit.measure.value not in self._settings.measures:
                continue
            since_s = reaches_back_to_s(limit.span, now_s)
            used = sum([amount for _, amount in await self._history.used(limit.scope, limit.measure, since_s=since_s)])
            for crossing in crossings(limit, used, self._settings.thresholds, now_s):
                crossing.event.update(key=caller.key_id, key_name=caller.key_name, role=caller.role.name)
                if await self._alerts.note(crossing, now_s):
                    log.warning("%s has used %g of its %s", *_words(crossing.event))

    async def _tell(self, client: httpx.AsyncClient) -> bool:
        """Whether all were heard. One that is not keeps none of the others back."""
        heard = True
        for alert in await self._alerts.unsent(since_s=self._clock() - GIVEN_UP_S):
            body = body_of(alert)
            headers = {"content-type": "application/json", **self._signature(alert, body)}
            try:
                answer = await client.post(self._settings.url, content=body, headers=headers)
            except httpx.HTTPError as exc:
                self._say(exc)
                heard = False
                continue
            if answer.is_success:
                await self._alerts.sent(alert.id, self._clock())
            else:
                self._say(WebhookRefused(f"status {answer.status_code}"))
                heard = False
        return heard

    def _say(self, exc: Exception) -> None:
        """Once, and without the webhook's address, which may be a secret."""
        if not self._failing:
            words = exc if isinstance(exc, WebhookRefused) else type(exc).__name__
            log.error("alerts cannot be noted or sent, they are tried again: %s", words)
        self._failing = True

    def _signature(self, alert: AlertRow, body: bytes) -> dict[str, str]:
        name, at = message_id(alert), str(int(self._clock()))
        headers = {"webhook-id": name, "webhook-timestamp": at}
        if self._secret is not None:
            digest = hmac.digest(self._secret, f"{name}.{at}.".encode() + body, hashlib.sha256)
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers


def message_id(alert: AlertRow) -> str:
    """The same for the same crossing, however often it is sent."""
    return f"evt_{hashlib.sha256(alert.id.encode()).hexdigest()[:32]}"


def body_of(alert: AlertRow) -> bytes:
    event = {
        "id": message_id(alert),
        "object": "event",
        "type": "limit.threshold",
        "created_at": alert.made_at,
        "data": alert.event,
    }
    return msgspec.json.encode(event)


def _words(event: dict[str, object]) -> tuple[object, object, str]:
    used = f"{event['limit']} {event['measure']} per {event['per']}"
    return event["holder"], event["used"], used
