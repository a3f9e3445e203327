"""The worker process: one engine behind one socket. `python -m backends.llamacpp.worker --model PATH --socket PATH`.

Lives as long as its parent: with `--with-parent` it ends when its standard input closes. Says one JSON line on standard
output when it is ready. On TCP it refuses to start without a key.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from backends.asgi_http1 import HttpProtocol
from backends.errors import BackendError
from backends.llamacpp.api import WorkerApi
from backends.llamacpp.embedding_queue import TEXTS_A_CALL, EmbeddingQueue
from backends.llamacpp.engine import Engine
from backends.llamacpp.generation import KEPT_BEGINNINGS, Generator
from backends.llamacpp.worker_command import KEY_ENV, default_threads

log = logging.getLogger("chasqui.worker")

MAX_WAITING = 256
"""Sequences; the gateway's queue, which is fair, stands in front of this one."""


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    key = os.environ.pop(options.key_env, "")
    if not key:
        sys.exit(f"a worker needs a key: put one into the environment variable {options.key_env}")
    if options.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        asyncio.run(serve(options, key))
    except (BackendError, OSError) as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        pass


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chasqui worker", description="Serve one GGUF over HTTP.")
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="the GGUF file")
    parser.add_argument("--name", default="", help="what it is called in answers (default: the file's name)")
    parser.add_argument("--serves", choices=["chat", "embeddings"], default="chat")
    parser.add_argument("--context-tokens", type=int, default=4096, help="prompts and answers, of all slots together")
    parser.add_argument("--slots", type=int, default=4, help="answers at the same time; they share the context tokens")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--gpu-layers", type=int, default=0, help="-1: all")
    parser.add_argument("--socket", type=Path, help="serve on this Unix socket")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--key-env", default=KEY_ENV, metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    return parser


async def serve(options: argparse.Namespace, key: str) -> None:
    name = options.name or options.model.stem
    thread = _thread(options, name)
    await thread.start()
    api = WorkerApi(thread, name=name, key=key, serves=options.serves)
    listener = _listen(options)
    config = uvicorn.Config(
        api,
        http=HttpProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=3600,  # the gateway decides; a server that closes first races with the next request
        timeout_graceful_shutdown=5,
    )
    if options.with_parent:
        print(msgspec.json.encode(_ready(thread.engine)).decode(), flush=True)
    else:
        log.info("serving %s on %s", name, options.socket or f"http://{options.host}:{options.port}/v1")
    await uvicorn.Server(config).serve(sockets=[listener])
    thread.close()


def _thread(options: argparse.Namespace, name: str) -> Generator | EmbeddingQueue:
    make = partial(_engine, options)
    if options.serves == "embeddings":
        return EmbeddingQueue(make, name=name, max_waiting=MAX_WAITING)
    return Generator(make, name=name, slots=options.slots, max_waiting=MAX_WAITING)


def _engine(options: argparse.Namespace) -> Engine:
    engine = Engine(
        options.model,
        context_tokens=options.context_tokens,
        threads=options.threads or default_threads(os.cpu_count() or 1),
        sequences=TEXTS_A_CALL if options.serves == "embeddings" else options.slots * KEPT_BEGINNINGS,
        gpu_layers=options.gpu_layers,
        embeddings=options.serves == "embeddings",
    )
    info = engine.info
    if info.context_tokens > info.trained_tokens > 0 and options.serves == "chat":
        log.warning("context of %d tokens, but the model was trained with %d", info.context_tokens, info.trained_tokens)
    return engine


def _ready(engine: Engine) -> dict[str, Any]:
    info = engine.info
    return {
        "ready": True,
        "context_tokens": info.context_tokens,
        "dimensions": info.dimensions,
        "model": info.description,
    }


def _listen(options: argparse.Namespace) -> socket.socket:
    """Bound and listening here, because a server library would give a Unix socket its own, wider, mode."""
    if options.socket is None:
        try:
            return socket.create_server((options.host, options.port))
        except OSError as exc:
            sys.exit(f"cannot listen on {options.host}:{options.port}: {exc.strerror}; choose another with --port")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(options.socket))
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # past Python's buffer, whose lock would outlive the interpreter
        pass
    os._exit(0)  # nobody is left to answer to


if __name__ == "__main__":
    main()
