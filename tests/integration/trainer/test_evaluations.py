"""Measuring through the real parts: registry, relay, Valkey, Celery worker; what transformers says is the oracle."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from anthesis.channel import open_channel
from anthesis.v1 import evaluation_pb2 as pb
from anthesis.v1 import evaluation_pb2_grpc, job_pb2, registry_pb2
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from tests.support.bits_per_byte import bits_per_byte
from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training import text_rows
from tests.support.training_platform import TrainingPlatform, messages, reports, wait_for

pytestmark = pytest.mark.timeout(600)
WINDOW = 32
ROWS = [{"text": text, "language": language} for text, language in zip(TEXTS, ("en", "fr", "en", "fr"), strict=False)]


class Measured(TrainingPlatform):
    """With `seedling@1`, of perturbed weights, and the suite `held-out@1`."""

    def prepare(self) -> None:
        channel = open_channel(self.settings.registry_address, self.settings.read_key("admin", {}))
        self.evaluations = evaluation_pb2_grpc.EvaluationServiceStub(channel)
        self.dataset("held-out", ROWS)
        self.dataset("texts", text_rows(40))
        suite = pb.Suite(
            family="held-out",
            kind=pb.SUITE_KIND_BITS_PER_BYTE,
            datasets=[pb.SuiteDataset(name="held-out")],
            sequence_length=WINDOW,
        )
        self.evaluations.CreateSuite(pb.CreateSuiteRequest(suite=suite))
        self.base = make_hf_folder(self.settings.data_dir / "seedling", n_layer=2, vocab=512)
        version = registry_pb2.ModelVersion(
            model="seedling",
            licence="apache-2.0",
            tokenizer_digest=self.tokenizer_digest,
            files=[
                registry_pb2.ModelFile(path=path.name, digest=self.store.write_file(path))
                for path in sorted(self.base.iterdir())
            ],
        )
        self.registry.CreateModelVersion(registry_pb2.CreateModelVersionRequest(version=version))

    def results(self, version: str) -> dict[str, pb.EvaluationResult]:
        """Of the version's newest evaluation, by language."""
        found = self.evaluations.ListEvaluations(pb.ListEvaluationsRequest(name=version)).evaluations
        return {result.language: result for result in found[0].results} if found else {}


@pytest.fixture(scope="module")
def platform() -> Iterator[Measured]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with Measured(folder) as platform:
        platform.prepare()
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def measured(platform: Measured) -> job_pb2.Job:
    """A job that measured `seedling@1`, though its worker was killed as it ran."""
    job_id = platform.submit(job_pb2.EvaluateSpec(version="seedling", suite="held-out"))
    wait_for(lambda: platform.job(job_id).state == job_pb2.JOB_STATE_RUNNING, 60, "the job to run")
    platform.kill("worker")
    platform.start("worker")
    return platform.wait_until_ended(job_id)


def test_a_job_measures_what_transformers_does_and_survives_its_worker(platform: Measured, measured: job_pb2.Job):
    assert job_pb2.JobState.Name(measured.state) == "JOB_STATE_SUCCEEDED", measured.error
    assert measured.attempts == 2
    results = platform.results("seedling@1")
    expected = bits_per_byte(
        BloomForCausalLM.from_pretrained(platform.base), Tokenizer.from_str(small_tokenizer_json()), ROWS, WINDOW
    )
    assert {language: result.value for language, result in results.items()} == pytest.approx(
        {language: rate for language, (rate, _) in expected.items()}, rel=1e-5
    )
    assert {language: result.n for language, result in results.items()} == {"en": 2, "fr": 2}
    steps = reports(platform.events(measured.id))
    assert steps[-1].step == steps[-1].total_steps
    assert {loss.language for loss in steps[-1].validation} == {"en", "fr"}


@pytest.mark.long
def test_a_fine_tune_that_spoils_its_base_is_measured_and_does_not_get_the_alias(
    platform: Measured, measured: job_pb2.Job
):
    platform.registry.SetAlias(registry_pb2.SetAliasRequest(name="flower", version="seedling@1"))
    gate = pb.Gate(alias="flower", suite="held-out", languages=["fr"], max_regression_percent=1)
    platform.evaluations.SetGate(pb.SetGateRequest(gate=gate))
    spec = job_pb2.FineTuneSpec(
        output_model="spoilt",
        base="seedling",
        datasets=["texts"],
        evaluate_with="held-out",
        options=job_pb2.TrainOptions(
            steps=2, sequence_length=WINDOW, micro_batch=2, precision="fp32", learning_rate=0.5, warmup_steps=0
        ),
    )
    job = platform.wait_until_ended(platform.submit(spec, deploy_alias="flower"))
    assert job.model_version == "spoilt@1", job.error
    before, after = platform.results("seedling@1"), platform.results("spoilt@1")
    assert after["fr"].value > 1.01 * before["fr"].value
    told = messages(platform.events(job.id))
    refusal = "alias 'flower' stays at seedling@1: by held-out@1 spoilt@1 is worse in fr"
    assert any(text.startswith(refusal) for text in told)
    alias = platform.registry.ResolveAlias(registry_pb2.ResolveAliasRequest(name="flower"))
    assert alias.version.name == "seedling@1"
    move = registry_pb2.SetAliasRequest(name="flower", version="spoilt")
    with pytest.raises(grpc.RpcError, match="worse in fr"):
        platform.registry.SetAlias(move)
    compared = platform.evaluations.CompareEvaluations(
        pb.CompareEvaluationsRequest(version="spoilt", base="seedling", suite="held-out")
    )
    assert {found.test for found in compared.differences} == {pb.SIGNIFICANCE_TEST_PAIRED_T}
