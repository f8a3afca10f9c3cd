"""The unchanged `openai` client, the whole platform in processes of its own, and a BLOOM that really learns."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from anthesis.v1 import registry_pb2
from openai.types.fine_tuning import FineTuningJob

from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import small_tokenizer_json
from tests.support.training import jsonl
from tests.support.training_platform import TrainingPlatform, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
BASE = "lab/tiny"
WAIT_S = 400
TALK = [{"role": "user", "content": "Tous ?"}, {"role": "assistant", "content": "libres et égaux"}]
PROMPT = "User: Tous ?\nAssistant:"
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


@pytest.fixture
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    services = ("tokenizer", "inference", "gateway")
    with TrainingPlatform(folder, also=services, ANTHESIS_INFERENCE_THREADS="1") as running:
        register_base(running, make_hf_folder(folder / "model", vocab=512))
        wait_for(lambda: answers(running), WAIT_S, "the gateway to answer")
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
        file = client.files.create(file=("talk.jsonl", jsonl([{"messages": TALK}] * 12)), purpose="fine-tune")
        held_out = client.files.create(file=("held.jsonl", jsonl([{"messages": TALK}])), purpose="fine-tune")
        chosen = {"n_epochs": 30, "batch_size": 1, "learning_rate_multiplier": 50.0}
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file=held_out.id,
            suffix="libre",
            method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
        )
        other = client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        assert client.fine_tuning.jobs.cancel(other.id).status == "cancelled"

        job = follow(client, job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model
        steps = [event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"][::-1]
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        assert steps[-1]["train_loss"] < 0.8 * steps[0]["train_loss"]
        assert steps[-1]["valid_bits_per_byte"] > 0
        assert job.trained_tokens == steps[-1]["tokens_seen"]
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
        assert checkpoint.step_number == len(steps)
        assert len(client.files.content(job.result_files[0]).text.splitlines()) == 1 + len(steps)

        wait_for(lambda: ready(client, str(job.fine_tuned_model)), WAIT_S, "the model to be served")
        asked: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
        texts = [
            client.completions.create(model=model, **asked).choices[0].text
            for model in (job.fine_tuned_model, checkpoint.fine_tuned_model_checkpoint)
        ]
        stream = client.completions.create(model=job.fine_tuned_model, stream=True, **asked)
        texts.append("".join(chunk.choices[0].text for chunk in stream))
        print(texts)
        assert texts == texts[:1] * 3
        assert texts[0]


def follow(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    """The job at its end, with its statuses seen in their order."""
    seen: list[str] = []

    def has_ended() -> bool:
        time.sleep(0.5)  # OpenAI's API has nothing to wait on
        seen.append(client.fine_tuning.jobs.retrieve(job_id).status)
        return seen[-1] in STATUSES[2:]

    wait_for(has_ended, WAIT_S, "the fine-tuning to end")
    assert [STATUSES.index(status) for status in seen] == sorted(STATUSES.index(status) for status in seen)
    assert "running" in seen
    return client.fine_tuning.jobs.retrieve(job_id)


def ready(client: openai.OpenAI, model: str) -> bool:
    try:
        client.with_options(max_retries=0).completions.create(model=model, prompt=PROMPT, max_tokens=1)
    except openai.InternalServerError as error:
        if error.status_code != 503:
            raise
        return False
    return True
