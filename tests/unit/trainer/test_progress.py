"""Steps may be reported twice, never left out, whoever is killed."""

import dataclasses

from services.trainer.progress import Progress, ProgressReader, ProgressWriter, ValidationLoss


def step(number: int) -> Progress:
    return Progress(
        step=number, total_steps=9, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens_per_second=1.0,
        tokens_seen=number, seconds_left=1.0, time=0.0,
    )  # fmt: skip


def test_what_was_not_reported_is_read_again_by_the_next_attempt(tmp_path):
    path = tmp_path / "progress.jsonl"
    writer, reader = ProgressWriter(path), ProgressReader(path)
    writer.step(step(1))
    writer.flush()
    assert reader.read() == ([step(1)], [])
    reader.reported()
    writer.step(step(2))
    writer.message("hello")
    assert reader.read() == ([step(2)], ["hello"])  # and then the worker is killed
    assert ProgressReader(path).read() == ([step(2)], ["hello"])


def test_validation_is_read_as_it_was_written(tmp_path):
    loss = ValidationLoss(dataset="held-out", language="fr", bits_per_byte=1.5, num_bytes=7)
    validated = dataclasses.replace(step(1), validation=(loss,), samples_seen=3)
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    writer.step(validated)
    writer.flush()
    assert ProgressReader(tmp_path / "progress.jsonl").read() == ([validated], [])


def test_a_line_cut_off_by_a_kill_is_skipped(tmp_path):
    path = tmp_path / "progress.jsonl"
    reader = ProgressReader(path)
    assert reader.read() == ([], [])
    path.write_text('{"progress": {"st')
    assert reader.read() == ([], [])
    writer = ProgressWriter(path)
    writer.step(step(3))
    writer.flush()
    assert reader.read() == ([step(3)], [])
