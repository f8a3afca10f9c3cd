"""Training over tensor-parallel ranks, real processes over gloo, against transformers on one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from bloom.attention import DenseCausalAttention
from bloom.linear_cross_entropy import linear_cross_entropy
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.tensor_parallel import TensorParallel, parallelize_for_training
from bloom.weights import load_config, load_model
from tests.support.bloom_models import assert_discriminates, hf_logits, make_hf_folder, make_hf_model, random_ids

HEADS, HIDDEN, LAYERS, VOCAB = 12, 48, 2, 211  # heads no power of two; the vocabulary divides by no number of ranks
BATCH, LENGTH = 2, 24
IDS = random_ids(BATCH * LENGTH, VOCAB, seed=7)
TARGETS = random_ids(BATCH * LENGTH, VOCAB, seed=8)

Change = Callable[[BloomModel, int], None]  # of a rank's model, before it computes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=HEADS, hidden=HIDDEN, n_layer=LAYERS, vocab=VOCAB)


def compute(
    rank: int, folder: Path, size: int, sequence: bool, out: Path, slopes_of: int | None, keep_sum: bool
) -> None:
    """One rank: loss, and its parts of all gradients, to a file. slopes_of: whose slopes it uses, not its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=size)
    config = load_config(folder)
    shard = Shard.of(config, tp_rank=rank, tp_size=size)
    parallel = TensorParallel(dist.group.WORLD, sequence)
    model = parallelize_for_training(load_model(folder, shard=shard), shard, parallel)
    head_slopes = (shard if slopes_of is None else Shard.of(config, tp_rank=slopes_of, tp_size=size)).slopes(config)
    hidden = model(IDS, DenseCausalAttention(head_slopes, BATCH, LENGTH))
    hidden = hidden if keep_sum else parallel.enter(hidden)
    head = model.word_embeddings.weight
    loss = linear_cross_entropy(
        hidden, head, TARGETS, vocabulary=shard.vocabulary(config), group=parallel.group, chunk_bytes=20 * 4 * len(head)
    )
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save((loss.detach(), gradients), out / f"{rank}.pt")
    dist.destroy_process_group()


def differences(
    folder: Path, tmp_path: Path, size: int, sequence: bool, slopes_of: int | None = None, keep_sum: bool = False
) -> dict[str, float]:
    """How far loss and gradients of the ranks are from transformers', each relative to its largest value."""
    mp.spawn(compute, (folder, size, sequence, tmp_path, slopes_of, keep_sum), nprocs=size)
    config = load_config(folder)
    loss, gradients = oracle()
    found: dict[str, float] = {}
    for rank in range(size):
        shard = Shard.of(config, tp_rank=rank, tp_size=size)
        got_loss, got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(got) == set(gradients)
        found["loss"] = max(found.get("loss", 0.0), abs(got_loss.item() / loss.item() - 1))
        for name, whole in gradients.items():
            rows, columns = shard.part(config, name)
            want = whole[rows] if whole.dim() == 1 else whole[rows, columns]
            part = got[name][: len(want)]
            assert not got[name][len(want) :].any()  # the vocabulary's padding
            error = (part - want).abs().sum() if not want.numel() else (part - want).abs().max()
            found[name] = max(found.get(name, 0.0), (error / whole.abs().max()).item())
    return found


def oracle() -> tuple[Tensor, dict[str, Tensor]]:
    model = make_hf_model(n_head=HEADS, hidden=HIDDEN, n_layer=LAYERS, vocab=VOCAB)
    assert_discriminates(lambda ids: hf_logits(model, ids), IDS[:LENGTH])
    logits = model(input_ids=IDS.view(BATCH, LENGTH)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TARGETS, reduction="sum")
    loss.backward()
    return loss.detach(), {
        name.removeprefix("transformer."): parameter.grad for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize(("size", "sequence"), [(2, False), (2, True), (4, True)])
def test_loss_and_all_gradients_equal_transformers(folder: Path, tmp_path: Path, size: int, sequence: bool):
    assert max(differences(folder, tmp_path, size, sequence).values()) < 1e-5


def test_slopes_of_other_heads_are_noticed(folder: Path, tmp_path: Path):
    assert max(differences(folder, tmp_path, 2, sequence=False, slopes_of=0).values()) > 1e-3


def test_a_hidden_gradient_that_is_not_summed_over_the_head_is_noticed(folder: Path, tmp_path: Path):
    found = differences(folder, tmp_path, 2, sequence=False, keep_sum=True)
    assert found["loss"] < 1e-5
    assert found["ln_f.weight"] > 1e-2
