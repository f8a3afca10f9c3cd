"""What the platform computes and what transformers computes, compared through the doors that users use.

A checkpoint written by transformers is imported by the command and served; one that a job made is downloaded and read
by transformers. A mistake planted into the imported weights must be seen by the same comparison.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import openai
import pytest
import torch
from anthesis import Client, PretrainSpec, SamplingParams, ScoreItem, TrainOptions
from anthesis.v1.inference_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP
from anthesis.v1.registry_pb2 import DATASET_FORMAT_TEXT
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BloomForCausalLM

from tests.e2e.conftest import VOCAB, LocalPlatform, anthesis
from tests.support.bloom_models import make_hf_folder
from tests.support.inference_models import assert_greedy
from tests.support.registry_data import text_rows
from tests.support.tokenizers import TEXTS, small_tokenizer_json, write_small_tokenizer

TOLERANCE = 1e-4
HEADS, HEAD_DIM = 7, 16
PROMPTS = ("Tous les êtres humains", "All human beings are", "人人生而自由", "مساواة", "def main(n", "Gbogbo ènìyàn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by transformers: an odd number of heads, every parameter perturbed, several shards."""
    folder = make_hf_folder(
        tmp_path_factory.mktemp("theirs"), n_head=HEADS, hidden=HEADS * HEAD_DIM, n_layer=3, vocab=VOCAB, sharded=True
    )
    write_small_tokenizer(folder, VOCAB)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def imported(platform: LocalPlatform, folder: Path) -> Iterator[str]:
    """The alias under which it is served."""
    import_and_deploy(platform, folder, "lab/theirs")
    yield "theirs"
    platform.client.deployments.delete("theirs")


def import_and_deploy(platform: LocalPlatform, folder: Path, model: str) -> None:
    args = ("--from", str(folder), "--licence", "mit", "--alias", model.rpartition("/")[2], "--deploy")
    anthesis(platform.settings, "models", "import", model, *args)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(small_tokenizer_json(VOCAB))


@torch.no_grad()
def teacher_forced(hf: BloomForCausalLM, ids: list[int]) -> Tensor:
    """Log-probability of each id but the first after those before it: (len(ids) - 1,)."""
    logprobs = hf(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    return logprobs.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


def served(platform: LocalPlatform, model: str, ids: list[int]) -> Tensor:
    """The same by the OpenAI route's `echo`."""
    settings = platform.settings
    url = f"http://{settings.gateway_http_address}/v1"
    with openai.OpenAI(base_url=url, api_key=settings.api_key, max_retries=0) as client:
        answer = client.completions.create(model=model, prompt=ids, echo=True, logprobs=0, max_tokens=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    return torch.tensor(logprobs.token_logprobs[1:])


def texts() -> list[list[int]]:
    """Ids of texts in many scripts."""
    return [tokenizer().encode(text).ids for text in TEXTS]


def worst_difference(platform: LocalPlatform, model: str, folder: Path) -> float:
    hf = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return max((served(platform, model, ids) - teacher_forced(hf, ids)).abs().max().item() for ids in texts())


def test_64_greedy_ids_are_those_of_transformers(platform: LocalPlatform, imported: str, folder: Path) -> None:
    lengths = []
    for prompt in PROMPTS:
        answer = platform.client.complete(imported, prompt, SamplingParams(temperature=0, max_tokens=64))
        ids = [token.id for token in answer.tokens]
        assert_greedy(folder, tokenizer().encode(prompt).ids, ids)  # equal, but where the two likeliest are too close
        assert answer.finish_reason == (FINISH_REASON_LENGTH if len(ids) == 64 else FINISH_REASON_STOP)
        lengths.append(len(ids))
    assert lengths.count(64) >= len(PROMPTS) // 2  # the others drew </s>


def test_teacher_forced_log_probabilities_are_those_of_transformers(
    platform: LocalPlatform, imported: str, folder: Path
) -> None:
    assert worst_difference(platform, imported, folder) < TOLERANCE


def test_a_score_is_the_sum_of_transformers_log_probabilities(
    platform: LocalPlatform, imported: str, folder: Path
) -> None:
    hf = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context, text = "Tous les êtres humains", " naissent libres et égaux en dignité et en droits."
    context_ids, ids = tokenizer().encode(context).ids, tokenizer().encode(text).ids

    item = platform.client.score(imported, [ScoreItem(context=context, text=text)]).items[0]

    expected = teacher_forced(hf, context_ids + ids)[len(context_ids) - 1 :].sum().item()
    assert (item.num_tokens, item.num_bytes) == (len(ids), len(text.encode()))
    assert abs(item.logprob - expected) < TOLERANCE * len(ids)


Mutation = Callable[[str, Tensor], Tensor]
"""Changes a tensor, given its name."""


def qkv_in_thirds(name: str, tensor: Tensor) -> Tensor:
    """Rows as [3, N, D] where they are [N, 3, D]."""
    if "query_key_value" not in name:
        return tensor
    return tensor.unflatten(0, (HEADS, 3, HEAD_DIM)).transpose(0, 1).flatten(0, 2).contiguous()


def one_bias_left_out(name: str, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if name.endswith("h.1.self_attention.dense.bias") else tensor


def embedding_layer_norm_left_out(name: str, tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor) if name.endswith("word_embeddings_layernorm.weight") else tensor


@pytest.mark.parametrize("mutate", [qkv_in_thirds, one_bias_left_out, embedding_layer_norm_left_out])
def test_a_mistake_planted_into_the_weights_is_seen(
    platform: LocalPlatform, folder: Path, tmp_path: Path, mutate: Mutation
) -> None:
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            tensors = {name: mutate(name, tensor) for name, tensor in load_file(path).items()}
            save_file(tensors, tmp_path / path.name, metadata={"format": "pt"})
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    import_and_deploy(platform, tmp_path, f"lab/{mutate.__name__}")

    assert worst_difference(platform, mutate.__name__, folder) > 3 * TOLERANCE
    platform.client.deployments.delete(mutate.__name__)


@pytest.fixture(scope="module")
def trained(platform: LocalPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The version that a pre-training job made, deployed as `trained`."""
    client, made = platform.client, tmp_path_factory.mktemp("trained")
    (made / "rows.jsonl").write_bytes(text_rows(200))
    client.datasets.upload("a-few-rows", made / "rows.jsonl", DATASET_FORMAT_TEXT)
    shape = {"hidden_size": 48, "n_head": 3, "n_layer": 2, "vocab_size": 0}
    spec = PretrainSpec(
        output_model="lab/trained",
        tokenizer_digest=client.artifacts.upload(write_small_tokenizer(made, VOCAB)).digest,
        datasets=["a-few-rows"],
        config=json.dumps({"model_type": "bloom", **shape}),
        options=TrainOptions(steps=20, sequence_length=32, micro_batch=4, learning_rate=0.01, precision="fp32"),
    )
    job = client.jobs.wait(client.jobs.create(spec, deploy_alias="trained").id)
    assert job.model_version, job
    client.deployments.wait("trained", timeout_s=120)
    yield job.model_version
    client.deployments.delete("trained")


def download(client: Client, version: str, folder: Path) -> Path:
    for file in client.models.get_version(version).files:
        client.artifacts.download(file.digest, folder / file.path)
    return folder


def test_what_a_job_exports_loads_in_transformers_and_is_what_is_served(
    platform: LocalPlatform, trained: str, tmp_path: Path
) -> None:
    folder = download(platform.client, trained, tmp_path)

    _, info = BloomForCausalLM.from_pretrained(folder, output_loading_info=True)

    assert not any(info.values()), info
    assert worst_difference(platform, "trained", folder) < TOLERANCE
