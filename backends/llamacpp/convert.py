"""A sentence-transformers BERT checkpoint -> a GGUF that llama.cpp loads, in float32, float16 or Q8_0.

Names and metadata follow llama.cpp's own converter (`conversion/bert.py` in its tree), which needs PyTorch; this needs numpy.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

POOLING = {"pooling_mode_mean_tokens": gguf.PoolingType.MEAN, "pooling_mode_cls_token": gguf.PoolingType.CLS}

KINDS = {
    "f32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
}
"""What matrices become; Q8_0 is kept in blocks of 32."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

LAYER_PARTS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


DIMENSIONS = ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size", "intermediate_size")
MOST, MOST_LAYERS = 10_000_000, 1000
"""Of anything that `config.json` counts, and of layers: no BERT has more."""


class Checkpoint(NamedTuple):
    """The files of a checkpoint, read. `vocabulary`: one token per line, in order of id."""

    config: Mapping[str, Any]
    pooling: Mapping[str, Any]
    vocabulary: list[str]
    weights: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> "Checkpoint":
        """`files`: contents by name, as they lie in the checkpoint's folder."""
        return cls(
            config=json.loads(files["config.json"]),
            pooling=json.loads(files["1_Pooling/config.json"]),
            vocabulary=lines_of(files["vocab.txt"]),
            weights=load(files["model.safetensors"]),
        )


def lines_of(vocabulary: bytes) -> list[str]:
    return vocabulary.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")


def write_bert(checkpoint: Checkpoint, path: Path, *, name: str, kind: str = "q8_0") -> Path:
    """
    Args:
        kind: of `KINDS`.

    Raises:
        ValueError: not a BERT checkpoint of a kind that this converter knows.
    """
    config = checkpoint.config
    if config.get("model_type") != "bert":
        raise ValueError(f"a checkpoint of type {config.get('model_type')!r}; only bert can be converted")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            "a BERT with other positions or activations than the usual ones, which llama.cpp does not compute"
        )
    _check_config(config)
    _check_tensors(_shapes(config), checkpoint.weights)
    file_type, matrices = KINDS[kind]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(_pooling(checkpoint.pooling))
    writer.add_file_type(file_type)
    _add_vocabulary(writer, checkpoint.vocabulary, config)
    for tensor, values in _tensors(checkpoint.weights):
        _add_tensor(writer, tensor, values, matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _check_config(config: Mapping[str, Any]) -> None:
    """Before anything is made as large as it says."""
    counts = dict.fromkeys((*DIMENSIONS, "num_attention_heads"), MOST) | {"num_hidden_layers": MOST_LAYERS}
    for name, most in counts.items():
        value = config[name]
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"config.json has {name}: {value!r}, and not a whole number from 1 to {most}")
    if not isinstance(config["layer_norm_eps"], float) or not 0 < config["layer_norm_eps"] < 1:
        raise ValueError(
            f"config.json has layer_norm_eps: {config['layer_norm_eps']!r}, and not a number between 0 and 1"
        )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(f"{config['num_attention_heads']} heads cannot share a hidden_size of {config['hidden_size']}")


def _check_tensors(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[Any]]) -> None:
    """llama.cpp's own words about such files come late, and some of them end its process.

    Raises:
        ValueError: `config.json` says something else than the tensors, or a number is none.
    """
    found = {target: values for name, values in weights.items() if (target := _target(name.removeprefix("bert.")))}
    if lacking := sorted(set(expected) - set(found)):
        raise ValueError(f"the checkpoint lacks {len(lacking)} of its tensors ({lacking[0]} among them)")
    if others := sorted(set(found) - set(expected)):
        raise ValueError(
            f"the checkpoint holds {len(others)} tensors that its config.json does not know ({others[0]} among them)"
        )
    for name, values in found.items():
        if values.shape != expected[name]:
            raise ValueError(f"{name} has the shape {values.shape}, and by config.json it would be {expected[name]}")
        if not np.isfinite(values.astype(np.float32)).all():
            raise ValueError(f"{name} holds numbers that are not finite, in float32 at least")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """llama.cpp's names, and what BERT has there."""
    words, positions, types, width, feed = (config[name] for name in DIMENSIONS)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (words, width), "position_embd.weight": (positions, width), "token_types.weight": (types, width),
        "token_embd_norm.weight": (width,), "token_embd_norm.bias": (width,),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for part in LAYER_PARTS.values():
            rows, columns = feed if part == "ffn_up" else width, feed if part == "ffn_down" else width
            shapes[f"blk.{layer}.{part}.weight"] = (width,) if part.endswith("norm") else (rows, columns)
            shapes[f"blk.{layer}.{part}.bias"] = (rows,)
    return shapes


def _pooling(modes: Mapping[str, Any]) -> gguf.PoolingType:
    chosen = [mode for mode, on in modes.items() if mode.startswith("pooling_mode_") and on]
    if len(chosen) == 1 and chosen[0] in POOLING:
        return POOLING[chosen[0]]
    raise ValueError("the checkpoint pools in a way that llama.cpp does not know (mean and cls can be converted)")


def _add_vocabulary(writer: gguf.GGUFWriter, words: list[str], config: Mapping[str, Any]) -> None:
    """WordPiece as llama.cpp wants it: beginnings of words carry ▁, continuations lose their ##."""
    if missing := [token for token in SPECIAL if token not in words]:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
    if len(words) > config["vocab_size"]:
        raise ValueError(
            f"the vocabulary has {len(words)} lines, and the checkpoint vectors for {config['vocab_size']} only"
        )
    if len(set(words)) != len(words):
        raise ValueError("the vocabulary has a line twice")
    words = words + [f"[unused-{number}]" for number in range(len(words), config["vocab_size"])]
    control = {*SPECIAL, *(word for word in words if word.startswith("[unused"))}
    tokens = [word if word in control else word[2:] if word.startswith("##") else f"▁{word}" for word in words]
    types = [gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in words]
    writer.add_vocab_size(len(words))
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_types(types)
    pad, unknown, cls, sep, mask = (words.index(token) for token in SPECIAL)
    writer.add_pad_token_id(pad)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(cls)
    writer.add_sep_token_id(sep)
    writer.add_eos_token_id(sep)
    writer.add_mask_token_id(mask)


def _tensors(weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, values in weights.items():
        if (target := _target(name.removeprefix("bert."))) is not None:
            yield target, values.astype(np.float32)


def _target(name: str) -> str | None:
    """llama.cpp's name for a tensor; None for those it does not use (the pooler, position ids)."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    if name.startswith("encoder.layer."):
        layer, _, rest = name.removeprefix("encoder.layer.").partition(".")
        part, _, kind = rest.rpartition(".")
        if part in LAYER_PARTS:
            return f"blk.{layer}.{LAYER_PARTS[part]}.{kind}"
    if name.startswith(("pooler.", "embeddings.position_ids")):
        return None
    raise ValueError(f"the checkpoint holds a tensor that BERT does not have: {name}")


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], matrices: gguf.GGMLQuantizationType
) -> None:
    """Vectors and the small position tables, which llama.cpp adds as they are, stay in float32."""
    kind = matrices
    if values.ndim != 2 or name in ("position_embd.weight", "token_types.weight"):
        kind = gguf.GGMLQuantizationType.F32
    elif kind == gguf.GGMLQuantizationType.Q8_0 and values.shape[1] % 32:
        kind = gguf.GGMLQuantizationType.F16  # its rows do not fill blocks
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
