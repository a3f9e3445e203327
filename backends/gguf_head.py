"""What a GGUF file says of itself, read without loading it: metadata only, and of long lists only their length."""

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from backends.errors import ModelFileUnusable

FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KEPT = 64
"""Values of a list that are kept: one for each layer, but not a vocabulary."""
MOST_KEYS, MOST_BYTES = 10_000, 1 << 24
"""A real file has some dozens, and no text of 16 MB."""

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
    try:
        with path.open("rb") as file:
            return _head(_fields(file), path)
    except (OSError, struct.error, ValueError, KeyError, TypeError) as exc:
        words = exc.strerror if isinstance(exc, OSError) else "it is no GGUF file, or a damaged one"
        raise ModelFileUnusable(f"{path} cannot be read: {words}") from exc


def _head(fields: dict[str, Any], path: Path) -> Head:
    kind = str(fields["general.architecture"])
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
        name=str(fields.get("general.name", path.stem)),
        context_tokens=int(fields.get(f"{kind}.context_length", 0)),
        serves=serves if causal or serves != "chat" else "embeddings",
        quantization=FILE_TYPES.get(int(fields.get("general.file_type", -1)), "?"),
        cell_bytes=rows * sum(widths) * 2 if causal else 0,
        chat_template="tokenizer.chat_template" in fields,
        licence=str(fields.get("general.license", "")),
    )


def _fields(file: BinaryIO) -> dict[str, Any]:
    if file.read(4) != b"GGUF":
        raise ValueError
    version, _, count = _unpack(file, "IQQ")
    if version not in (2, 3) or count > MOST_KEYS:
        raise ValueError
    return {_text(file): _value(file, _unpack(file, "I")[0]) for _ in range(count)}


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
    for _ in range(length):
        if inner != STRING:  # lists of lists: nobody writes them
            raise ValueError
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
