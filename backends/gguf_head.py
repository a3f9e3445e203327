"""What a GGUF file says of itself, read without loading it: metadata, of long lists only their length, and where its tensors lie."""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backends.errors import ModelFileUnusable

FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KEPT = 64
"""Values of a list that are kept: one for each layer, but not a vocabulary."""
MOST_KEYS, MOST_BYTES, MOST_ITEMS = 10_000, 1 << 24, 1 << 22
"""A real file has some dozens of keys, no text of 16 MB, and no list of four million texts."""
MOST_TENSORS, MOST_DIMENSIONS, ALIGNMENT = 100_000, 4, 32
"""ggml's bounds; tensors begin at multiples of `general.alignment`, of 32 without it."""

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""llama.cpp's `llama_ftype`."""

POOLED = {1: "embeddings", 2: "embeddings", 3: "embeddings", 4: "rerank"}
"""llama.cpp's pooling: mean, first token, last token; rank."""


class Head(NamedTuple):
    architecture: str
    name: str
    context_tokens: int
    """That it was trained with; 0 where it does not say."""
    serves: str
    quantization: str
    cell_bytes: int
    """That a token takes in a cache of float16, all layers together; 0 where it keeps none."""
    chat_template: bool
    licence: str


def read_head(path: Path) -> Head:
    """
    Raises:
        ModelFileUnusable: no GGUF file, or a damaged one.
    """
    with _opened(path) as file:
        return _head(_fields(file)[0], path)


def check_whole(path: Path) -> None:
    """As far as that can be said without its digest: every tensor that it names lies inside of it.

    Raises:
        ModelFileUnusable: no GGUF file, a damaged one, or only the beginning of one.
    """
    with _opened(path) as file:
        fields, tensors = _fields(file)
        ends = [_tensor_end(file) for _ in range(tensors)]
        alignment = int(fields.get("general.alignment", ALIGNMENT))
        start = -(-file.tell() // alignment) * alignment
        size = path.stat().st_size
    need = start + max(ends) if ends else 0
    if need > size:
        raise ModelFileUnusable(f"{path} has been cut: it has {size:,} bytes, and its tensors need {need:,}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, struct.error, ArithmeticError, ValueError, KeyError, TypeError) as exc:
        words = exc.strerror if isinstance(exc, OSError) else "it is no GGUF file, or a damaged one"
        raise ModelFileUnusable(f"{path} cannot be read: {words}") from exc


def _head(fields: dict[str, Any], path: Path) -> Head:
    kind = _plain(fields["general.architecture"])
    layers = int(fields.get(f"{kind}.block_count", 0))
    heads = fields.get(f"{kind}.attention.head_count", 0)
    shared = fields.get(f"{kind}.attention.head_count_kv", heads)
    size = int(fields.get(f"{kind}.embedding_length", 0)) // max(
        1, max(heads) if isinstance(heads, list) else int(heads)
    )
    widths = [int(fields.get(f"{kind}.attention.{part}_length", size)) for part in ("key", "value")]
    rows = sum(map(int, shared)) if isinstance(shared, list) else layers * int(shared)
    serves = POOLED.get(int(fields.get(f"{kind}.pooling_type", 0)), "chat")
    causal = bool(fields.get(f"{kind}.attention.causal", True))
    return Head(
        architecture=kind,
        name=_plain(fields.get("general.name", path.stem)),
        context_tokens=int(fields.get(f"{kind}.context_length", 0)),
        serves=serves if causal or serves != "chat" else "embeddings",
        quantization=FILE_TYPES.get(int(fields.get("general.file_type", -1)), "?"),
        cell_bytes=rows * sum(widths) * 2 if causal else 0,
        chat_template="tokenizer.chat_template" in fields,
        licence=_plain(fields.get("general.license", "")),
    )


def _plain(text: Any) -> str:
    """What a terminal may be shown."""
    return "".join(letter for letter in str(text) if letter.isprintable())


def _fields(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Metadata, and how many tensors are described behind it."""
    if file.read(4) != b"GGUF":
        raise ValueError
    version, tensors, count = _unpack(file, "IQQ")
    if version not in (2, 3) or count > MOST_KEYS or tensors > MOST_TENSORS:
        raise ValueError
    return {_text(file): _value(file, _unpack(file, "I")[0]) for _ in range(count)}, tensors


def _tensor_end(file: BinaryIO) -> int:
    """Bytes behind the start of the tensors' data; of a type that is not known here, where it begins."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    _text(file)
    dimensions = _unpack(file, "I")[0]
    if dimensions > MOST_DIMENSIONS:
        raise ValueError
    shape = _unpack(file, f"{dimensions}Q")
    kind, offset = _unpack(file, "IQ")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return int(offset)
    return int(offset + math.prod(shape) // block * block_bytes)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _text(file)
    if kind != ARRAY:
        return _unpack(file, FIXED[kind])[0]
    inner, length = _unpack(file, "IQ")
    if inner in FIXED:
        kept = [_unpack(file, FIXED[inner])[0] for _ in range(min(length, KEPT))] if length <= KEPT else []
        file.seek((length - len(kept)) * struct.calcsize(FIXED[inner]), 1)
        return kept
    if inner != STRING or length > MOST_ITEMS:  # lists of lists: nobody writes them
        raise ValueError
    for _ in range(length):
        file.seek(_unpack(file, "Q")[0], 1)
    return []


def _text(file: BinaryIO) -> str:
    length = _unpack(file, "Q")[0]
    data = file.read(min(length, MOST_BYTES))
    if len(data) != length:
        raise ValueError
    return data.decode("utf-8", "replace")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    size = struct.calcsize(f"<{form}")
    return struct.unpack(f"<{form}", file.read(size))
