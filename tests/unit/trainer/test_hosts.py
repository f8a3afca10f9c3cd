"""Which hosts an attempt runs on, and what is remembered of them."""

import json
import os
import select
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.settings import ROOT
from services.trainer.failure import JobFailure
from services.trainer.find_hosts import ranked, read_hostfile
from services.trainer.folder import JobFolder
from services.trainer.guard import rank_environment, record
from services.trainer.hosts import (
    Host,
    Hosts,
    deaths_on_hosts,
    how_it_died,
    remember_death,
    runner_command,
    runner_environment,
    written_environment,
)
from services.trainer.lease_file import write_lease

THREE = Hosts((Host("a", 4, 1001), Host("b", 4, 1002), Host("c", 4, 1003)), {})


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def test_a_hostfile_is_deepspeeds(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# ours\nfirst slots=8\n\n10.0.0.2   slots=4\n")
    assert list(read_hostfile(path).items()) == [("first", 8), ("10.0.0.2", 4)]


@pytest.mark.parametrize("text", ["", "first", "first slots=x", "first slots=0", "first slots=1\nfirst slots=2", None])
def test_a_bad_hostfile_is_refused_with_what_a_good_one_is(tmp_path, text):
    path = tmp_path / "hostfile"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobFailure, match=f"{path}.*NAME slots=N") as bad:
        read_hostfile(path)
    assert bad.value.code == "BAD_HOSTFILE"


def test_hosts_that_do_not_answer_are_left_out_with_what_they_said():
    errors = "pdsh@here: b: connect: timed out\nc: /data/lease does not hold token 2\npdsh@here: c: ssh exited with 1\n"
    hosts = ranked({"a": 8, "b": 8, "c": 8, "d": 8}, {"a": 1001}, errors, {})
    assert hosts.ready == (Host("a", 8, 1001),)
    assert hosts.left_out == {
        "b": "connect: timed out",
        "c": "/data/lease does not hold token 2; ssh exited with 1",
        "d": "no answer",
    }
    assert hosts.room[0] == 8
    assert "8 slots; b is left out: connect: timed out" in hosts.room[1]


def test_a_host_is_not_mistaken_for_another_whose_name_ends_like_it():
    assert ranked({"b": 8, "ab": 8}, {}, "pdsh@here: ab: gone\n", {}).left_out == {"b": "no answer", "ab": "gone"}


def test_hosts_on_which_ranks_died_come_last(folder):
    for name in ["a", "b", "a"]:
        remember_death(folder, name)
    hosts = ranked({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}, "", deaths_on_hosts(folder))
    assert [host.name for host in hosts.ready] == ["c", "b", "a"]


@given(slots=st.lists(st.integers(1, 9), min_size=1, max_size=9), data=st.data())
@settings(database=None)
def test_as_many_slots_are_taken_as_there_are_ranks_of_the_first_hosts(slots, data):
    num_ranks = data.draw(st.integers(1, sum(slots)))
    hosts = Hosts(tuple(Host(str(number), count, 1) for number, count in enumerate(slots)), {})
    taken = hosts.taken(num_ranks).ready
    assert sum(host.slots for host in taken) == num_ranks
    assert [host.name for host in taken] == [str(number) for number in range(len(taken))]
    assert [host.slots for host in taken[:-1]] == slots[: len(taken) - 1]
    assert 0 < taken[-1].slots <= slots[len(taken) - 1]


def test_deepspeeds_runner_gets_the_taken_hosts_and_rank_0s_address(folder):
    command = runner_command(THREE.taken(6), folder, 3)
    assert folder.hostfile.read_text() == "a slots=4\nb slots=2\n"
    assert {f"--hostfile={folder.hostfile}", "--master_addr=a", "--master_port=1001", "--force_multi"} < set(command)


def test_the_first_end_of_a_rank_is_told_and_the_host_where_it_was_killed_remembered(folder):
    record(folder.death(3), 5, -9)
    record(folder.death(3), 0, 1)
    assert how_it_died(THREE.taken(6), folder, 2) == ""
    assert how_it_died(THREE.taken(6), folder, 3) == "rank 5 on b was killed by signal 9"
    assert deaths_on_hosts(folder) == {"b": 1}


def test_a_rank_that_ended_by_itself_is_not_its_hosts_fault(folder):
    record(folder.death(3), 0, 1)
    assert how_it_died(THREE, folder, 3) == "rank 0 on a ended with exit code 1"
    assert deaths_on_hosts(folder) == {}


def test_what_is_found_is_read_back(folder):
    hosts = Hosts(THREE.ready, {"d": "no answer"})
    hosts.save(folder.hosts)
    assert Hosts.load(folder.hosts) == hosts


def test_a_ranks_variables_are_in_a_file_for_its_user_alone_and_a_host_keeps_its_own(folder):
    folder.environment(19).write_text("left by an attempt whose worker was killed")
    carried = {"AWS_SECRET_ACCESS_KEY": "secret", "PATH": "/worker", "OMP_NUM_THREADS": "64"}
    with written_environment(folder, 20, carried):
        (path,) = folder.path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        own = {"PATH": "/host", "RANK": "3", "LOCAL_SIZE": "1000000"}
        env = rank_environment(json.loads(folder.environment(20).read_text()), own)
    assert (env["AWS_SECRET_ACCESS_KEY"], env["PATH"], env["OMP_NUM_THREADS"]) == ("secret", "/host", "1")
    assert list(folder.path.iterdir()) == []


def test_what_deepspeed_would_write_on_command_lines_is_kept_from_it():
    env = runner_environment({"MLFLOW_TRACKING_PASSWORD": "secret", "PDSH_SSH_ARGS_APPEND": "-p 2222"})
    assert list(env) == ["PDSH_SSH_ARGS_APPEND"]
    assert env["PDSH_SSH_ARGS_APPEND"].startswith("-p 2222 -o BatchMode=yes")


@pytest.mark.parametrize("why", ["the lease is over", "another rank died"])
def test_a_guard_ends_its_rank_even_where_that_is_stopped(folder, why):
    write_lease(folder.lease, 1, 600.0)
    program = textwrap.dedent(f"""
        import signal, subprocess
        from pathlib import Path
        from services.trainer.guard import watch
        from services.trainer.lease_file import LeaseFile
        rank = subprocess.Popen(["sleep", "600"])
        rank.send_signal(signal.SIGSTOP)
        print(rank.pid, flush=True)
        watch(rank, LeaseFile(Path({str(folder.lease)!r}), 1), Path({str(folder.death(1))!r}))
    """)
    command = [sys.executable, "-c", program]
    guard = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    with guard, os.fdopen(os.pidfd_open(int(guard.stdout.readline()))) as rank:
        if why == "the lease is over":
            write_lease(folder.lease, 1, 0.0)
        else:
            record(folder.death(1), 7, 1)
        assert guard.wait(30) == -signal.SIGKILL
        assert select.select([rank], [], [], 30)[0]  # readable once the process has ended
