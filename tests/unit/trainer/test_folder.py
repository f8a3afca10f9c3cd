"""What is counted over a job's attempts."""

from pathlib import Path

from services.trainer.folder import JobFolder


def test_deaths_are_counted_from_the_newest_finished_checkpoint(tmp_path: Path):
    folder = JobFolder(tmp_path)
    folder.checkpoints.mkdir()
    assert [folder.count_fruitless_death() for _ in range(2)] == [1, 2]
    (folder.checkpoints / "step-00000010.building").mkdir()  # half a checkpoint is no progress
    assert folder.count_fruitless_death() == 3
    (folder.checkpoints / "step-00000010").mkdir()
    assert folder.count_fruitless_death() == 1
