"""What the gateway asks the tokenizer service. Decoding is not among it: a vocabulary is fetched once per digest."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from anthesis.decoding import Vocabulary
from anthesis.v1 import tokenizer_pb2 as pb
from anthesis.v1 import tokenizer_pb2_grpc as pb_grpc

from services.gateway.memo import Memo
from services.gateway.upstream import upstream

TIMEOUT_S = 60.0
Span = tuple[int, int]  # half open


@dataclass(frozen=True, slots=True)
class Encoding:
    ids: list[int]
    byte_offsets: list[Span]
    char_offsets: list[Span]


class TokenizerClient:
    def __init__(self, channel: grpc.aio.Channel, address: str, *, max_vocabularies: int) -> None:
        self._stub: pb_grpc.TokenizerServiceAsyncStub = pb_grpc.TokenizerServiceStub(channel)
        self._name = f"the tokenizer service at {address}"
        self._vocabularies = Memo(self._get_vocabulary, max_size=max_vocabularies)

    async def vocabulary(self, digest: str) -> Vocabulary:
        """The table id -> bytes. Raises FailedPrecondition for a tokenizer that is not byte-level."""
        return await self._vocabularies.get(digest)

    async def _get_vocabulary(self, digest: str) -> Vocabulary:
        with upstream(self._name):
            request = pb.GetVocabularyRequest(tokenizer_digest=digest)
            answer = await self._stub.GetVocabulary(request, timeout=TIMEOUT_S)
        return Vocabulary(answer.tokens, answer.special_ids)

    async def encode(self, digest: str, texts: Sequence[str]) -> list[list[int]]:
        return [list(encoding.ids) for encoding in await self._encode(digest, texts, with_offsets=False)]

    async def encode_with_offsets(self, digest: str, text: str) -> Encoding:
        (encoding,) = await self._encode(digest, [text], with_offsets=True)
        return Encoding(
            list(encoding.ids),
            [(span.start, span.end) for span in encoding.byte_offsets],
            [(span.start, span.end) for span in encoding.char_offsets],
        )

    async def _encode(self, digest: str, texts: Sequence[str], *, with_offsets: bool) -> Sequence[pb.Encoding]:
        if not texts:
            return []
        request = pb.EncodeRequest(tokenizer_digest=digest, texts=texts, with_offsets=with_offsets)
        with upstream(self._name):
            return (await self._stub.Encode(request, timeout=TIMEOUT_S)).encodings

    async def count(self, digest: str, texts: Sequence[str]) -> list[int]:
        request = pb.CountTokensRequest(tokenizer_digest=digest, texts=texts)
        with upstream(self._name):
            return list((await self._stub.CountTokens(request, timeout=TIMEOUT_S)).counts)
