"""The unchanged `openai` client, the whole platform in processes of its own, and a BLOOM that really learns."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from anthesis.v1 import registry_pb2
from openai.types.fine_tuning import FineTuningJob

from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import small_tokenizer_json
from tests.support.training import jsonl
from tests.support.training_platform import TrainingPlatform, processes_of, wait_for

BASE = "lab/tiny"
ANSWER = " libres et égaux"
TALK = [{"role": "user", "content": "Tous ?"}, {"role": "assistant", "content": ANSWER.strip()}]
PROMPT = "User: Tous ?\nAssistant:"
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


@pytest.fixture
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    services = ("tokenizer", "inference", "gateway")
    with TrainingPlatform(folder, also=services, ANTHESIS_INFERENCE_THREADS="1") as running:
        register_base(running, make_hf_folder(folder / "model", vocab=512))
        wait_for(lambda: answers(running), 60, "the gateway to answer")
        yield running
    shutil.rmtree(folder, ignore_errors=True)


def register_base(platform: TrainingPlatform, folder: Path) -> None:
    files = [
        registry_pb2.ModelFile(path=path.name, digest=platform.store.write_file(path))
        for path in sorted(folder.iterdir())
    ]
    tokenizer = platform.store.write_bytes(small_tokenizer_json(512).encode())
    version = registry_pb2.ModelVersion(
        model=BASE, licence="mit", files=files, tokenizer_digest=tokenizer, source="import"
    )
    platform.registry.CreateModelVersion(registry_pb2.CreateModelVersionRequest(version=version))


def url(platform: TrainingPlatform) -> str:
    return f"http://{platform.settings.gateway_http_address}"


def answers(platform: TrainingPlatform) -> bool:
    try:
        return httpx.get(f"{url(platform)}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_client_uploads_fine_tunes_follows_and_uses_a_bloom_and_cancels_another(platform: TrainingPlatform) -> None:
    key = platform.settings.read_key("admin", {})
    with openai.OpenAI(base_url=f"{url(platform)}/v1", api_key=key) as client:
        file = client.files.create(file=("talk.jsonl", jsonl([{"messages": TALK}] * 20)), purpose="fine-tune")
        held_out = client.files.create(file=("held.jsonl", jsonl([{"messages": TALK}])), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file=held_out.id,
            suffix="libre",
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": 100.0}},
            },
        )
        other = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, hyperparameters={"n_epochs": 50})
        job = follow(client, job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model
        steps = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
        losses = [event.data["train_loss"] for event in steps]
        assert losses[0] < losses[-1] / 2, "newest first: it has learnt"
        assert steps[0].data["valid_bits_per_byte"] is not None
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
        assert checkpoint.step_number == steps[0].data["step"] == len(steps)
        table = client.files.content(job.result_files[0]).text.splitlines()
        assert len(table) == 1 + len(steps)

        assert cancel_while_it_runs(platform, client, other.id).status == "cancelled"

        for model in (job.fine_tuned_model, checkpoint.fine_tuned_model_checkpoint):
            wait_for(lambda model=model: ready(client, model), 60, f"{model} to be served")
            answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=16)
            assert (answer.choices[0].text, answer.choices[0].finish_reason) == (ANSWER, "stop")
        stream = client.completions.create(
            model=job.fine_tuned_model, prompt=PROMPT, temperature=0, max_tokens=16, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER


def follow(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    """The job at its end, with its statuses seen in their order."""
    seen: list[str] = []

    def has_ended() -> bool:
        seen.append(client.fine_tuning.jobs.retrieve(job_id).status)
        return seen[-1] in STATUSES[2:]

    wait_for(has_ended, 120, "the fine-tuning to end")
    assert [STATUSES.index(status) for status in seen] == sorted(STATUSES.index(status) for status in seen)
    assert "running" in seen
    return client.fine_tuning.jobs.retrieve(job_id)


def cancel_while_it_runs(platform: TrainingPlatform, client: openai.OpenAI, job_id: str) -> FineTuningJob:
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job_id).status == "running", 60, "the other job to run")
    client.fine_tuning.jobs.cancel(job_id)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job_id).status == "cancelled", 60, "the other job to end")
    assert processes_of(job_id) == []
    return client.fine_tuning.jobs.retrieve(job_id)


def ready(client: openai.OpenAI, model: str) -> bool:
    try:
        client.with_options(max_retries=0).completions.create(model=model, prompt=PROMPT, max_tokens=1)
    except openai.InternalServerError as error:
        if error.status_code != 503:
            raise
        return False
    return True
