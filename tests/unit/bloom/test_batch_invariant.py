"""A model made batch-invariant: the same model, every product of which goes through bloom.kernels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bloom import kernels
from bloom.batch_invariant import to_batch_invariant
from bloom.weights import load_model
from tests.support.bloom_models import bloom_logits, hf_logits, make_hf_folder, make_hf_model, random_ids

VOCAB = 211
IDS = random_ids(40, VOCAB)
PRODUCTS = 2 * 4 + 1  # of two layers, and the head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_hf_folder(tmp_path / "model", vocab=VOCAB)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """(kernel, block_m) of every product that bloom.kernels was asked for."""
    made: list[tuple[str, object]] = []
    for name in ("linear", "int8_linear"):

        def counted(
            *args: Tensor, name: str = name, kernel: object = getattr(kernels, name), **kwargs: object
        ) -> Tensor:
            made.append((name, kwargs.get("block_m")))
            return kernel(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(kernels, name, counted)
    return made


def test_float_products_go_through_the_kernel_and_logits_are_those_of_transformers(folder: Path, calls: list[object]):
    model = load_model(folder)
    names = list(model.state_dict())
    to_batch_invariant(model)
    assert list(model.state_dict()) == names
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(bloom_logits(model, IDS), hf_logits(make_hf_model(vocab=VOCAB), IDS), rtol=0, atol=1e-4)
    assert calls == [("linear", None)] * PRODUCTS


def test_int8_products_go_through_the_kernel_with_tiles_of_one_height(folder: Path, calls: list[object]):
    wanted = bloom_logits(load_model(folder, weights="int8"), IDS)
    model = load_model(folder, weights="int8")
    to_batch_invariant(model)
    torch.testing.assert_close(bloom_logits(model, IDS), wanted, rtol=0, atol=1e-4)
    assert calls == [("int8_linear", 64)] * PRODUCTS


def test_products_of_integers_stay_as_they_are(folder: Path, calls: list[object]):
    wanted = bloom_logits(load_model(folder, weights="int8_dynamic"), IDS)
    model = load_model(folder, weights="int8_dynamic")
    to_batch_invariant(model)
    assert torch.equal(bloom_logits(model, IDS), wanted)
    assert calls == []
