"""What the tokenizer service is told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    max_loaded: int = 16  # tokenizers kept in memory, about 150 MB each at BLOOM's 250,680 ids
