"""Bad input at the doors users use: a canonical status, a message with the value and the remedy, nothing changed."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from anthesis import Client, FineTuneSpec, LoraOptions, PretrainSpec, SamplingParams, Settings, TrainOptions
from anthesis.artifacts import digest_file
from anthesis.channel import open_channel
from anthesis.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from anthesis.v1.job_pb2 import JOB_STATE_CANCELLED, JobEvent
from anthesis.v1.registry_pb2 import (
    DATASET_FORMAT_TEXT,
    Model,
    ModelFile,
    ModelVersion,
    UploadArtifactRequest,
    UploadHeader,
)
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from bloom.tensors import expected_tensors
from tests.e2e.conftest import LocalPlatform, anthesis
from tests.support.registry_data import TINY, safetensors_bytes, text_rows, tokenizer_bytes

SERVED_TOKENS = 2048
NO_SUCH_MODEL = "no model, version or alias 'nobody'; `anthesis models list` shows what there is"
BAD_ROWS = b'{"text": "good"}\n{"txt": "a"}\n\n{"text": 5}\n["a"]\n{"text": "\xff"}\n'
BAD_ROWS_REPORT = """5 of 6 rows are not TEXT rows; correct them and upload again
row 2: no "text"
row 3: empty line
row 4: "text" is a JSON number, not a string
row 5: a JSON array, not an object
row 6: not UTF-8"""


@pytest.fixture(autouse=True)
def nothing_changed(platform: LocalPlatform) -> Iterator[None]:
    """Whatever a test does here, no model, version, alias, deployment, dataset, job or key is there afterwards."""
    before = catalogue(platform.client)
    yield
    assert catalogue(platform.client) == before


def catalogue(client: Client) -> dict[str, object]:
    return {
        "models": {model.name: model.latest_version for model in client.models.list()},
        "aliases": {alias.name: alias.version for alias in client.aliases.list()},
        "deployments": {item.name: item.version for item in client.deployments.list()},
        "datasets": {dataset.name for dataset in client.datasets.list() if not dataset.name.startswith("good-")},
        "jobs": {job.id for job in client.jobs.list() if job.state != JOB_STATE_CANCELLED},
        "keys": {key.id for key in client.keys.list()},
    }


def assert_not_stored(client: Client, digest: str) -> None:
    with pytest.raises(NotFoundError):
        client.artifacts.get(digest)


def openai_client(settings: Settings, key: str | None = None) -> openai.OpenAI:
    url = f"http://{settings.gateway_http_address}/v1"
    return openai.OpenAI(base_url=url, api_key=key or settings.api_key, max_retries=0)


def test_an_unknown_model_is_not_found_at_every_door(platform: LocalPlatform) -> None:
    with pytest.raises(NotFoundError, match=NO_SUCH_MODEL):
        platform.client.complete("nobody", "Hello")
    with openai_client(platform.settings) as client, pytest.raises(openai.NotFoundError, match=NO_SUCH_MODEL):
        client.completions.create(model="nobody", prompt="Hello")
    for command in (["generate", "nobody", "Hello"], ["models", "show", "nobody"], ["deploy", "nobody"]):
        assert anthesis(platform.settings, *command, code=1).stderr == f"error: {NO_SUCH_MODEL}\n"


def test_a_prompt_longer_than_the_model_serves_is_refused_with_both_lengths(platform: LocalPlatform) -> None:
    prompt = "é " * SERVED_TOKENS
    length = platform.client.count("seedling", [prompt])[0]
    message = (
        rf"the prompt has {length} tokens; seedling@1 serves sequences of {SERVED_TOKENS} tokens at most, "
        rf"output included: send at most {SERVED_TOKENS - 1}"
    )

    with pytest.raises(InvalidArgumentError, match=message):
        platform.client.complete("seedling", prompt, SamplingParams(max_tokens=1))
    with openai_client(platform.settings) as client, pytest.raises(openai.BadRequestError, match=message) as refused:
        client.completions.create(model="seedling", prompt=prompt, max_tokens=1)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_all_bad_rows_of_a_dataset_are_in_one_report(platform: LocalPlatform, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BAD_ROWS)

    refused = anthesis(platform.settings, "datasets", "upload", "bad", str(path), code=1)

    assert refused.stderr == f"error: {BAD_ROWS_REPORT}\n"
    assert_not_stored(platform.client, digest_file(path))


def test_the_registry_itself_reports_all_bad_rows_of_an_artifact(platform: LocalPlatform) -> None:
    """For clients that do not look before they send."""
    artifact = platform.client.artifacts.upload_bytes(BAD_ROWS)

    with pytest.raises(InvalidArgumentError) as refused:
        platform.client.datasets.create("bad", artifact.digest, DATASET_FORMAT_TEXT)

    assert str(refused.value) == BAD_ROWS_REPORT


def damage(kind: str) -> tuple[bytes, str]:
    """The weights of a damaged checkpoint and what its refusal says."""
    shapes = dict(expected_tensors(TINY))
    if kind == "truncated":
        whole = safetensors_bytes(shapes)
        return whole[:-4], rf"truncated: {len(whole) - 4} bytes, its header promises {len(whole)}; copy it again"
    if kind == "missing":
        del shapes["h.1.mlp.dense_4h_to_h.bias"]
        message = r"missing tensor h\.1\.mlp\.dense_4h_to_h\.bias; .* copy or export it anew"
    elif kind == "extra":
        shapes["h.9.mlp.dense_4h_to_h.bias"] = (12,)
        message = r"unexpected tensor h\.9\.mlp\.dense_4h_to_h\.bias; .* export the checkpoint anew"
    else:
        shapes["ln_f.bias"] = (5,)
        message = r"tensor ln_f\.bias .* has shape \[5\], config\.json asks for \[12\]; .* export the checkpoint anew"
    return safetensors_bytes(shapes), message


@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "truncated"])
def test_a_damaged_checkpoint_names_the_tensor_or_the_file(platform: LocalPlatform, tmp_path: Path, kind: str) -> None:
    weights, message = damage(kind)
    config, tokenizer = json.dumps(TINY.to_hf()).encode(), tokenizer_bytes()
    files = {"config.json": config, "model.safetensors": weights, "tokenizer.json": tokenizer}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    by_cli = anthesis(
        platform.settings, "models", "import", "lab/damaged", "--from", str(tmp_path), "--licence", "mit", code=1
    )

    assert re.search(message, by_cli.stderr), by_cli.stderr
    assert_not_stored(platform.client, digest_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "truncated"])
def test_the_registry_itself_refuses_a_damaged_checkpoint(platform: LocalPlatform, kind: str) -> None:
    weights, message = damage(kind)
    store = platform.client.artifacts.upload_bytes
    files = {"config.json": json.dumps(TINY.to_hf()).encode(), "model.safetensors": weights}
    version = ModelVersion(
        model="lab/damaged",
        licence="mit",
        tokenizer_digest=store(tokenizer_bytes()).digest,
        files=[ModelFile(path=path, digest=store(content).digest) for path, content in files.items()],
        source="import",
    )

    with pytest.raises(InvalidArgumentError, match=message):
        platform.client.models.create_version(version)


def test_a_pickle_is_refused_with_the_command_that_converts_it(platform: LocalPlatform, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    command = ("models", "import", "lab/pickle", "--from", str(tmp_path), "--licence", "mit")

    refused = anthesis(platform.settings, *command, code=1).stderr

    assert f"pytorch_model.bin in {tmp_path} is a pickle" in refused
    assert "python -c" in refused
    assert "save_pretrained" in refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 7}, r"learning_rate=7 is out of range; choose a value in \(0, 1\]"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan is out of range; choose a value in \(0, 1\]"),
        ({"steps": 0}, r"steps=0 is out of range; choose a value in \[1, 100000000\]"),
        ({"epochs": 1}, r"one of steps and epochs .* got both, set exactly one"),
        ({"sequence_length": 8}, r"sequence_length=8 is out of range; choose a value in \[16, 65536\]"),
        ({"precision": "fp8"}, r"precision='fp8' is not known; choose bf16 or fp16 or fp32"),
        ({"layout": "7x1x1"}, r"layout='7x1x1': tp=7 does not divide \d+ heads; choose 1"),
    ],
    ids=str,
)
def test_a_hyper_parameter_out_of_range_is_named_with_its_range(
    platform: LocalPlatform, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    spec = fine_tune(good_dataset(platform.client, tmp_path))
    spec.options.MergeFrom(TrainOptions(**options))

    with pytest.raises(InvalidArgumentError, match=message):
        platform.client.jobs.create(spec)


def test_a_lora_rank_out_of_range_is_named_with_its_range(platform: LocalPlatform, tmp_path: Path) -> None:
    spec = fine_tune(good_dataset(platform.client, tmp_path))
    spec.lora.CopyFrom(LoraOptions(rank=5000))

    with pytest.raises(InvalidArgumentError, match=r"lora\.rank=5000 is out of range; choose a value in \[1, 1024\]"):
        platform.client.jobs.create(spec)


def test_the_command_names_an_option_that_is_none(platform: LocalPlatform) -> None:
    submit = ("finetune", "submit", "--output", "lab/f", "--base", "seedling", "--dataset", "good", "--steps", "5")

    unknown = anthesis(platform.settings, *submit, "-o", "lr=1e-3", code=1).stderr
    negative = anthesis(platform.settings, *submit, "-o", "micro_batch=-1", code=1).stderr

    assert "--option 'lr=1e-3' is not NAME=VALUE with a NAME of steps, epochs, learning_rate" in unknown
    assert "'-1' is not a whole number from 0 to 4294967295" in negative


def good_dataset(client: Client, tmp_path: Path) -> str:
    (tmp_path / "good.jsonl").write_bytes(text_rows(40))
    return client.datasets.upload("good-rows", tmp_path / "good.jsonl", DATASET_FORMAT_TEXT).name


def fine_tune(dataset: str) -> FineTuneSpec:
    return FineTuneSpec(output_model="lab/tuned", base="seedling", datasets=[dataset], options=TrainOptions(steps=5))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1}, r"temperature=-1\.0 is out of range; use 0 \(greedy\) or more"),
        ({"max_tokens": 0}, r"max_tokens=0 is out of range; use 1 to 4294967295"),
        ({"top_p": 1.5}, r"top_p=1\.5 is out of range; use above 0, at most 1"),
    ],
    ids=str,
)
def test_a_sampling_setting_out_of_range_is_named_with_its_range(
    platform: LocalPlatform, params: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        platform.client.complete("seedling", "Hello", SamplingParams(**params))


def test_an_upload_whose_sha256_differs_is_data_loss_and_leaves_nothing(platform: LocalPlatform) -> None:
    settings, announced = platform.settings, "sha256:" + "0" * 64
    found = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, of "abc"
    parts = [
        UploadArtifactRequest(header=UploadHeader(digest=announced, size_bytes=3)),
        UploadArtifactRequest(data=b"abc"),
    ]
    with open_channel(settings.registry_address, settings.api_key) as channel, pytest.raises(grpc.RpcError) as refused:
        RegistryServiceStub(channel).UploadArtifact(iter(parts))

    assert refused.value.code() == grpc.StatusCode.DATA_LOSS
    assert refused.value.details() == f"the 3 bytes received have {found}, not {announced}; send them again"
    for digest in (announced, found):
        assert_not_stored(platform.client, digest)


def test_a_job_cancelled_twice_is_refused_the_second_time_and_cancelled_once(
    platform: LocalPlatform, tmp_path: Path
) -> None:
    client = platform.client
    spec = PretrainSpec(
        output_model="lab/cancelled",
        tokenizer_digest=client.artifacts.upload_bytes(tokenizer_bytes()).digest,
        datasets=[good_dataset(client, tmp_path)],
        config=json.dumps(TINY.to_hf()),
        options=TrainOptions(steps=100_000),
    )
    job = client.jobs.create(spec)
    client.jobs.cancel(job.id)

    with pytest.raises(FailedPreconditionError, match=f"job {job.id} (has already ended|is already being cancelled)"):
        client.jobs.cancel(job.id)
    assert client.jobs.wait(job.id).state == JOB_STATE_CANCELLED
    again = anthesis(platform.settings, "jobs", "cancel", job.id, code=1).stderr

    assert again == f"error: job {job.id} has already ended: CANCELLED; nothing is left to cancel\n"
    assert [state_of(event) for event in client.jobs.watch(job.id)].count(JOB_STATE_CANCELLED) == 1


def state_of(event: JobEvent) -> int | None:
    return event.state if event.WhichOneof("event") == "state" else None


def test_a_wrong_key_opens_nothing(platform: LocalPlatform) -> None:
    wrong = replace(platform.settings, api_key="an_wrong")
    message = "the API key is not known; ask an admin for a new one"

    with Client(wrong) as client:
        with pytest.raises(UnauthenticatedError, match=message):
            client.complete("seedling", "Hello")
        with pytest.raises(UnauthenticatedError, match=message):
            client.models.create(Model(name="lab/wrong", licence="mit"))
    with openai_client(wrong) as http, pytest.raises(openai.AuthenticationError, match=message):
        http.completions.create(model="seedling", prompt="Hello")
    assert anthesis(wrong, "models", "list", code=1).stderr == f"error: {message}\n"


def test_without_a_key_nothing_opens_and_the_remedy_is_told(platform: LocalPlatform, tmp_path: Path) -> None:
    settings = platform.settings
    with grpc.insecure_channel(settings.registry_address) as channel, pytest.raises(grpc.RpcError) as refused:
        RegistryServiceStub(channel).UploadArtifact(iter([]))
    answer = httpx.post(f"http://{settings.gateway_http_address}/v1/completions", json={"model": "seedling"})
    command = anthesis(settings, "models", "list", code=1, ANTHESIS_API_KEY="", ANTHESIS_DATA=str(tmp_path))

    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.details() == "no API key: send `authorization: Bearer <key>`"
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "no API key: send `authorization: Bearer <key>`"
    assert f"no API key: ANTHESIS_API_KEY is not set and {tmp_path}/keys/admin.key does not exist" in command.stderr
