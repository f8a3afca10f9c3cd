"""TokenizerService over gRPC: `python -m services.tokenizer.server`."""

import asyncio
from collections.abc import Sequence
from typing import Any

from anthesis.v1 import tokenizer_pb2 as pb
from anthesis.v1 import tokenizer_pb2_grpc as pb_grpc

from services.common.access import Access, Permission
from services.common.artifacts import ArtifactStore
from services.common.auth import Authenticate, OnDenied, RegistryAuthenticator, current_project
from services.common.errors import FailedPrecondition
from services.common.logs import set_up_logging
from services.common.server import GrpcServer
from services.common.settings import Platform
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.loaded import Encoding, Span
from services.tokenizer.registry_client import RegistryClient
from services.tokenizer.service import TokenizerService

SERVICE = "anthesis.v1.TokenizerService"
ACCESS: Access = {
    **dict.fromkeys(("Encode", "Decode", "CountTokens", "GetVocabulary"), Permission.INTERNAL),
    "TrainTokenizer": Permission.TRAIN,
}


class TokenizerServicer(pb_grpc.TokenizerServiceServicer):
    def __init__(self, service: TokenizerService, registry: RegistryClient | None) -> None:
        self._service = service
        self._registry = registry

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:
        encodings = await self._service.encode(
            request.tokenizer_digest, request.texts, with_offsets=request.with_offsets
        )
        return pb.EncodeResponse(encodings=map(_encoding_to_proto, encodings))

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:
        texts = await self._service.decode(
            request.tokenizer_digest,
            [item.ids for item in request.batch],
            skip_special_tokens=request.skip_special_tokens,
        )
        return pb.DecodeResponse(texts=texts)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:
        return pb.CountTokensResponse(counts=await self._service.count(request.tokenizer_digest, request.texts))

    async def GetVocabulary(self, request: pb.GetVocabularyRequest, context: Any) -> pb.GetVocabularyResponse:
        vocabulary = await self._service.vocabulary(request.tokenizer_digest)
        return pb.GetVocabularyResponse(
            tokenizer_digest=request.tokenizer_digest, tokens=vocabulary.tokens, special_ids=vocabulary.special_ids
        )

    async def TrainTokenizer(self, request: pb.TrainTokenizerRequest, context: Any) -> pb.TrainTokenizerResponse:
        registry = self._for_project() if current_project() else None
        if registry:
            await registry.check_readable(request.dataset_digests)
        trained = await self._service.train(
            request.dataset_digests, vocab_size=request.vocab_size, min_frequency=request.min_frequency
        )
        if registry:
            await registry.note(trained.digest, trained.size_bytes)
        return pb.TrainTokenizerResponse(
            tokenizer_digest=trained.digest,
            vocab_size=trained.vocab_size,
            num_texts=trained.num_texts,
            num_bytes=trained.num_bytes,
        )

    def _for_project(self) -> RegistryClient:
        if self._registry is None:
            raise FailedPrecondition("this tokenizer service has no registry to ask what a project may read")
        return self._registry


def _encoding_to_proto(encoding: Encoding) -> pb.Encoding:
    return pb.Encoding(
        ids=encoding.ids,
        byte_offsets=_spans_to_proto(encoding.byte_offsets),
        char_offsets=_spans_to_proto(encoding.char_offsets),
    )


def _spans_to_proto(spans: Sequence[Span]) -> list[pb.Span]:
    return [pb.Span(start=start, end=end) for start, end in spans]


def build_server(
    address: str,
    store: ArtifactStore,
    authenticate: Authenticate,
    config: TokenizerConfig | None = None,
    on_denied: OnDenied | None = None,
    registry: RegistryClient | None = None,
) -> GrpcServer:
    """`registry` says what a project may read; without it projects' keys train no tokenizer."""
    server = GrpcServer("tokenizer", address, authenticate=authenticate, on_denied=on_denied)
    servicer = TokenizerServicer(TokenizerService(store, config or TokenizerConfig()), registry)
    server.add(pb_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE, ACCESS)
    return server


def main() -> None:
    set_up_logging("tokenizer")
    platform = Platform.from_env()
    store = ArtifactStore(platform.artifacts_url, platform.data_dir / "cache")
    key = platform.read_key("tokenizer")
    authenticate = RegistryAuthenticator(platform.registry_address, key)
    registry = RegistryClient(platform.registry_address, key)
    denied = authenticate.report_denied
    server = build_server(platform.tokenizer_address, store, authenticate, on_denied=denied, registry=registry)
    asyncio.run(server.run())


if __name__ == "__main__":
    main()
