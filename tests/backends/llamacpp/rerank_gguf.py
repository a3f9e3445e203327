"""A tiny BERT with random weights and one output: scores pairs, and means nothing by it."""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the road river stone bridge sun falls rises high low".split()]
DIM, CONTEXT = 32, 64


def write_reranker(path: Path, *, head: bool = True, template: str | None = None) -> Path:
    """
    Args:
        head: False: the file of a model that makes vectors only.
        template: how a query and a document are put together.
    """
    rng = np.random.default_rng(5)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(DIM)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if head else gguf.PoolingType.MEAN)
    writer.add_vocab_size(len(WORDS))
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([(word if word[0] == "[" else f"▁{word}").encode() for word in WORDS])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if word[0] == "[" else normal for word in WORDS])
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    if template is not None:
        writer.add_chat_template([{"name": "rerank", "template": template}])
    tensors = {
        "token_embd.weight": matrix(len(WORDS), DIM),
        "position_embd.weight": matrix(CONTEXT, DIM),
        "token_types.weight": matrix(2, DIM),
        "blk.0.ffn_up.weight": matrix(DIM, DIM),
        "blk.0.ffn_down.weight": matrix(DIM, DIM),
    }
    tensors |= {f"blk.0.attn_{part}.weight": matrix(DIM, DIM) for part in ("q", "k", "v", "output")}
    biases = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"]
    tensors |= {f"blk.0.{part}.bias": matrix(DIM) for part in biases}
    for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensors |= {f"{norm}.weight": np.ones(DIM, np.float32), f"{norm}.bias": matrix(DIM)}
    if head:
        tensors |= {"cls.weight": matrix(DIM, DIM), "cls.bias": matrix(DIM)}
        tensors |= {"cls.output.weight": matrix(1, DIM), "cls.output.bias": matrix(1)}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
