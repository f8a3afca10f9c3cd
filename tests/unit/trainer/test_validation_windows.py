"""Validation texts as windows: every token scored once, and what a plain model says of them."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from bloom.weights import load_model
from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec
from services.trainer.dataset import IGNORE
from services.trainer.failure import JobFailure
from services.trainer.loss import LanguageModelLoss
from services.trainer.packing import Window, pack
from services.trainer.prepare import prepare
from services.trainer.validation_windows import ValidationWindows, cut, scored_after
from tests.support.bits_per_byte import bits_per_byte
from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training import BASE, job_folder, jsonl, make_run

LONG = " ".join(TEXTS[:3])
ROWS = [
    {"text": TEXTS[0], "language": "en"},
    {"text": TEXTS[1], "language": "fr"},
    {"text": LONG, "language": "en"},  # some windows long
    {"text": "Hello", "language": "fr"},  # several in a window
    {"text": " world", "language": "fr"},
    {"text": TEXTS[3]},
    {"text": TEXTS[8], "language": None},
]
KNOWN = [{name: value for name, value in row.items() if value} for row in ROWS]


def run_on(data_dir: Path, rows, form="text", **changes):
    spec = make_run(data_dir, **changes)
    store = ArtifactStore(spec.artifacts_url, data_dir / "cache")
    held_out = DatasetSpec(name="held-out", format=form, digest=store.write_bytes(jsonl(rows)))
    return make_run(data_dir, validation=(held_out,), **changes)


def windows_of(spec) -> ValidationWindows:
    folder = Path(prepare(spec, job_folder(spec)).validation_folder)
    return ValidationWindows(folder, spec.config.sequence_length)


def scored(windows: ValidationWindows, group) -> list[int]:
    batch = windows.micro_batch(group.first, group.num_windows, group.num_windows)
    return sorted(int(target) for target in batch.targets.flat if target != IGNORE)


@given(
    context=st.lists(st.integers(4, 99), min_size=1, max_size=40),
    targets=st.lists(st.integers(4, 99), max_size=60),
    length=st.integers(2, 20),
)
def test_every_target_of_a_text_is_in_one_window_after_what_stands_before_it(context, targets, length):
    pieces = list(cut(context, targets, length))
    assert [token for _, piece in pieces for token in piece] == targets
    assert all(before and len(before) + len(piece) <= length + 1 for before, piece in pieces)
    done: list[int] = []
    for before, piece in pieces:
        assert [*context, *done][-len(before) :] == before
        done += piece
    examples = (scored_after(*piece) for piece in pieces)
    learnt = [t for window in pack(examples, length) for t in window.targets if t != IGNORE]
    assert sorted(learnt) == sorted(targets)


def test_groups_are_a_datasets_languages_with_their_bytes(tmp_path):
    windows = windows_of(run_on(tmp_path, ROWS))
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    assert [(group.dataset, group.language) for group in windows.groups] == [
        ("held-out", ""), ("held-out", "en"), ("held-out", "fr")
    ]  # fmt: skip
    for group in windows.groups:
        texts = [row["text"] for row in ROWS if (row.get("language") or "") == group.language]
        assert group.num_bytes == sum(len(text.encode()) for text in texts)
        assert scored(windows, group) == sorted(
            token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids
        )


def test_of_multitask_rows_the_targets_are_scored(tmp_path):
    rows = [{"inputs": "one two", "targets": " three", "language": "en"}]
    windows = windows_of(run_on(tmp_path, rows, "multitask"))
    assert windows.groups[0].num_bytes == len(" three")
    expected = Tokenizer.from_str(small_tokenizer_json()).encode(" three", add_special_tokens=False).ids
    assert scored(windows, windows.groups[0]) == sorted(expected)


def test_of_a_conversation_each_answer_is_scored_and_of_a_completion_what_completes(tmp_path):
    roles = ("user", "assistant", "user", "assistant")
    talk = [{"role": role, "content": f"{role}{i}."} for i, role in enumerate(roles)]
    unscored = [talk[0], {**talk[1], "weight": 0}, *talk[2:]]
    rows = [{"messages": talk}, {"messages": unscored}, {"prompt": "one two", "completion": " three"}]
    windows = windows_of(run_on(tmp_path, rows, "multitask"))
    texts = [" assistant1.", " assistant3.", " assistant3.", " three"]
    assert windows.groups[0].num_bytes == sum(map(len, texts))
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    expected = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert scored(windows, windows.groups[0]) == sorted(expected)


def test_windows_are_written_once_and_bpe_dropout_does_not_reach_them(tmp_path):
    plain = windows_of(run_on(tmp_path, ROWS))
    dropped = run_on(tmp_path, ROWS, config=dataclasses.replace(BASE, bpe_dropout=0.5))
    folder = Path(prepare(dropped, job_folder(dropped)).validation_folder)
    written = (folder / "inputs.bin").stat().st_mtime_ns
    again = windows_of(dropped)
    assert (folder / "inputs.bin").stat().st_mtime_ns == written
    assert [scored(again, group) for group in again.groups] == [scored(plain, group) for group in plain.groups]


def test_a_row_that_is_none_is_refused_with_its_number(tmp_path):
    with pytest.raises(JobFailure, match=r"'held-out', row 2 has no string 'text'"):
        windows_of(run_on(tmp_path, [{"text": "a"}, {"texts": "b"}]))


@pytest.mark.parametrize("mutated", [False, True])
def test_bits_per_byte_are_those_that_transformers_gives_text_by_text(tmp_path, monkeypatch, mutated):
    if mutated:  # packed texts see each other
        monkeypatch.setattr(Window, "add", in_one_segment)
    folder = make_hf_folder(tmp_path / "model", vocab=512)
    windows = windows_of(run_on(tmp_path, ROWS))
    loss = LanguageModelLoss(load_model(folder, dtype=torch.float32)).eval()
    found = {group.language: nats(loss, windows, group) / math.log(2) / group.num_bytes for group in windows.groups}
    expected = bits_per_byte(
        BloomForCausalLM.from_pretrained(folder), Tokenizer.from_str(small_tokenizer_json()), KNOWN, 32
    )
    assert set(found) == set(expected) == {"", "en", "fr"}
    greatest = max(abs(found[language] / expected[language][0] - 1) for language in found)
    assert greatest > 1e-3 if mutated else greatest < 1e-5


def nats(loss: LanguageModelLoss, windows: ValidationWindows, group) -> float:
    batch = windows.micro_batch(group.first, group.num_windows, group.num_windows + 1)  # one row of padding
    with torch.no_grad():
        tensors = map(torch.from_numpy, (batch.inputs, batch.targets, batch.segments))
        return float(loss(*tensors, 1.0))


def in_one_segment(window: Window, inputs: list[int], targets: list[int], segment: int) -> None:
    window.inputs += inputs
    window.targets += targets
    window.segments += [0] * len(inputs)
