"""Tokenizer training."""

from collections.abc import Iterable

import grpc

from anthesis.rpc import unary
from anthesis.v1 import tokenizer_pb2 as pb
from anthesis.v1.tokenizer_pb2_grpc import TokenizerServiceStub


class Tokenizers:
    """The tokenizer service, which is internal: needs its address, and a trainer's key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = TokenizerServiceStub(channel)

    async def train(
        self, dataset_digests: Iterable[str], vocab_size: int, *, min_frequency: int = 0
    ) -> pb.TrainTokenizerResponse:
        """Train a byte-level BPE on JSONL artifacts; the answer's digest names the stored tokenizer."""
        request = pb.TrainTokenizerRequest(
            dataset_digests=dataset_digests, vocab_size=vocab_size, min_frequency=min_frequency
        )
        return await unary(self._stub.TrainTokenizer(request))
