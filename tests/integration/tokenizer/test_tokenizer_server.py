"""TokenizerService over real gRPC on a real artifact store."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from anthesis.channel import open_aio_channel
from anthesis.decoding import Vocabulary
from anthesis.v1 import tokenizer_pb2 as pb
from anthesis.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import Tokenizer, models

from services.common.artifacts import ArtifactStore
from services.common.auth import Principal
from services.common.errors import Unauthenticated
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.server import build_server
from tests.support.tokenizers import TEXTS, small_tokenizer_json

ROLES = {"service-key": "service", "user-key": "user", "trainer-key": "trainer", "admin-key": "admin"}


async def authenticate(secret: str) -> Principal:
    if secret not in ROLES:
        raise Unauthenticated("unknown API key")
    return Principal("id", secret, ROLES[secret])


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def digest(store: ArtifactStore) -> str:
    return store.write_bytes(small_tokenizer_json().encode())


@pytest.fixture
async def address(store: ArtifactStore) -> AsyncIterator[str]:
    server = build_server("127.0.0.1:0", store, authenticate, TokenizerConfig(max_loaded=2))
    port = await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def stub(address: str) -> AsyncIterator[TokenizerServiceStub]:
    async with open_aio_channel(address, "admin-key") as channel:
        yield TokenizerServiceStub(channel)


async def error_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_batch_is_encoded_in_order_and_comes_back(stub, digest: str) -> None:
    texts = [*TEXTS, "", "\x00", "</s>"]
    encoded = await stub.Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=texts, with_offsets=True))
    batch = [pb.TokenIds(ids=encoding.ids) for encoding in encoded.encodings]
    decoded = await stub.Decode(pb.DecodeRequest(tokenizer_digest=digest, batch=batch))
    counted = await stub.CountTokens(pb.CountTokensRequest(tokenizer_digest=digest, texts=texts))
    assert list(decoded.texts) == texts
    assert list(counted.counts) == [len(encoding.ids) for encoding in encoded.encodings]
    for text, encoding in zip(texts, encoded.encodings, strict=True):
        assert encoding.byte_offsets[-1].end == len(text.encode()) if text else not encoding.byte_offsets


async def test_offsets_are_left_out_unless_asked_for(stub, digest: str) -> None:
    (encoding,) = (await stub.Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=["a"]))).encodings
    assert encoding.ids
    assert not encoding.byte_offsets
    assert not encoding.char_offsets


async def test_the_vocabulary_decodes_what_encode_gives(stub, digest: str) -> None:
    answer = await stub.GetVocabulary(pb.GetVocabularyRequest(tokenizer_digest=digest))
    vocabulary = Vocabulary(answer.tokens, answer.special_ids)
    (encoding,) = (await stub.Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=[TEXTS[4]]))).encodings
    assert vocabulary.decode(encoding.ids) == TEXTS[4]
    assert answer.special_ids["</s>"] == 2
    assert answer.tokenizer_digest == digest


async def test_unknown_and_malformed_digests_are_told_apart(stub) -> None:
    absent = "sha256:" + "0" * 64
    code, details = await error_of(stub.Encode(pb.EncodeRequest(tokenizer_digest=absent, texts=["a"])))
    assert code == grpc.StatusCode.NOT_FOUND
    assert absent in details
    code, details = await error_of(stub.Encode(pb.EncodeRequest(tokenizer_digest="../../etc", texts=["a"])))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "'../../etc'" in details


async def test_a_tokenizer_that_arrives_after_a_failed_call_is_served(stub, store: ArtifactStore) -> None:
    data = small_tokenizer_json(600).encode()
    digest = ArtifactStore(str(store._root) + "-other", Path()).write_bytes(data)
    assert (await error_of(stub.Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=["a"]))))[0].name == "NOT_FOUND"
    store.write_bytes(data)
    assert (await stub.Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=["a"]))).encodings


async def test_an_id_that_is_not_there_is_named(stub, digest: str) -> None:
    request = pb.DecodeRequest(tokenizer_digest=digest, batch=[pb.TokenIds(ids=[5, 250_700])])
    code, details = await error_of(stub.Decode(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "250700" in details


async def test_a_tokenizer_that_is_not_byte_level_has_no_vocabulary(stub, store: ArtifactStore) -> None:
    other = store.write_bytes(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})).to_str().encode())
    code, details = await error_of(stub.GetVocabulary(pb.GetVocabularyRequest(tokenizer_digest=other)))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "WordPiece" in details


async def test_more_tokenizers_than_are_kept_are_all_served_at_once(stub, store: ArtifactStore) -> None:
    digests = [store.write_bytes(small_tokenizer_json(size).encode()) for size in (512, 540, 580, 620)]
    calls = (stub.GetVocabulary(pb.GetVocabularyRequest(tokenizer_digest=digest)) for digest in digests * 3)
    sizes = [len(answer.tokens) for answer in await asyncio.gather(*calls)]
    assert sizes == [512, 540, 580, 620] * 3


async def test_training_twice_gives_one_artifact_that_serves(stub, store: ArtifactStore) -> None:
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    dataset = store.write_bytes(rows.encode())
    request = pb.TrainTokenizerRequest(dataset_digests=[dataset], vocab_size=512, min_frequency=1)
    first, second = await stub.TrainTokenizer(request), await stub.TrainTokenizer(request)
    assert first == second
    assert first.vocab_size == 512
    assert first.num_texts == len(TEXTS)
    assert first.num_bytes == sum(len(text.encode()) for text in TEXTS)
    (encoding,) = (await stub.Encode(pb.EncodeRequest(tokenizer_digest=first.tokenizer_digest, texts=["😀"]))).encodings
    assert encoding.ids


async def test_a_bad_row_stops_training_and_is_named(stub, store: ArtifactStore) -> None:
    dataset = store.write_bytes(b'{"text": "a"}\n{"text": 7}\n')
    request = pb.TrainTokenizerRequest(dataset_digests=[dataset], vocab_size=512)
    code, details = await error_of(stub.TrainTokenizer(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "row 2" in details
    assert "'text' is 7" in details


@pytest.mark.parametrize("vocab_size", [0, 511, 1_000_001])
async def test_a_vocabulary_size_out_of_range_is_refused(stub, vocab_size: int) -> None:
    request = pb.TrainTokenizerRequest(dataset_digests=["sha256:" + "0" * 64], vocab_size=vocab_size)
    code, details = await error_of(stub.TrainTokenizer(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"vocab_size {vocab_size} is not between 512 and 1000000" in details


async def test_training_on_nothing_is_refused(stub) -> None:
    assert (await error_of(stub.TrainTokenizer(pb.TrainTokenizerRequest(vocab_size=512))))[0].name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("key", "code"), [("trainer-key", "PERMISSION_DENIED"), ("nobody", "UNAUTHENTICATED")])
async def test_only_services_and_admins_may_call(address: str, digest: str, key: str, code: str) -> None:
    async with open_aio_channel(address, key) as channel:
        call = TokenizerServiceStub(channel).Encode(pb.EncodeRequest(tokenizer_digest=digest, texts=["a"]))
        assert (await error_of(call))[0].name == code


async def test_who_trains_models_trains_tokenizers(address: str) -> None:
    codes = {}
    for key in ("trainer-key", "user-key", "service-key"):
        async with open_aio_channel(address, key) as channel:
            call = TokenizerServiceStub(channel).TrainTokenizer(pb.TrainTokenizerRequest(vocab_size=512))
            codes[key] = (await error_of(call))[0].name
    denied = "PERMISSION_DENIED"
    assert codes == {"trainer-key": "INVALID_ARGUMENT", "user-key": denied, "service-key": denied}


async def test_health_needs_no_key(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="anthesis.v1.TokenizerService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
