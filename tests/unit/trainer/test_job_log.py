"""What is printed reaches the registry in order, once, without secrets."""

from pathlib import Path

import pytest

from services.trainer import job_log
from services.trainer.job_log import MAX_BEHIND, MAX_SENT, JobLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.log"


class Registry:
    """Its end of a job's log: what it has already is left out."""

    def __init__(self) -> None:
        self.text = ""

    def take(self, log: JobLog) -> None:
        position, text = log.part()
        self.text += text[max(0, len(self.text) - position) :]

    def take_all(self, log: JobLog) -> None:
        while log.part()[1]:
            self.take(log)
            log.reported()


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_whole_lines_are_sent_in_order_however_much_is_printed(path):
    registry, log = Registry(), JobLog(path, 1, 0)
    assert log.part() == (0, "")
    add(path, "one\ntw")
    registry.take_all(log)
    assert registry.text == "one\n"
    lines = "".join(f"ligne {number} é\n" for number in range(20_000))
    add(path, "o\n" + lines)
    registry.take_all(log)
    assert registry.text == "one\ntwo\n" + lines


def test_a_part_stays_the_same_until_it_is_reported(path):
    log = JobLog(path, 1, 0)
    add(path, "one\n")
    first = log.part()
    add(path, "two\n")
    assert log.part() == first == (0, "one\n")
    log.reported()
    assert log.part() == (4, "two\n")


@pytest.mark.parametrize("was_heard", [True, False])
def test_the_next_attempt_of_a_killed_worker_leaves_out_nothing_and_repeats_nothing(path, was_heard):
    registry, log = Registry(), JobLog(path, 1, 0)
    add(path, "one\n")
    registry.take_all(log)
    add(path, "two\n")
    log.part()
    if was_heard:  # the registry has it, but the worker is killed before it knows
        registry.take(log)
    add(path, "three\n")
    registry.take_all(JobLog(path, 2, len(registry.text)))
    assert registry.text == "one\ntwo\nthree\n"


def test_an_attempt_that_follows_one_on_another_machine_goes_on_after_it(path):
    registry, log = Registry(), JobLog(path, 1, 0)
    add(path, "here\n")
    registry.take_all(log)
    registry.text += "there\n"  # attempt 2, elsewhere
    add(path, "here again\n")
    registry.take_all(JobLog(path, 3, len(registry.text)))
    assert registry.text == "here\nthere\nhere again\n"


def test_what_is_printed_faster_than_it_is_sent_is_left_out_and_that_is_said(path):
    registry, log = Registry(), JobLog(path, 1, 0)
    add(path, "first\n" + "x" * 99 + "\n" + ("y" * 99 + "\n") * (MAX_BEHIND // 100) + "last\n")
    registry.take_all(log)
    said, *lines = registry.text.splitlines()
    assert said.endswith("bytes are left out here …")
    assert set(lines) == {"y" * 99, "last"}
    assert lines[-1] == "last"


def test_a_line_without_end_is_sent_in_pieces(path):
    registry, log = Registry(), JobLog(path, 1, 0)
    add(path, "z" * (2 * MAX_SENT) + "\n")
    registry.take_all(log)
    assert registry.text == "z" * (2 * MAX_SENT) + "\n"


def test_secrets_are_left_out_whatever_printed_them(path, monkeypatch):
    environment = {"WANDB_API_KEY": "0123456789abcdef", "HF_TOKEN": "hf_abcdefgh", "TOKENIZERS_PARALLELISM": "false"}
    key = "an_" + "k" * 43
    add(path, f"0123456789abcdef and hf_abcdefgh and {key} false\nredis://user:pass@host/0\n")
    log = JobLog(path, 1, 0, environment)
    sent = log.part()[1]
    assert sent == "*** and *** and an_… false\nredis://***@host/0\n"
    monkeypatch.setattr(job_log, "without_secrets", lambda text, _: text)  # the planted mistake
    assert "hf_abcdefgh" in JobLog(path, 2, 0, environment).part()[1]
