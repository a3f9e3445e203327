"""The process that reads documents: one at a time, with limits of its own. What kills it costs that one document.

Frames on stdin and stdout: four bytes of length, then MessagePack. `parse` is answered by the words that are to be counted, then
`chunk` by the chunks; so the text itself stays here. `text` is answered by the text.
"""

import os
import resource
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

from retrieval.chunking import chunk
from retrieval.errors import DocumentUnreadable
from retrieval.parsing import Parsed, parse
from retrieval.settings import ChunkSettings

_LENGTH = struct.Struct("<I")


def main() -> None:
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not become a frame
    parsed: Parsed | None = None
    while (asked := read_frame(sys.stdin.buffer)) is not None:
        job = msgspec.msgpack.decode(asked)
        try:
            if job["do"] != "chunk":
                _limit_cpu(job["cpu_s"])
                parsed = parse(job["name"], job["data"])
            assert parsed is not None
            answer = _answer(job, parsed)
        except DocumentUnreadable as exc:
            answer = {"unreadable": str(exc), "kind": exc.kind}
        except MemoryError:
            answer = {
                "unreadable": f"{job.get('name', 'it')} needs more memory than is allowed (files.parse_memory_mb)",
                "kind": False,
            }
        write_frame(answers, msgspec.msgpack.encode(answer))


def _answer(job: Mapping[str, Any], parsed: Parsed) -> dict[str, Any]:
    if job["do"] == "text":
        return {"text": parsed.text}
    if job["do"] == "parse":
        heard = f"{parsed.text} {parsed.title}".split()
        return {"title": parsed.title, "words": list(dict.fromkeys(heard)), "bytes": len(parsed.text.encode())}
    counts: Mapping[str, int] = job["counts"]
    settings = ChunkSettings(**job["settings"])
    cuts = chunk(parsed, settings, lambda text: tokens_of(text, counts), window_tokens=job["window_tokens"])
    return {"chunks": [tuple(cut) for cut in cuts]}


def tokens_of(text: str, counts: Mapping[str, int]) -> int:
    """Sum over words. A piece of a word, which only a splitter in need makes, is bounded by its length."""
    return sum(counts.get(word) or len(word.encode()) for word in text.split())


def _limit_cpu(seconds: float) -> None:
    """From now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def read_frame(source: BinaryIO) -> bytes | None:
    head = source.read(_LENGTH.size)
    return source.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def write_frame(target: BinaryIO, data: bytes) -> None:
    target.write(_LENGTH.pack(len(data)) + data)
    target.flush()


if __name__ == "__main__":
    main()
