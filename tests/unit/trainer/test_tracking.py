"""TensorBoard, W&B and MLflow are told each step once, whatever attempt did it; none of them can end a training."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.common.settings import ROOT
from services.trainer.folder import JobFolder
from services.trainer.progress import Progress, ProgressReader, ProgressWriter, ValidationLoss
from services.trainer.tracking.__main__ import Once, follow
from services.trainer.tracking.configured import configured, without_secrets
from services.trainer.tracking.processes import Trackers
from services.trainer.tracking.tensorboard import TensorBoard
from tests.support.tensorboard import shown
from tests.support.training import job_folder, make_run

TOTAL = 9
VALIDATION = (ValidationLoss(dataset="held-out", language="fr", bits_per_byte=1.5, num_bytes=100),)


def step(number: int, loss: float = 1.0) -> Progress:
    return Progress(
        step=number,
        total_steps=TOTAL,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=0.5,
        tokens_per_second=100.0,
        tokens_seen=number * 64,
        seconds_left=1.0,
        time=1_700_000_000.0 + number,
        samples_seen=number * 2,
        model_flops_per_second=3e9,
        hardware_flops_per_second=4e9,
        validation=VALIDATION if number == TOTAL else (),
    )


def write(folder: JobFolder, steps: Sequence[Progress]) -> None:
    writer = ProgressWriter(folder.progress)
    for one in steps:
        writer.step(one)
    writer.flush()


FIRST_ATTEMPT = [step(number, 1.0) for number in range(1, 7)]
SECOND_ATTEMPT = [step(number, 2.0) for number in range(4, TOTAL + 1)]  # went on from the checkpoint of step 3
REPLACED = [(number, 1.0 if number < 4 else 2.0) for number in range(1, TOTAL + 1)]
FIRST_KEPT = [(number, 1.0 if number < 7 else 2.0) for number in range(1, TOTAL + 1)]


def track(folder: JobFolder, tracker: TensorBoard) -> None:
    follow(tracker, ProgressReader(folder.progress, folder.tracked("tensorboard")), lambda: True)


def in_tensorboard(folder: JobFolder) -> list[tuple[int, float]]:
    return shown(folder.tensorboard)["loss"]


def test_tensorboard_shows_every_figure_of_a_step(tmp_path):
    folder = JobFolder(tmp_path / "jobs" / "job")
    TensorBoard(folder.tensorboard).track([step(TOTAL)])
    points = {name: found for name, [found] in shown(tmp_path / "tensorboard" / "job").items()}
    assert {step for step, _ in points.values()} == {TOTAL}
    assert {name: value for name, (_, value) in points.items()} == pytest.approx(
        {
            "loss": 1.0,
            "learning_rate": 1e-3,
            "grad_norm": 0.5,
            "tokens_per_second": 100.0,
            "tokens_seen": 576.0,
            "samples_seen": 18.0,
            "model_flops_per_second": 3e9,
            "hardware_flops_per_second": 4e9,
            "bits_per_byte/held-out/fr": 1.5,
        }
    )


@pytest.mark.parametrize("killed_before_reporting", [False, True])
def test_tensorboard_shows_a_step_that_was_done_again_once(tmp_path, killed_before_reporting):
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.path.mkdir(parents=True)
    write(folder, FIRST_ATTEMPT)
    track(folder, TensorBoard(folder.tensorboard))
    if killed_before_reporting:
        folder.tracked("tensorboard").unlink()
    write(folder, SECOND_ATTEMPT)
    track(folder, TensorBoard(folder.tensorboard))
    assert in_tensorboard(folder) == REPLACED


def test_steps_that_go_back_within_one_look_replace_the_first_ones(tmp_path):
    folder = JobFolder(tmp_path / "jobs" / "job")
    TensorBoard(folder.tensorboard).track([*FIRST_ATTEMPT, *SECOND_ATTEMPT])
    assert in_tensorboard(folder) == REPLACED


def test_without_the_mark_of_a_restart_steps_would_be_doubled(tmp_path, monkeypatch):
    folder = JobFolder(tmp_path / "jobs" / "job")
    add = TensorBoard._add
    monkeypatch.setattr(TensorBoard, "_add", lambda self, event: event.HasField("session_log") or add(self, event))
    for steps in (FIRST_ATTEMPT, SECOND_ATTEMPT):
        TensorBoard(folder.tensorboard).track(steps)
    assert in_tensorboard(folder) != REPLACED


class Told:
    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def track(self, steps: Sequence[Progress]) -> None:
        self.steps += [(one.step, one.loss) for one in steps]

    def close(self, is_done: bool) -> None:
        self.is_done = is_done


def test_a_tracker_that_takes_no_step_back_is_told_each_once_over_attempts(tmp_path):
    told = Told()
    Once(told, tmp_path / "highest").track(FIRST_ATTEMPT)
    Once(told, tmp_path / "highest").track(SECOND_ATTEMPT)
    assert told.steps == FIRST_KEPT


def run_tracker(name: str, spec, folder: JobFolder, **env: str) -> None:
    """The program, over what is written, to its end."""
    spec.save(folder.run)
    folder.tracking_over(spec.fencing_token).touch()
    command = [sys.executable, "-m", "services.trainer.tracking", name, str(folder.path)]
    result = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def two_attempts(name: str, data_dir: Path, **env: str) -> JobFolder:
    spec = make_run(data_dir)
    folder = job_folder(spec)
    write(folder, FIRST_ATTEMPT)
    run_tracker(name, spec, folder, **env)
    write(folder, SECOND_ATTEMPT)
    run_tracker(name, dataclasses.replace(spec, attempt=2, fencing_token=2), folder, **env)
    return folder


@pytest.mark.long
def test_mlflow_has_one_run_for_the_job_with_each_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    two_attempts("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="flowers")
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("flowers").experiment_id])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("job", "FINISHED")]
    history = client.get_metric_history(runs[0].info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == FIRST_KEPT
    assert client.get_metric_history(runs[0].info.run_id, "bits_per_byte/held-out/fr")[0].value == 1.5
    assert runs[0].data.params["learning_rate"] == "0.003"


def test_wandb_offline_has_one_id_for_the_job_with_each_step_once(tmp_path):
    pytest.importorskip("wandb")
    env = {"WANDB_MODE": "offline", "WANDB_PROJECT": "flowers", "WANDB_API_KEY": "k" * 40}
    folder = two_attempts("wandb", tmp_path, **env)
    records = [
        record for file in sorted(folder.path.glob("wandb/offline-run-*/*.wandb")) for record in wandb_records(file)
    ]
    assert {(record.run.project, record.run.run_id) for record in records if record.HasField("run")} == {
        ("flowers", "job")
    }
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["loss"]) for row in rows] == FIRST_KEPT
    assert rows[-1]["bits_per_byte/held-out/fr"] == 1.5
    for path in folder.path.rglob("*"):
        assert path.is_dir() or path.is_symlink() or b"k" * 40 not in path.read_bytes(), path


def wandb_records(file: Path):
    """What an offline run keeps, by W&B's own messages; framed as LevelDB's log is, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or a last part
            yield Record.FromString(parts)
            parts = b""


def test_a_tracker_that_fails_is_spoken_of_once_without_its_password_and_the_others_go_on(tmp_path):
    spec = make_run(tmp_path)
    folder = job_folder(spec)
    write(folder, FIRST_ATTEMPT)
    said: list[str] = []
    uri = "nonsense://ada:pass-word@nowhere"
    env = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_PASSWORD": "pass-word"}
    kept: list[int] = []
    with Trackers(folder, spec.fencing_token, env, said.append) as trackers:
        trackers.finish(lambda: kept.append(1))
    assert kept
    assert len(said) == 1
    assert said[0].startswith("mlflow is told no more of this attempt: ")
    assert "pass-word" not in said[0]
    assert in_tensorboard(folder) == FIRST_KEPT[:6]


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({}, ["tensorboard"]),
        ({"WANDB_API_KEY": "k"}, ["tensorboard"]),
        ({"WANDB_PROJECT": "p", "MLFLOW_TRACKING_URI": "file:x"}, ["tensorboard", "wandb", "mlflow"]),
    ],
)
def test_trackers_are_those_that_the_environment_names(env, names):
    assert configured(env) == names


def test_keys_and_users_in_addresses_are_not_shown():
    env = {"WANDB_API_KEY": "abc", "HOME": "/root"}
    assert without_secrets("abc at https://ada:x@host/root", env) == "*** at https://***@host/root"
    env |= {"B_SECRET": "abcdef", "TOKENIZERS_PARALLELISM": "false"}
    assert without_secrets("abcdef abc false", env) == "*** *** false"
