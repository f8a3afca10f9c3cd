"""What commands make of messages, and of NAME=VALUE pairs."""

from datetime import UTC, datetime

import pytest
from anthesis.cli.job_progress import event_line
from anthesis.cli.output import enum_name, plain, show_bytes, show_count, show_flops
from anthesis.cli.submit import parse_options
from anthesis.v1.job_pb2 import Job, JobEvent, JobState, TrainingProgress, ValidationLoss
from anthesis.v1.registry_pb2 import Dataset, Model, ModelFile, ModelVersion
from google.protobuf.timestamp_pb2 import Timestamp


def test_large_numbers_stay_numbers() -> None:
    assert plain(Model(name="bloom", parameters=176_247_271_424))["parameters"] == 176_247_271_424


def test_enums_lose_their_prefix() -> None:
    assert plain(Job(state=JobState.JOB_STATE_RUNNING))["state"] == "RUNNING"
    assert enum_name(JobState, JobState.JOB_STATE_CANCELLED) == "CANCELLED"


def test_times_are_iso_8601_and_absent_when_unset() -> None:
    time = Timestamp()
    time.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    assert plain(Dataset(create_time=time))["create_time"] == "2026-01-02T03:04:05+00:00"
    assert "create_time" not in plain(Dataset())


def test_a_step_is_a_line_with_the_models_and_the_hardwares_speed() -> None:
    step = TrainingProgress(
        step=2, total_steps=9, loss=3.5, learning_rate=1e-3, tokens_per_second=1200, seconds_left=75
    )
    step.model_flops_per_second = step.hardware_flops_per_second = 1.5e12
    line = "step 2/9  loss 3.5000  lr 1.00e-03  1,200 tokens/s  1.5 TFLOP/s"

    assert event_line(JobEvent(progress=step)) == f"{line}  1:15 left"
    step.hardware_flops_per_second = 2e12
    assert event_line(JobEvent(progress=step)) == f"{line} (hardware 2.0 TFLOP/s)  1:15 left"


def test_a_validation_is_a_line_for_each_dataset_with_its_total_by_bytes() -> None:
    losses = [
        ValidationLoss(dataset="a", language="en", bits_per_byte=1, num_bytes=300),
        ValidationLoss(dataset="a", language="fr", bits_per_byte=2, num_bytes=100),
        ValidationLoss(dataset="b", bits_per_byte=3, num_bytes=1),
    ]
    event = JobEvent(progress=TrainingProgress(step=4, total_steps=9, validation_step=4, validation=losses))

    assert event_line(event).splitlines()[1:] == [
        "validation after step 4, a: 1.2500 bits per byte (en 1.0000, fr 2.0000)",
        "validation after step 4, b: 3.0000 bits per byte (unknown 3.0000)",
    ]


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0, "0.0 FLOP/s"), (1500, "1.5 kFLOP/s"), (1.498e14, "149.8 TFLOP/s"), (4e21, "4000.0 EFLOP/s")],
)
def test_flops_are_short(per_second: float, text: str) -> None:
    assert show_flops(per_second) == text


def test_nested_and_repeated_messages_are_converted() -> None:
    version = ModelVersion(files=[ModelFile(path="config.json", size_bytes=3)], datasets=["a"])

    assert plain(version)["files"] == [{"path": "config.json", "digest": "", "size_bytes": 3, "carried": False}]
    assert plain([version])[0]["datasets"] == ["a"]


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    assert plain(["é".encode(), b"\xff"]) == ["é", "\\xff"]


def test_a_loss_that_is_no_number_is_null() -> None:
    assert plain(TrainingProgress(loss=float("nan")))["loss"] is None


def test_sizes_are_short() -> None:
    assert [show_bytes(n) for n in (0, 999, 1500, 2.24e9)] == ["0 B", "999 B", "1.5 kB", "2.2 GB"]
    assert [show_count(n) for n in (7, 559_214_592)] == ["7", "559.2M"]


def test_options_take_the_type_of_their_field() -> None:
    options = parse_options(["learning_rate=1e-4", "seed=7", "precision=fp32", "recompute=true"], steps=10)

    assert (options.steps, options.seed, options.precision, options.recompute) == (10, 7, "fp32", True)
    assert options.learning_rate == pytest.approx(1e-4)
    assert not options.HasField("epochs")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("speed=1", r"--option 'speed=1' is not NAME=VALUE with a NAME of steps, epochs, learning_rate"),
        ("seed", r"--option 'seed' is not NAME=VALUE"),
        ("seed=x", r"--option 'seed=x': 'x' is not a whole number from 0 to 18446744073709551615"),
        ("steps=-5", r"--option 'steps=-5': '-5' is not a whole number from 0 to 4294967295"),
        ("recompute=yes", r"--option 'recompute=yes': 'yes' is not true or false"),
        ("dropout=x", r"--option 'dropout=x': 'x' is not a number"),
    ],
)
def test_a_bad_option_is_named(pair: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options([pair])
