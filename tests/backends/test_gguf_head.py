"""What a file says of itself, without llama.cpp; and what a hostile one does not do."""

import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter

from backends.errors import ModelFileUnusable
from backends.gguf_head import check_whole, read_head


def test_a_chat_model_tells_its_window_and_what_a_token_takes(synthetic_gguf: Path) -> None:
    head = read_head(synthetic_gguf)
    assert (head.architecture, head.name, head.serves, head.context_tokens) == ("llama", "synthetic", "chat", 4096)
    assert head.cell_bytes == 2 * 64 * 2 * 2, "layers, width, keys and values, two bytes each"
    assert head.chat_template


def test_an_embedding_model_keeps_nothing(minilm_gguf: Path) -> None:
    head = read_head(minilm_gguf)
    assert (head.architecture, head.serves, head.context_tokens, head.cell_bytes) == ("bert", "embeddings", 512, 0)
    assert head.quantization == "Q8_0"


def written(path: Path, architecture: str = "qwen3", **fields: int | list[int]) -> Path:
    writer = GGUFWriter(path, architecture)
    for name, value in fields.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        writer.add_array(key, value) if isinstance(value, list) else writer.add_uint32(key, value)
    writer.add_array("tokenizer.ggml.tokens", ["a" * 30] * 50_000)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_heads_of_their_own_width_and_by_layer_are_counted(tmp_path: Path) -> None:
    shape = {"block_count": 3, "embedding_length": 64, "attention__head_count": 4}
    head = read_head(
        written(
            tmp_path / "a", **shape, attention__head_count_kv=2, attention__key_length=32, attention__value_length=48
        )
    )
    assert head.cell_bytes == 3 * 2 * (32 + 48) * 2
    head = read_head(written(tmp_path / "b", **shape, attention__head_count_kv=[2, 0, 1]))
    assert head.cell_bytes == 3 * (16 + 16) * 2
    assert head.chat_template, "it stands behind the vocabulary"


@pytest.mark.parametrize(("pooling", "serves"), [(0, "chat"), (1, "embeddings"), (3, "embeddings"), (4, "rerank")])
def test_pooling_says_what_it_serves(tmp_path: Path, pooling: int, serves: str) -> None:
    assert read_head(written(tmp_path / "m", pooling_type=pooling)).serves == serves


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04" * 100,
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 99),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    ],
)
def test_what_is_no_gguf_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileUnusable, match="no GGUF file, or a damaged one"):
        read_head(path)
    with pytest.raises(ModelFileUnusable, match="No such file"):
        read_head(tmp_path / "gone.gguf")


def test_a_file_whose_tensors_do_not_lie_inside_of_it_is_not_whole(tmp_path: Path, synthetic_gguf: Path) -> None:
    check_whole(synthetic_gguf)
    data = synthetic_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (len(data) - 64, len(data) // 2):
        cut.write_bytes(data[:size])
        with pytest.raises(ModelFileUnusable, match="has been cut"):
            check_whole(cut)
    cut.write_bytes(data[:200])
    with pytest.raises(ModelFileUnusable, match="damaged"):
        check_whole(cut)


@pytest.mark.parametrize(
    "tensor",
    [
        struct.pack("<QI", 0, 2**31),
        struct.pack("<QIQQIQ", 0, 2, 2**63, 2**63, 0, 0),
        struct.pack("<QIQIQ", 0, 1, 32, 9999, 2**63),
    ],
)
def test_tensors_that_lie_nowhere_are_no_whole_file(tmp_path: Path, tensor: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)
    with pytest.raises(ModelFileUnusable):
        check_whole(path)


def test_what_a_terminal_would_obey_is_left_out_and_numbers_without_end_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "x\x1b]0;mine\x07[/b]")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_head(path).architecture == "x]0;mine[/b]"
    writer = GGUFWriter(path, "llama")
    writer.add_float32("llama.context_length", float("inf"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileUnusable, match="damaged"):
        read_head(path)
