"""An engine with int8 weights computes the model that they stand for: transformers reads that one, dequantized, too."""

from pathlib import Path

import pytest
import torch

from bloom.quantize import dequantize_checkpoint, quantize_checkpoint
from bloom.weights import TensorReader
from services.inference.config import EngineConfig
from services.inference.engine import load_engine
from tests.support.bloom_models import assert_discriminates, hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import VOCAB, engine_of, generate, greedy, oracle, score

EXECUTORS = pytest.mark.parametrize("cpu_operators", [False, True], ids=["torch", "bloom.cpu"])
PROMPTS = [random_ids(length, VOCAB, seed=length).tolist() for length in (1, 9, 16, 33, 50)]
ITEMS = [(prompt, random_ids(12, VOCAB, seed=100 + number).tolist()) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    make_hf_folder(folder / "floats")
    quantize_checkpoint(folder / "floats", folder / "int8")
    dequantize_checkpoint(folder / "int8", folder / "exact")
    return {path.name: path for path in folder.iterdir()}


def expected_scores(folder: Path) -> list[torch.Tensor]:
    logprobs = []
    for context, target in ITEMS:
        logits = hf_logits(oracle(folder), torch.tensor(context + target)).double()
        rows = logits.log_softmax(-1)[len(context) - 1 : -1]
        logprobs.append(rows.gather(1, torch.tensor(target)[:, None]).squeeze(1))
    return logprobs


def largest_difference(found: list[list[float]], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max((torch.tensor(ours, dtype=torch.float64) - theirs).abs().max().item() for ours, theirs in pairs)


@EXECUTORS
@pytest.mark.parametrize(("stored", "weights"), [("int8", "auto"), ("floats", "int8")], ids=["stored", "on load"])
def test_log_probabilities_are_those_of_the_numbers_int8_stands_for(folders, cpu_operators, stored, weights):
    assert_discriminates(lambda ids: hf_logits(oracle(folders["exact"]), ids), random_ids(32, VOCAB))
    engine = engine_of(folders[stored], weights=weights, cpu_operators=cpu_operators, kv_dtype="float32")
    found = score(engine, ITEMS)
    tolerance = 1e-3 if cpu_operators else 1e-4  # bloom.cpu gives activations 16 bits
    assert largest_difference(found, expected_scores(folders["exact"])) < tolerance
    assert largest_difference(found, expected_scores(folders["floats"])) > 10 * tolerance  # rounding is seen


@EXECUTORS
def test_greedy_ids_do_not_depend_on_when_it_was_quantized(folders, cpu_operators):
    stored, on_load = (
        generate(engine_of(folders[name], weights="int8", cpu_operators=cpu_operators), PROMPTS, greedy(32))
        for name in ("int8", "floats")
    )
    assert stored == on_load


@EXECUTORS
def test_dynamic_activations_cost_little_more(folders, cpu_operators):
    exact = expected_scores(folders["floats"])

    def loss(weights: str) -> float:
        found = score(engine_of(folders["floats"], weights=weights, cpu_operators=cpu_operators), ITEMS)
        return sum(float((torch.tensor(a) - b).square().sum()) for a, b in zip(found, exact, strict=True))

    assert 0 < loss("int8") < loss("int8_dynamic") < 20 * loss("int8")


def test_a_file_of_another_shape_is_refused_when_it_is_loaded(folders, tmp_path: Path):
    with TensorReader(folders["int8"]) as reader:
        tensor = reader.checkpoint.tensors["h.0.mlp.dense_h_to_4h.weight_scale"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folders["int8"].iterdir():
        data = bytearray(file.read_bytes())
        if file.name == tensor.file:
            data[tensor.start : tensor.start + 4] = b"\0\0\xc0\x7f"  # NaN
        (broken / file.name).write_bytes(data)
    with pytest.raises(ValueError, match=r"dense_h_to_4h\.weight_scale in .* has scale nan in row 0, .* quantize the"):
        load_engine(broken, EngineConfig(), num_token_ids=VOCAB)
