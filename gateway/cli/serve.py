"""`chasqui serve`: from a configuration to a listening gateway."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded, load

if TYPE_CHECKING:
    import uvicorn

    from policies.keys import Keys

STARTED_S = time.perf_counter()


@click.command("serve")
@config_option
@click.option("--host", help="Address to listen on; beats CHASQUI_HOST and the file.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; beats CHASQUI_PORT and the file.")
@click.option("--prepare", is_flag=True, help="First put missing models of the box into place.")
@click.option("--verbose", is_flag=True, help="Log debug messages, workers' words included.")
def command(config: Path | None, host: str | None, port: int | None, prepare: bool, verbose: bool) -> None:
    """Start the gateway. It prints the admin key at its first start, this once."""
    loaded = load_or_stop(config, host=host, port=port)
    if prepare:
        from gateway.cli.models.preparing import prepare_missing

        prepare_missing(loaded)
    configure_logging(verbose=verbose)
    listeners = listen(loaded)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(loaded, listeners, partial(load, config, host=host, port=port)))
        except KeyboardInterrupt:
            pass


async def serve(loaded: Loaded, listeners: list[socket.socket], load_again: Callable[[], Loaded]) -> None:
    import uvicorn

    from backends.errors import ModelFileUnusable
    from gateway.app import create_app
    from gateway.database import DatabaseUnusable, open_database
    from gateway.errors import StoreUnavailable
    from gateway.server import Protocol
    from policies.errors import PromptInvalid

    try:
        loaded.home.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        stop(f"{loaded.home} cannot be used as `home`: {exc.strerror}; choose another with CHASQUI_HOME or `home:`")
    try:
        database = await open_database(loaded.settings.store.url)
        admin = listeners[1].getsockname()[:2] if len(listeners) > 1 else None
        app = create_app(loaded, database, load=load_again, admin=admin)
        app.services.house.journal.open()  # here, where a failure is one line
    except (DatabaseUnusable, ModelFileUnusable, PromptInvalid, StoreUnavailable) as exc:
        stop(str(exc))
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=loaded.settings.server.shutdown_s,  # type: ignore[arg-type]  # it goes to asyncio.wait_for
    )
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(app.reload(), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    server = uvicorn.Server(config)
    announcing = asyncio.create_task(announce(server, listeners, loaded, app.services.keys))
    await server.serve(sockets=listeners)
    announcing.cancel()
    if not server.started:
        sys.exit(1)


async def announce(server: "uvicorn.Server", listeners: list[socket.socket], loaded: Loaded, keys: "Keys") -> None:
    """Said once the socket answers; the key first, because it is made and said only this once."""
    while not server.started:  # noqa: ASYNC110 - uvicorn offers a flag, no event
        await asyncio.sleep(0.005)
    settle_memory()
    admin_key = await first_admin_key(loaded, keys)
    address, *admin = map(address_of, listeners)
    if admin_key:
        line = curl_line(address, admin_key, loaded)
        click.echo(f"\nThe admin key, shown this once:\n\n  {admin_key}\n\nTry it in another terminal:\n\n  {line}\n")
    beside = f", for administrators on {admin[0]}," if admin else ""
    click.echo(f"chasqui is ready on {address}{beside} after {time.perf_counter() - STARTED_S:.1f} s (Ctrl-C stops it)")


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104 - shown, not bound
    return f"http://{shown}:{port}"


def settle_memory() -> None:
    """What was loaded at start stays for good: without this every full collection walks all of it, for 50 ms and more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


def curl_line(address: str, key: str, loaded: Loaded) -> str:
    """A chat with the model of the box; where the configuration has none, the list of those that there are."""
    if "guide" not in {model.name for model in loaded.settings.models}:
        return f"curl {address}/v1/models -H 'Authorization: Bearer {key}'"
    body = '{"model": "guide", "max_tokens": 60, "messages": [{"role": "user", "content": "Hello!"}]}'
    return f"curl {address}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'"


async def first_admin_key(loaded: Loaded, keys: "Keys") -> str | None:
    """A new key where neither the environment nor the database has one for an administrator."""
    from sqlalchemy.exc import SQLAlchemyError

    from policies.audit import START
    from policies.keys import NewKey
    from policies.roles import ADMIN

    given = loaded.admin_key is not None or any(key.role == ADMIN.name for key in loaded.settings.keys)
    try:
        if given or await keys.admin_exists(ADMIN.name):
            return None
        _, secret = await keys.create(NewKey("admin", ADMIN.name), by=START)
    except SQLAlchemyError as exc:
        reason = getattr(exc, "orig", None) or exc
        click.echo(f"no admin key could be stored ({reason}); the next start tries again", err=True)
        return None
    return secret


def listen(loaded: Loaded) -> list[socket.socket]:
    """For clients and, where it has an address of its own, for /admin. Bound here: a port in use is one line, before anything
    else is started.
    """
    server = loaded.settings.server
    listeners = [bound(server.host, server.port, "choose another with --port, or stop what uses it")]
    if server.admin is not None:
        listeners.append(bound(server.admin.host, server.admin.port, "choose another in `server.admin`"))
    return listeners


def bound(host: str, port: int, advice: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # binding alone would let two starts at the same moment both succeed
    except OSError as exc:
        stop(f"cannot listen on {host}:{port}: {exc.strerror}; {advice}")
    return listener


def configure_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("chasqui").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
