"""Jobs over several hosts, by the hostfile of a real worker on the first: namespaces with their own network, processes
and sshd. A rank that dies or hangs and a host that is lost cost a job its last steps; the spare host steps in.

`make test-long`.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2

from services.trainer.folder import JobFolder
from tests.support.hosts import INTERFACE, Host, running_hosts
from tests.support.training import MODEL, losses_alone, text_rows
from tests.support.training_platform import TrainingPlatform, losses_by_step, messages, processes_of, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
STEPS, EVERY = 60, 10
SECRET = "tell-nobody"
Cluster = tuple[TrainingPlatform, list[Host]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two hosts and a spare one."""
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with running_hosts(folder, 3) as hosts:
        hostfile = folder / "hostfile"
        hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
        env = {
            "ANTHESIS_HOSTFILE": str(hostfile),
            "ANTHESIS_HOSTS_SECONDS": "60",
            "PDSH_SSH_ARGS_APPEND": hosts[0].ssh_options,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "MLFLOW_TRACKING_PASSWORD": SECRET,
        }
        with TrainingPlatform(folder / "data", worker_on=hosts[0], **env) as platform:
            platform.dataset("texts", text_rows(300))
            yield platform, hosts
    shutil.rmtree(folder, ignore_errors=True)


def submit(platform: TrainingPlatform, layout: str) -> str:
    options = job_pb2.TrainOptions(
        steps=STEPS,
        sequence_length=64,
        micro_batch=8,
        precision="fp32",
        optimizer="adamw",
        dropout=0.1,
        checkpoint_every_steps=EVERY,
        layout=layout,
    )
    spec = job_pb2.PretrainSpec(
        output_model="far",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=options,
    )
    return platform.submit(spec)


def hosts_of(folder: JobFolder) -> list[str]:
    return [line.split()[0] for line in folder.hostfile.read_text().splitlines()]


def assert_nobody_can_read(platform: TrainingPlatform, job_id: str, secret: str) -> None:
    """Ranks have the variable; no command line on any host does."""
    for pid in platform.ranks(job_id):
        assert secret.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert secret.encode() not in (entry / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
    assert platform.folder(job_id).environment(1).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("layout", ["1x1x2", "1x2x1", "2x1x1"])
def test_ranks_on_two_hosts_learn_what_they_learn_on_one(cluster: Cluster, layout: str) -> None:
    platform, hosts = cluster
    job_id = submit(platform, layout)
    platform.wait_for_step(job_id, 1, 300)
    assert [sum(host.has(pid) for pid in platform.ranks(job_id)) for host in hosts] == [1, 1, 0]
    assert_nobody_can_read(platform, job_id, SECRET)
    job = platform.wait_until_ended(job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.attempts == 1
    assert losses_by_step(platform.events(job_id)) == losses_alone(platform.folder(job_id))
    assert not list(platform.folder(job_id).path.glob("environment*"))


def harm(what: str, host: Host, ranks: list[int]) -> None:
    if what == "off":
        host.switch_off()
    elif what == "unplugged":
        host.unplug()
    else:
        os.kill(ranks[0], signal.SIGKILL if what == "killed" else signal.SIGSTOP)


TOLD = {
    "killed": "RANK_DIED: rank 1 on 10.77.77.2 was killed by signal 9",
    "stopped": "stopped:",
    "off": "10.77.77.2 is left out:",
    "unplugged": "10.77.77.2 is left out:",
}


@pytest.mark.parametrize("what", list(TOLD))
def test_a_job_goes_on_with_the_spare_host(cluster: Cluster, what: str) -> None:
    platform, hosts = cluster
    job_id = submit(platform, "1x1x2")
    platform.wait_for_step(job_id, EVERY + 5, 300)
    victims = [pid for pid in platform.ranks(job_id) if hosts[1].has(pid)]
    assert hosts_of(platform.folder(job_id)) == [hosts[0].name, hosts[1].name]
    began = time.time()
    harm(what, hosts[1], victims)
    try:
        wait_for(lambda: all(pid not in platform.ranks(job_id) for pid in victims), 90, "the second host's rank to end")
        platform.wait_for_step(job_id, EVERY + 10, 400, since=began + 5)
        assert hosts_of(platform.folder(job_id)) == [hosts[0].name, hosts[2].name]
        job = platform.wait_until_ended(job_id)
    finally:
        if what == "off":
            hosts[1].switch_on()
        hosts[1].plug_in()
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    events = platform.events(job_id)
    assert any(TOLD[what] in text for text in messages(events)), messages(events)
    assert losses_by_step(events) == losses_alone(platform.folder(job_id))
    assert processes_of(job_id) == []
