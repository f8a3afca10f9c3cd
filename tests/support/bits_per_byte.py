"""Bits per byte by transformers: text by text, no packing, no padding, no ranks."""

import math
from collections import defaultdict
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

END = "</s>"


@torch.no_grad()
def bits_per_byte(
    model: BloomForCausalLM, tokenizer: Tokenizer, rows: list[dict[str, Any]], window: int
) -> dict[str, tuple[float, int]]:
    """Language -> (bits per byte, UTF-8 bytes) of TEXT rows without context.

    The policy of services/trainer/validation_windows.py, written down a second time: a text follows </s>; each further
    window of `window` targets begins with the last token of the one before.
    """
    model.eval()
    nats: dict[str, float] = defaultdict(float)
    num_bytes: dict[str, int] = defaultdict(int)
    for row in rows:
        language = row.get("language", "")
        ids = [tokenizer.token_to_id(END), *tokenizer.encode(row["text"], add_special_tokens=False).ids]
        num_bytes[language] += len(row["text"].encode())
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor(ids[start : start + window + 1])
            log_probs = model(input_ids=piece[None, :-1]).logits[0].double().log_softmax(-1)
            nats[language] -= float(log_probs.gather(1, piece[1:, None]).sum())
    return {name: (nats[name] / math.log(2) / num_bytes[name], num_bytes[name]) for name in nats}
