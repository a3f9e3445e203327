"""A tiny GGUF with random weights: loads and runs like a real one, and babbles. Same seed, same file.

For tests, and in place of a chat model until a real one is there. Never pretend that it knows anything.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

WORDS = (
    "the a road runs over high bridge and stone mountain river wind carries message runner waits at station with knotted cord "
    "sun rises night falls cold bright far near quick slow one two three steps then rest water bread song valley cloud llama "
    "tells story of city gate under old tree who sends what comes back again every day until last relay hands it on ."
).split()

CONTROL = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")


HEADS = 4


def write_synthetic(
    path: Path, *, name: str = "synthetic", seed: int = 0, context_tokens: int = 4096, dim: int = 64, layers: int = 2
) -> Path:
    """Write a llama-architecture model of a few hundred kilobytes, float32, SPM vocabulary."""
    rng = np.random.default_rng(seed)
    tokens, scores, types = vocabulary()
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_description("random weights: answers are babble")
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * dim)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokens.index(b"<s>"))
    writer.add_eos_token_id(tokens.index(b"<|end|>"))
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for tensor, values in weights(rng, tokens, dim=dim, layers=layers):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(
    rng: np.random.Generator, tokens: list[bytes], *, dim: int, layers: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """float32 by force: numpy scalars promote to F64, which loads and then crashes at the first decode."""

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
        return values

    ones = np.ones(dim, np.float32)
    embedding = rng.standard_normal((len(tokens), dim)).astype(np.float32)
    embedding[:, 0] = 4.0  # the one thing every state has in common, see `output_weights`
    yield "token_embd.weight", embedding
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", ones
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", matrix(dim, dim)
        yield f"blk.{layer}.ffn_gate.weight", matrix(2 * dim, dim)
        yield f"blk.{layer}.ffn_up.weight", matrix(2 * dim, dim)
        yield f"blk.{layer}.ffn_down.weight", matrix(dim, 2 * dim)
    yield "output_norm.weight", ones
    yield "output.weight", output_weights(rng, tokens, dim)


def output_weights(rng: np.random.Generator, tokens: list[bytes], dim: int) -> NDArray[np.float32]:
    """Whole words and the end of a turn are likely, everything else is not: babble in words, of a decent length."""
    weights = rng.standard_normal((len(tokens), dim)) * dim**-0.5 * 1.5
    words = {f"▁{word}".encode() for word in WORDS} | {b"<|end|>"}
    weights[[token not in words for token in tokens], 0] = -10.0
    narrowed: NDArray[np.float32] = weights.astype(np.float32)
    return narrowed


def vocabulary() -> tuple[list[bytes], list[float], list[TokenType]]:
    """Unknown, control, 256 bytes, words (with the space in front), letters; scores make longer pieces win."""
    tokens: list[bytes] = [b"<unk>"]
    types = [TokenType.UNKNOWN]
    tokens += [text.encode() for text in CONTROL]
    types += [TokenType.CONTROL] * len(CONTROL)
    tokens += [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types += [TokenType.BYTE] * 256
    words = [f"▁{word}".encode() for word in dict.fromkeys(WORDS)]
    letters = [chr(code).encode() for code in range(0x21, 0x7F)] + ["▁".encode()]
    # SPM merges pairs only, so each word needs its beginnings as pieces too
    beginnings = {word[:end].decode(errors="ignore").encode() for word in words for end in range(1, len(word))} - set(
        words
    )
    pieces = words + sorted(piece for piece in beginnings - set(letters) if piece) + letters
    tokens += pieces
    types += [TokenType.NORMAL] * len(pieces)
    scores = [0.0] * (len(tokens) - len(pieces)) + [float(len(piece)) - 20.0 for piece in pieces]
    return tokens, scores, types
