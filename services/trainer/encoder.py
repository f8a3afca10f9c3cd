"""Texts to token ids, for whoever writes what a model learns from."""

from pathlib import Path

from tokenizers import Tokenizer


class Encoder:
    """Texts to ids, in batches. BPE-dropout where asked; special tokens as written by us only; nothing is cut."""

    def __init__(self, path: Path, bpe_dropout: float = 0.0) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if bpe_dropout:
            self._tokenizer.model.dropout = bpe_dropout
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos = self.id_of("</s>")

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
