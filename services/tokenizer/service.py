"""What the tokenizer service does: finds a tokenizer by its digest and works with it in a thread."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anthesis.decoding import Vocabulary

from bloom import bpe
from services.common.artifacts import ArtifactStore, check_digest
from services.common.corpus import Corpus
from services.common.errors import InvalidArgument
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.loaded import Encoding, LoadedTokenizer

MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 512, 1_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    digest: str
    vocab_size: int
    num_texts: int
    num_bytes: int
    size_bytes: int  # of the artifact


class TokenizerService:
    def __init__(self, store: ArtifactStore, config: TokenizerConfig) -> None:
        self._store = store
        self._config = config
        self._loaded: OrderedDict[str, asyncio.Task[LoadedTokenizer]] = OrderedDict()  # least recently used first

    async def encode(self, digest: str, texts: Sequence[str], *, with_offsets: bool) -> list[Encoding]:
        return await self._with(digest, lambda tokenizer: tokenizer.encode(texts, with_offsets=with_offsets))

    async def decode(self, digest: str, batch: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        return await self._with(
            digest,
            lambda tokenizer: [tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch],
        )

    async def count(self, digest: str, texts: Sequence[str]) -> list[int]:
        return await self._with(digest, lambda tokenizer: tokenizer.count(texts))

    async def vocabulary(self, digest: str) -> Vocabulary:
        return await self._with(digest, LoadedTokenizer.vocabulary)

    async def train(self, dataset_digests: Sequence[str], *, vocab_size: int, min_frequency: int) -> TrainedTokenizer:
        """Train on the datasets and store the result: the same datasets give the same digest."""
        if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
            raise InvalidArgument(f"vocab_size {vocab_size} is not between {MIN_VOCAB_SIZE} and {MAX_VOCAB_SIZE}")
        if not dataset_digests:
            raise InvalidArgument("dataset_digests is empty; name at least one JSONL artifact")
        return await asyncio.to_thread(self._train, dataset_digests, vocab_size, min_frequency or 2)

    def _train(self, dataset_digests: Sequence[str], vocab_size: int, min_frequency: int) -> TrainedTokenizer:
        corpus = Corpus(self._store, dataset_digests)
        tokenizer = bpe.train(corpus, vocab_size=vocab_size, min_frequency=min_frequency)
        data = tokenizer.to_str().encode()
        digest = self._store.write_bytes(data)
        return TrainedTokenizer(digest, tokenizer.get_vocab_size(), corpus.num_texts, corpus.num_bytes, len(data))

    async def _with(self, digest: str, use: Callable[[LoadedTokenizer], T]) -> T:
        tokenizer = await self._load(digest)
        return await asyncio.to_thread(use, tokenizer)

    async def _load(self, digest: str) -> LoadedTokenizer:
        """The tokenizer, read once however many ask at the same time. Raises NotFound, InvalidArgument."""
        task = self._loaded.get(digest)
        if task is None:
            check_digest(digest)
            task = self._loaded[digest] = asyncio.create_task(asyncio.to_thread(self._read, digest))
            if len(self._loaded) > self._config.max_loaded:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(digest)
        try:
            return await asyncio.shield(task)  # a caller that gives up takes nobody else's tokenizer away
        except Exception:
            self._loaded.pop(digest, None)
            raise

    def _read(self, digest: str) -> LoadedTokenizer:
        return LoadedTokenizer(digest, self._store.read_bytes(digest))
