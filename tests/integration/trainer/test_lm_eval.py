"""Tasks of the harness through the real parts: a trainer's worker, the gateway and an engine; transformers judges."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from anthesis.channel import open_channel
from anthesis.v1 import evaluation_pb2 as pb
from anthesis.v1 import evaluation_pb2_grpc, job_pb2, registry_pb2
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from services.trainer.encoder import Encoder
from services.trainer.harness.gateway import Gateway, headers_for
from tests.support.bloom_models import make_hf_folder
from tests.support.harness import spec_of
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training_platform import TrainingPlatform, messages, reports, wait_for

pytestmark = pytest.mark.timeout(600)
CHOICES = ("free", "libres", "自由")
ROWS = [
    {"question": text[:30], "label": number % 3, "language": language}
    for number, (text, language) in enumerate(zip(TEXTS[:8], ("en", "fr") * 4, strict=True))
]
JINJA = "{{question}} ||| {{answer_choices[label]}}"


class Asked(TrainingPlatform):
    """With `seedling@1`, of perturbed weights, which is served, `seedling@2`, which is not, and the suite `quiz@1`."""

    def prepare(self) -> None:
        channel = open_channel(self.settings.registry_address, self.settings.read_key("admin", {}))
        self.evaluations = evaluation_pb2_grpc.EvaluationServiceStub(channel)
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
        for _ in range(2):
            self.registry.CreateModelVersion(registry_pb2.CreateModelVersionRequest(version=version))
        deployment = registry_pb2.Deployment(name="seedling", target="seedling@1")
        self.registry.CreateDeployment(registry_pb2.CreateDeploymentRequest(deployment=deployment))
        self.dataset("quiz-rows", ROWS)
        task = pb.LmEvalTask(name="quiz", dataset="quiz-rows", jinja=JINJA, answer_choices=" ||| ".join(CHOICES))
        self.suite("quiz", task)
        self.suite("hub", pb.LmEvalTask(name="xcopa_et"))
        url = f"http://{self.settings.gateway_http_address}/health"
        wait_for(lambda: answers(url), 60, "the gateway to answer", self.say_why)

    def suite(self, family: str, task: pb.LmEvalTask) -> None:
        suite = pb.Suite(family=family, kind=pb.SUITE_KIND_LM_EVAL, tasks=[task])
        self.evaluations.CreateSuite(pb.CreateSuiteRequest(suite=suite))

    def measure(self, version: str, suite: str) -> job_pb2.Job:
        job = self.submit(job_pb2.EvaluateSpec(version=version, suite=suite))
        return self.wait_until_ended(job)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def platform() -> Iterator[Asked]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    services = ("tokenizer", "inference", "gateway")
    env = {"ANTHESIS_INFERENCE_THREADS": "1", "ANTHESIS_SERVED_WITHIN_SECONDS": "20", "HF_HUB_OFFLINE": "1"}
    with Asked(folder, also=services, **env) as platform:
        platform.prepare()
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


class Oracle:
    """What transformers says of the same weights."""

    def __init__(self, folder: Path) -> None:
        self._model = BloomForCausalLM.from_pretrained(folder)
        self._tokenizer = Tokenizer.from_str(small_tokenizer_json())

    @torch.no_grad()
    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        start = len(self._tokenizer.encode(context).ids)
        ids = self._tokenizer.encode(context + continuation).ids
        logprobs = self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        targets = torch.tensor(ids[start:])
        scored = logprobs[start - 1 : -1]
        is_greedy = bool((scored.argmax(-1) == targets).all())
        return float(scored.gather(1, targets[:, None]).sum()), is_greedy

    def continuation(self, prompt: str, num_tokens: int) -> str:
        ids = self._tokenizer.encode(prompt).ids
        out = self._model.generate(torch.tensor([ids]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=2)
        return str(self._tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True))


@pytest.fixture(scope="module")
def oracle(platform: Asked) -> Oracle:
    return Oracle(platform.base)


def test_a_job_asks_the_gateway_and_finds_what_transformers_does(platform: Asked, oracle: Oracle):
    job = platform.measure("seedling@1", "quiz")
    assert job_pb2.JobState.Name(job.state) == "JOB_STATE_SUCCEEDED", (job.error, platform.say_why())
    [evaluation] = platform.evaluations.ListEvaluations(pb.ListEvaluationsRequest(name="seedling@1")).evaluations
    expected: dict[tuple[str, str], list[bool]] = {}
    for row in ROWS:
        scores = [oracle.loglikelihood(str(row["question"]).strip(), f" {choice}")[0] for choice in CHOICES]
        normed = [score / len(choice) for score, choice in zip(scores, CHOICES, strict=True)]
        for metric, found in (("acc", scores), ("acc_norm", normed)):
            is_right = found.index(max(found)) == row["label"]
            expected.setdefault((str(row["language"]), f"quiz/{metric}"), []).append(is_right)
    assert len({tuple(scores) for scores in expected.values()}) > 1  # an evaluation of nothing would look otherwise
    assert {(found.language, found.metric): (found.value, found.n) for found in evaluation.results} == {
        key: (sum(scores) / len(scores), len(scores)) for key, scores in expected.items()
    }
    steps = reports(platform.events(job.id))
    assert steps[-1].step == steps[-1].total_steps == len(ROWS) * len(CHOICES)
    assert any("with lm-eval 0.4" in told for told in messages(platform.events(job.id)))
    compared = platform.evaluations.CompareEvaluations(
        pb.CompareEvaluationsRequest(version="seedling@1", base="seedling@1", suite="quiz")
    )
    assert {found.test for found in compared.differences} == {pb.SIGNIFICANCE_TEST_PAIRED_T}


def test_what_the_gateway_answers_is_what_transformers_does(platform: Asked, oracle: Oracle):
    url = f"http://{platform.settings.gateway_http_address}"
    spec = spec_of(platform.settings.data_dir, gateway_url=url, version="seedling@1")
    encoder = Encoder(platform.store.local_path(platform.tokenizer_digest))
    told: list[int] = []
    headers = headers_for(spec, platform.settings.read_key("trainer", {}))
    gateway = Gateway(spec, headers, encoder, lambda *counts: told.append(counts[0]))
    greedy = oracle.continuation(TEXTS[0][:40], 6)
    pairs = [(text[:40].rstrip(), f" {choice}") for text in TEXTS[:7] for choice in CHOICES] + [(TEXTS[0][:40], greedy)]
    asked = [instance("loglikelihood", *pair) for pair in pairs]
    found = gateway.loglikelihood(asked)
    expected = [oracle.loglikelihood(*pair) for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert sum(told) == gateway.num_requests == len(pairs)
    until = [greedy[2:4], *"ABCDEFG"]
    texts = gateway.generate_until(
        [instance("generate_until", TEXTS[0][:40], {"until": stops, "max_gen_toks": 6}) for stops in ([], until)]
    )
    assert texts == [greedy, greedy[: greedy.index(until[0])]]
    [rolling] = gateway.loglikelihood_rolling([instance("loglikelihood_rolling", TEXTS[1])])
    assert rolling == pytest.approx(oracle.loglikelihood("<s>", TEXTS[1])[0], rel=1e-4)


def instance(kind: str, *args: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("t", 0, 1))


def test_a_version_that_is_not_served_and_a_task_whose_data_cannot_be_had_fail_with_the_reason(platform: Asked):
    data = platform.measure("seedling@1", "hub")
    assert data.error.code == "BAD_TASK"
    assert data.error.message.startswith("task 'xcopa_et' cannot be loaded: ")
    assert "its data come from the hub" in data.error.message
    platform.kill("worker")
    platform.start("worker", ANTHESIS_SERVED_WITHIN_SECONDS="1")
    served = platform.measure("seedling@2", "quiz")
    assert (served.error.code, served.model_version) == ("NOT_SERVED", "")
    assert "does not serve seedling@2: version seedling@2 is not loaded by any worker" in served.error.message
    assert served.error.message.endswith("deploy it first: `anthesis deploy seedling@2`")
