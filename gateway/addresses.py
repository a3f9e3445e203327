"""Where `server.admin` gives /admin an address of its own: each address has its paths, and the others are not there."""

from typing import Any

from backends.asgi import Receive, Send
from gateway.outlet import Outlet
from policies.errors import PathHidden

BESIDE_ADMIN = ("/health", "/metrics", "/schema")
"""What the administrator's address has as well."""

Address = tuple[str, int]

ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Addresses:
    """ASGI.

    Args:
        admin: as its socket is bound.
    """

    def __init__(self, app: Any, admin: Address) -> None:
        self._app = app
        self._host, self._port = admin

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = "/" + scope["path"].lstrip("/")  # the router reads `//admin` as `/admin`
        for_admin = path == "/admin" or path.startswith("/admin/")
        if self._is_admin(scope["server"]):
            there = for_admin or path.startswith(BESIDE_ADMIN)
        else:
            there = not for_admin
        if there:
            await self._app(scope, receive, send)
        else:
            await Outlet(scope["exchange"], scope, send).failure(PathHidden(path[:200]))

    def _is_admin(self, server: Address) -> bool:
        host, port = server
        return port == self._port and self._host in (host, *ANY)
