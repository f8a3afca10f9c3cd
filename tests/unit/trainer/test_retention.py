"""Which checkpoints stay while a job runs, and after."""

from pathlib import Path

import pytest

from services.trainer.folder import JobFolder
from services.trainer.retention import Retention, finished


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)


def kept(tmp_path: Path, retention: Retention) -> list[str]:
    make(tmp_path, *(f"step-{step:08d}" for step in range(100, 800, 100)), "step-00000800.building")
    checkpoints = finished(tmp_path)
    surplus = retention.surplus(checkpoints)
    return [path.name.lstrip("step-0") for path in checkpoints if path not in surplus]


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Retention(), ["700", "600"]),
        (Retention(last=1), ["700"]),
        (Retention(last=9), ["700", "600", "500", "400", "300", "200", "100"]),
        (Retention(every=300), ["700", "600", "300"]),
        (Retention(last=1, every=200), ["700", "600", "400", "200"]),
    ],
)
def test_the_newest_stay_and_those_that_are_kept_for_good(tmp_path, retention, expected):
    assert kept(tmp_path, retention) == expected


@pytest.mark.parametrize(("every", "left"), [(0, []), (200, ["step-00000200"]), (700, [])])
def test_of_an_ended_jobs_checkpoints_those_kept_for_good_stay(tmp_path, every, left):
    folder = JobFolder(tmp_path)
    make(folder.checkpoints, "step-00000200", "step-00000300", "step-00000400.building")
    make(folder.path, "export", "base")
    folder.drop_weights(keep_every=every)
    assert sorted(path.name for path in folder.checkpoints.glob("*")) == left
    assert folder.checkpoints.exists() == bool(left)
    assert not folder.export.exists()
    assert not folder.base.exists()
