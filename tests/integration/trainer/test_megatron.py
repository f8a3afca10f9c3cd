"""Megatron-DeepSpeed's checkpoints: read against DeepSpeed's own converter, and trained on with."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.parallel import Shard
from bloom.tensors import expected_tensors
from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.launch import deepspeed_command, environment
from services.trainer.megatron.files import load_optimizer, optimizer_name
from services.trainer.megatron.states import Fragment, parameter_name
from services.trainer.megatron.to_ours import to_ours
from services.trainer.megatron.to_theirs import to_theirs
from services.trainer.saved_state import SavedState
from tests.support import megatron_run
from tests.support.training import BASE, losses, make_run, run_stages

CONFIG = BloomConfig(
    vocab_size=megatron_run.VOCAB,
    hidden_size=megatron_run.HIDDEN,
    n_layer=megatron_run.LAYERS,
    n_head=megatron_run.HEADS,
)
STATES = {"value": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


def deepspeed_run(folder: Path, layout: Layout, load_from: Path | None = None) -> None:
    """Two steps of DeepSpeed's own engine; a checkpoint `global_step<n>` in `folder`."""
    arguments = [str(folder), *map(str, (layout.tp, layout.pp, layout.dp)), *([str(load_from)] if load_from else [])]
    command = deepspeed_command(folder, layout)
    command[-2:] = ["tests.support.megatron_run", *arguments]
    done = subprocess.run(command, env=environment("job", 1, layout), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def universal(source: Path, target: Path) -> Path:
    """What DeepSpeed makes of a checkpoint: a folder per parameter."""
    arguments = ["--input_folder", str(source), "--output_folder", str(target), "--num_extract_workers", "1"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *arguments, "--num_merge_workers", "1"]
    env = dict(os.environ) | {"DS_ACCELERATOR": "cpu", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return target / "zero"


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_files_that_deepspeed_wrote_are_read_as_its_own_converter_reads_them_and_written_as_it_wrote_them(tmp_path):
    layout = Layout(tp=2, pp=2, dp=2)
    deepspeed_run(tmp_path / "run", layout)
    source = tmp_path / "run" / "global_step2"
    assert to_ours(source, tmp_path / "ours", CONFIG) == 2
    merged = universal(source, tmp_path / "universal")
    saved = SavedState(tmp_path / "ours" / "state")
    assert saved.optimizer_steps == 2
    for name, shape in expected_tensors(CONFIG).items():
        for ours, theirs in STATES.items():
            kept = torch.load(merged / parameter_name(CONFIG, name) / f"{theirs}.pt", weights_only=False)
            want = (kept["param"] if isinstance(kept, dict) else kept)[: shape[0]]
            got = saved.read(name, ours)
            assert got.abs().sum() > 0, f"{ours} of {name} is empty: nothing is tested"
            torch.testing.assert_close(got, want.view(shape), rtol=1e-6, atol=1e-12, msg=f"{ours} of {name}")
    to_theirs(tmp_path / "ours" / "state", tmp_path / "back", layout)
    for mp_rank in range(4):
        _assert_same_files(source, tmp_path / "back", mp_rank)
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    for name in expected_tensors(CONFIG):
        if Shard.of(CONFIG, tp_size=2).is_cut(
            CONFIG, name
        ):  # else the mean of bf16 numbers, not the bf16 of their mean
            assert torch.equal(weights[f"transformer.{name}"].float(), saved.read(name).bfloat16().float())


def _assert_same_files(want_folder: Path, got_folder: Path, mp_rank: int) -> None:
    """Names, addresses, paddings, and the numbers of all that tensor-parallel ranks do not average."""
    names = [optimizer_name(dp_rank, mp_rank) for dp_rank in range(2)]
    want, got = ([load_optimizer(folder / name) for name in names] for folder in (want_folder, got_folder))
    for theirs, ours in zip(want, got, strict=True):
        mappings = [[list(group.items()) for group in file["param_slice_mappings"]] for file in (theirs, ours)]
        assert mappings[0] == mappings[1], mp_rank
        assert ours["group_paddings"] == theirs["group_paddings"]
        assert ours["partition_count"] == theirs["partition_count"]
        flats = [[flat.shape for flat in file["single_partition_of_fp32_groups"]] for file in (theirs, ours)]
        assert flats[0] == flats[1]
    matrices = {name for file in want for group in file["param_slice_mappings"][:2] for name in group}
    assert len(matrices) == 5  # the embedding and a block's four
    for name in matrices:
        first_row = mp_rank % 2 * megatron_run.PADDED // 2
        known = (CONFIG.vocab_size - first_row) * CONFIG.hidden_size if "word_embeddings" in name else None
        for key in STATES:
            assert torch.equal(_flat(got, name, key)[:known], _flat(want, name, key)[:known]), (mp_rank, name, key)


def _flat(files: list[dict[str, Any]], name: str, key: str) -> torch.Tensor:
    """A parameter's numbers, out of all replicas' files."""
    parts = []
    for file in files:
        for group, addresses in enumerate(file["param_slice_mappings"]):
            if name in addresses:
                parts.append(Fragment(file, group, addresses[name]).read(key))
    return torch.cat(parts)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_deepspeed_goes_on_from_what_was_converted_there_and_back_as_from_its_own_files(tmp_path):
    layout = Layout(pp=2, dp=2)  # norms are not averaged without TP
    deepspeed_run(tmp_path / "run", layout)
    # Its padding's rows are among the classes of its loss: they are kept here, as they are of the BLOOM models.
    padded = dataclasses.replace(CONFIG, vocab_size=megatron_run.PADDED)
    to_ours(tmp_path / "run" / "global_step2", tmp_path / "ours", padded)
    to_theirs(tmp_path / "ours" / "state", tmp_path / "back" / "global_step2", layout)
    for folder in ("run", "back"):
        deepspeed_run(tmp_path / f"{folder}-on", layout, tmp_path / folder)
    for mp_rank in range(2):
        for dp_rank in range(2):
            name = optimizer_name(dp_rank, mp_rank)
            want, got = (
                load_optimizer(tmp_path / f"{folder}-on" / "global_step4" / name) for folder in ("run", "back")
            )
            for group, flat in enumerate(want["single_partition_of_fp32_groups"]):
                assert torch.equal(got["single_partition_of_fp32_groups"][group], flat), (name, group)


@pytest.mark.timeout(900)
def test_a_run_that_goes_on_through_their_files_ends_as_one_that_was_never_stopped(tmp_path: Path):
    config = dataclasses.replace(BASE, steps=6, checkpoint_every_steps=3, dropout=0.1)
    spec = make_run(tmp_path / "data", config)
    undisturbed = run_stages(spec)
    to_theirs(undisturbed.checkpoints / "step-00000003", tmp_path / "theirs", Layout(tp=3, pp=2, dp=2))
    shape = SavedState(undisturbed.checkpoints / "step-00000003").config
    to_ours(tmp_path / "theirs", tmp_path / "imported", shape)
    store = ArtifactStore(spec.artifacts_url, tmp_path / "cache")
    paths = [path for path in sorted((tmp_path / "imported").rglob("*")) if path.is_file()]
    files = tuple((str(path.relative_to(tmp_path / "imported")), store.write_file(path)) for path in paths)
    continued = run_stages(dataclasses.replace(spec, job_id="continued", model_config="", base_files=files))
    assert losses(continued) == losses(undisturbed)[3:]
    want, got = (load_file(folder.export / "model.safetensors") for folder in (undisturbed, continued))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    said = continued.progress.read_text()
    assert "going on from the base's own state, at step 3" in said
