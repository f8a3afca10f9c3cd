"""The client against a real registry."""

import hashlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from anthesis import Client, PretrainSpec, Settings, TrainOptions
from anthesis.artifacts import digest_file
from anthesis.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from anthesis.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_PENDING, Job
from anthesis.v1.registry_pb2 import (
    DATASET_FORMAT_TEXT,
    DATASET_FORMAT_UNSPECIFIED,
    PERMISSION_READ,
    ROLE_USER,
    ModelFile,
    ModelVersion,
)

from bloom.tensors import expected_tensors
from tests.support.registry_data import TINY, safetensors_bytes, text_rows, tokenizer_bytes
from tests.support.registry_server import RegistryProcess


def submit(client: Client, tmp_path: Path, name: str) -> Job:
    """A small pre-training job that no worker takes."""
    (tmp_path / "rows.jsonl").write_bytes(text_rows())
    client.datasets.upload(name, tmp_path / "rows.jsonl", DATASET_FORMAT_TEXT)
    tokenizer = client.artifacts.upload_bytes(tokenizer_bytes()).digest
    config = '{"model_type": "bloom", "vocab_size": 0, "hidden_size": 12, "n_layer": 2, "n_head": 3}'
    spec = PretrainSpec(
        output_model=f"test/{name}",
        tokenizer_digest=tokenizer,
        datasets=[name],
        config=config,
        options=TrainOptions(steps=5),
    )
    return client.jobs.create(spec)


def test_the_catalogue_is_listed(client: Client) -> None:
    models = {model.name: model for model in client.models.list()}

    assert models["bigscience/bloom-560m"].parameters == 559_214_592
    assert models["bigscience/bloom-560m"].in_catalogue


def test_a_wrong_key_is_refused(settings: Settings) -> None:
    with (
        Client(Settings(api_key="wrong", registry_address=settings.registry_address)) as client,
        pytest.raises(UnauthenticatedError),
    ):
        client.models.list()


def test_a_file_comes_back_as_it_was(client: Client, tmp_path: Path) -> None:
    data = b"".join(hashlib.sha256(bytes([i])).digest() * 4096 for i in range(24))  # 3 MiB: several messages
    (tmp_path / "file").write_bytes(data)
    sent: list[tuple[int, int]] = []
    received: list[tuple[int, int]] = []

    artifact = client.artifacts.upload(tmp_path / "file", progress=lambda *now: sent.append(now))
    client.artifacts.download(artifact.digest, tmp_path / "copy", progress=lambda *now: received.append(now))

    assert (tmp_path / "copy").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()].count("copy.part") == 0
    assert sent[-1] == received[-1] == (len(data), len(data))
    assert len(sent) == 3


def test_what_is_there_is_not_sent_again(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"once")
    first = client.artifacts.upload(tmp_path / "file")
    sent: list[tuple[int, int]] = []

    again = client.artifacts.upload(tmp_path / "file", progress=lambda *now: sent.append(now))

    assert again.digest == first.digest
    assert not sent


def test_a_missing_artifact_leaves_no_file(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        client.artifacts.download("sha256:" + "0" * 64, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_every_bad_row_of_a_dataset_is_reported(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n[]\n')

    with pytest.raises(InvalidArgumentError, match=r"(?s)row 2: .*row 3: "):
        client.datasets.upload("bad-rows", tmp_path / "rows.jsonl", DATASET_FORMAT_TEXT)
    assert "bad-rows" not in {dataset.name for dataset in client.datasets.list()}
    with pytest.raises(NotFoundError):  # nothing was sent
        client.artifacts.get(digest_file(tmp_path / "rows.jsonl"))


def test_a_dataset_of_no_known_format_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n')

    with pytest.raises(InvalidArgumentError, match="choose one of TEXT, MULTITASK, FIELDS, BLEND, MIXTURE"):
        client.datasets.upload("formless", tmp_path / "rows.jsonl", DATASET_FORMAT_UNSPECIFIED)


def test_a_key_works_until_it_is_revoked(client: Client, settings: Settings) -> None:
    created = client.keys.create("somebody", ROLE_USER)
    with Client(Settings(api_key=created.secret, registry_address=settings.registry_address)) as theirs:
        assert theirs.models.list()

    client.keys.revoke(created.key.id)

    with (
        Client(Settings(api_key=created.secret, registry_address=settings.registry_address)) as theirs,
        pytest.raises(UnauthenticatedError),
    ):
        theirs.models.list()


def test_a_key_is_made_with_all_that_it_may_have_and_the_log_knows(client: Client, settings: Settings) -> None:
    ends = datetime(2100, 1, 1, tzinfo=UTC)
    made = client.keys.create("reader", ROLE_USER, label="a dashboard", scopes=[PERMISSION_READ], expire_time=ends)

    key = next(key for key in client.keys.list() if key.id == made.key.id)
    assert (key.label, list(key.scopes), key.expire_time.ToDatetime(UTC)) == ("a dashboard", [PERMISSION_READ], ends)
    with Client(Settings(api_key=made.secret, registry_address=settings.registry_address)) as theirs:
        assert theirs.models.list()
        with pytest.raises(PermissionDeniedError, match="'reader' has role 'user' and this key only the scopes read"):
            theirs.aliases.set("a", "b")
    refused, *_ = client.audit.list(principal="reader")
    assert (refused.action, refused.resource) == ("RegistryService.SetAlias", "alias/a")


def test_the_same_idempotency_key_gives_the_same_job(client: Client, tmp_path: Path) -> None:
    job = submit(client, tmp_path, "idempotent")
    spec = job.pretrain

    first = client.jobs.create(spec, idempotency_key="k")
    again = client.jobs.create(spec, idempotency_key="k")

    assert first.id == again.id != job.id


def test_a_job_is_cancelled_once(client: Client, tmp_path: Path) -> None:
    job = submit(client, tmp_path, "cancelled")

    assert client.jobs.cancel(job.id).state == JOB_STATE_CANCELLED
    with pytest.raises(FailedPreconditionError, match=job.id):
        client.jobs.cancel(job.id)
    assert client.jobs.wait(job.id).state == JOB_STATE_CANCELLED
    assert job.id in {found.id for found in client.jobs.list(JOB_STATE_CANCELLED)}


def test_a_watch_outlives_the_registry(client: Client, registry: RegistryProcess, tmp_path: Path) -> None:
    job = submit(client, tmp_path, "watched")
    events, first = [], threading.Event()

    def watch() -> None:
        for event in client.jobs.watch(job.id):
            events.append(event)
            first.set()

    watching = threading.Thread(target=watch)
    watching.start()
    assert first.wait(10)
    registry.kill()
    registry.restart()
    client.jobs.get(job.id)  # is retried until the channel has connected again, which cancelling is not
    client.jobs.cancel(job.id)
    watching.join(30)

    assert not watching.is_alive()
    assert [event.state for event in events] == [JOB_STATE_PENDING, JOB_STATE_CANCELLED]
    assert [event.sequence for event in events] == [1, 2]  # nothing twice, nothing lost


def test_a_deployment_nobody_can_load_is_not_waited_for_without_end(client: Client, tmp_path: Path) -> None:
    version = import_tiny(client)
    deployment = client.deployments.create(version.name)

    with pytest.raises(DeadlineExceededError, match=r"tiny@1 is ready on 0 of 1 workers after 0.1 s"):
        client.deployments.wait(deployment.name, timeout_s=0.1)
    client.deployments.delete(deployment.name)
    with pytest.raises(NotFoundError, match="no deployment"):
        client.deployments.wait(deployment.name)


def test_an_alias_moves_and_its_past_is_known(client: Client) -> None:
    first, second = import_tiny(client).name, import_tiny(client).name
    client.aliases.set("sdk-alias", first, if_generation=0, reason="first")
    since = client.aliases.resolve("sdk-alias").change.time.ToDatetime(UTC)
    moved = client.aliases.set("sdk-alias", second, if_generation=1)

    with pytest.raises(AbortedError, match=f"at generation 2 .{second}., not at if_generation=1"):
        client.aliases.rollback("sdk-alias", if_generation=1)
    assert client.aliases.resolve("sdk-alias", at=since).version.name == first
    assert client.aliases.resolve("sdk-alias").version.name == moved.version == second
    assert client.aliases.rollback("sdk-alias", generation=1).version == first
    assert [change.generation for change in client.aliases.history("sdk-alias")] == [3, 2, 1]
    assert next(client.aliases.history("sdk-alias")).principal == "admin"
    client.aliases.delete("sdk-alias")
    with pytest.raises(NotFoundError, match="was deleted at"):
        client.aliases.resolve("sdk-alias")
    assert "sdk-alias" not in {alias.name for alias in client.aliases.list()}


def import_tiny(client: Client) -> ModelVersion:
    """Register a checkpoint of zeros."""
    config = json.dumps(TINY.to_hf()).encode()
    weights = safetensors_bytes(expected_tensors(TINY))
    files = [
        ModelFile(path="config.json", digest=client.artifacts.upload_bytes(config).digest),
        ModelFile(path="model.safetensors", digest=client.artifacts.upload_bytes(weights).digest),
    ]
    tokenizer = client.artifacts.upload_bytes(tokenizer_bytes()).digest
    version = ModelVersion(
        model="test/tiny", licence="apache-2.0", tokenizer_digest=tokenizer, files=files, source="import"
    )
    return client.models.create_version(version)
