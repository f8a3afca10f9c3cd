"""A Hugging Face BLOOM folder as GGUF, for llama.cpp: `-m benchmarks.peers.gguf IN OUT` in the environment `venv`.

Matrices f16, vectors f32; the rows of qkv, which BLOOM interleaves by head, are grouped by q, k, v. The vocabulary is a
stand-in: llama.cpp is given token ids.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
OTHER_NAMES = {
    "word_embeddings.weight": "token_embd.weight",
    "word_embeddings_layernorm.weight": "token_embd_norm.weight",
    "word_embeddings_layernorm.bias": "token_embd_norm.bias",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
NUM_SPECIAL = 4


def gguf_name(name: str) -> str:
    """`h.3.mlp.dense_4h_to_h.bias` -> `blk.3.ffn_down.bias`."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def convert(source: Path, target: Path) -> None:
    import gguf  # type: ignore[import-not-found, unused-ignore]

    config = json.loads((source / "config.json").read_text())
    partial = target.with_name(target.name + ".partial")
    writer: Any = gguf.GGUFWriter(str(partial), "bloom")
    writer.add_name("bloom of random weights")
    writer.add_context_length(config["seq_length"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_head_count_kv(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, gguf.TokenType, config["vocab_size"])
    for name, array in _tensors(source, config["n_head"]):
        writer.add_tensor(gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _add_vocabulary(writer: Any, token_type: Any, size: int) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte alphabet
    byte_tokens = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *byte_tokens]
    tokens += [f"token_{i}" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("bloom")
    writer.add_token_list(tokens)
    writer.add_token_types([token_type.CONTROL] * NUM_SPECIAL + [token_type.NORMAL] * (size - NUM_SPECIAL))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)


def _tensors(source: Path, num_heads: int) -> Iterator[tuple[str, Any]]:
    from safetensors.numpy import load_file

    for stored, tensor in load_file(source / "model.safetensors").items():
        name = stored.removeprefix("transformer.")
        if "query_key_value" in name:
            by_head = tensor.reshape(num_heads, 3, -1, *tensor.shape[1:])
            tensor = np.concatenate([by_head[:, part].reshape(-1, *tensor.shape[1:]) for part in range(3)])
        yield name, tensor.astype(np.float32 if tensor.ndim == 1 else np.float16)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
