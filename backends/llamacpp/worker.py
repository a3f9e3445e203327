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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from backends.asgi_http1 import HttpProtocol
from backends.errors import BackendError, ModelFileUnusable
from backends.llamacpp.api import WorkerApi
from backends.llamacpp.embedding_queue import BATCH_TOKENS, EmbeddingQueue, texts_a_call
from backends.llamacpp.engine import Engine
from backends.llamacpp.generation import KEPT_BEGINNINGS, Generator
from backends.llamacpp.hardware import CACHE_TYPES, FLASH_ATTENTION, SPLIT_MODES, Hardware
from backends.llamacpp.hosting import Host, Work
from backends.llamacpp.worker_command import KEY_ENV, default_threads

log = logging.getLogger("chasqui.worker")

MAX_WAITING = 256
"""Sequences; the gateway's queue, which is fair, stands in front of this one."""


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    if options.trial:
        try:
            _engine(options, options.model).close()
        except (BackendError, OSError) as exc:
            sys.exit(str(exc))
        return
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
    parser.add_argument("--serves", choices=["chat", "embeddings", "rerank"], default="chat")
    parser.add_argument("--context-tokens", type=int, default=4096, help="prompts and answers, of all slots together")
    parser.add_argument("--slots", type=int, default=4, help="answers at the same time; they share the context tokens")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--gpu-layers", type=int, default=0, help="-1: all")
    parser.add_argument(
        "--split-mode", choices=list(SPLIT_MODES), default="layer", help="how several GPUs share a model"
    )
    parser.add_argument("--flash-attention", choices=list(FLASH_ATTENTION), default="auto")
    parser.add_argument("--cache-type-k", choices=list(CACHE_TYPES), default="f16", help="of keys in the pool")
    parser.add_argument("--cache-type-v", choices=list(CACHE_TYPES), default="f16", help="of values in the pool")
    parser.add_argument(
        "--batch-tokens", type=int, default=BATCH_TOKENS, help="embeddings: short texts share a call up to so many"
    )
    parser.add_argument(
        "--share-prefixes", action="store_true", help="clients who do not say who asks may know what others asked"
    )
    parser.add_argument("--socket", type=Path, help="serve on this Unix socket")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--key-env", default=KEY_ENV, metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--trial", action="store_true", help="load the model, compute one step, and end")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    return parser


async def serve(options: argparse.Namespace, key: str) -> None:
    name = options.name or options.model.stem
    host = Host(partial(_work, options, name, key), partial(_trial, sys.argv[1:]), options.model, key=key)
    work = await host.load()
    listener = _listen(options)
    if options.with_parent:  # which does with models what it likes, by other means
        print(msgspec.json.encode(_ready(work.thread.engine)).decode(), flush=True)
    else:
        log.info("serving %s on %s", name, options.socket or f"http://{options.host}:{options.port}/v1")
    config = uvicorn.Config(
        work.api if options.with_parent else host,
        http=HttpProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=3600,  # the gateway decides; a server that closes first races with the next request
        timeout_graceful_shutdown=5,
    )
    try:
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        await host.aclose()


async def _trial(arguments: list[str], path: Path) -> None:
    """The same worker with another model, as far as its first step.

    Raises:
        ModelFileUnusable: it does not come so far.
    """
    command = [sys.executable, "-m", "backends.llamacpp.worker", *arguments, "--trial", "--model", str(path)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        _, words = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode != 0:
        lines = words.decode("utf-8", "replace").strip().splitlines() or [f"exit {process.returncode}"]
        raise ModelFileUnusable(f"{path.name} cannot be run here: {lines[-1]}")


async def _work(options: argparse.Namespace, name: str, key: str, path: Path) -> Work:
    make: Callable[[], Engine] = partial(_engine, options, path)
    thread: Generator | EmbeddingQueue
    if options.serves == "chat":
        thread = Generator(make, name=name, slots=options.slots, max_waiting=MAX_WAITING)
    else:
        thread = EmbeddingQueue(make, name=name, max_waiting=MAX_WAITING, batch_tokens=options.batch_tokens)
    await thread.start()
    return Work(thread, WorkerApi(thread, name=name, key=key, serves=options.serves, share=options.share_prefixes))


def _engine(options: argparse.Namespace, path: Path) -> Engine:
    engine = Engine(
        path,
        context_tokens=options.context_tokens,
        threads=options.threads or default_threads(os.cpu_count() or 1),
        sequences=options.slots * KEPT_BEGINNINGS if options.serves == "chat" else texts_a_call(options.batch_tokens),
        hardware=Hardware(
            options.gpu_layers, options.split_mode, options.flash_attention, options.cache_type_k, options.cache_type_v
        ),
        embeddings=options.serves != "chat",
        ranks=options.serves == "rerank",
    )
    info = engine.info
    if info.context_tokens > info.trained_tokens > 0 and options.serves == "chat":
        engine.notes.append(
            f"a context of {info.context_tokens} tokens, but the model was trained with {info.trained_tokens}: longer conversations suffer"
        )
    for note in engine.notes:
        log.warning("%s", note)
    return engine


def _ready(engine: Engine) -> dict[str, Any]:
    info = engine.info
    return {
        "ready": True,
        "context_tokens": info.context_tokens,
        "dimensions": info.dimensions,
        "model": info.description,
        "notes": engine.notes,
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
