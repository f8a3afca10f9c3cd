"""What runs, and how each process says that it is ready."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infra.local.config import LocalConfig
from infra.probes import answers, pings, serves


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A child of the supervisor. Commands are arguments of this Python and carry no secrets."""

    name: str
    args: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    priority: int = 3  # lower starts earlier and stops later; equals stop together
    start_s: int = 1  # what lives shorter counts as failed
    stop_wait_s: int = 15  # between SIGTERM and SIGKILL


def processes(config: LocalConfig) -> list[Process]:
    """Everything the platform consists of, in the order in which it is started."""
    platform = config.platform
    playground_port = config.playground_address.rpartition(":")[2]
    streamlit = {
        "server.port": playground_port,
        "server.address": "127.0.0.1",
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    celery = "celery -A services.trainer.worker worker -Q train -P prefork -c 1 --prefetch-multiplier 1 --loglevel INFO"
    everything = [
        Process(
            name="valkey",
            args=["-m", "infra.local.valkey"],
            ready=lambda: pings(str(config.valkey_socket)),
            priority=1,
        ),
        _server("registry", platform.registry_address, priority=2),
        Process(name="relay", args=["-m", "services.registry.relay"], ready=_runs, start_s=2),
        _server("tokenizer", platform.tokenizer_address),
        _server("inference", platform.inference_address, stop_wait_s=40),
        Process(
            name="gateway",
            args=["-m", "services.gateway.server"],
            ready=lambda: (
                serves(platform.gateway_address) and answers(f"http://{platform.gateway_http_address}/health")
            ),
        ),
        Process(
            name="trainer",
            args=["-m", *celery.split()],
            ready=_runs,
            start_s=4,
            environment={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},  # a rank is a process of its own
            stop_wait_s=30,
        ),
        Process(
            name="playground",
            args=["-m", "streamlit", "run", "ui/app.py", *(f"--{name}={value}" for name, value in streamlit.items())],
            ready=lambda: answers(f"http://{config.playground_address}/_stcore/health"),
        ),
    ]
    return [process for process in everything if config.embedded_broker or process.name != "valkey"]


def _server(name: str, address: str, *, priority: int = 3, stop_wait_s: int = 15) -> Process:
    return Process(
        name=name,
        args=["-m", f"services.{name}.server"],
        ready=lambda: serves(address),
        priority=priority,
        stop_wait_s=stop_wait_s,
    )


def _runs() -> bool:
    """For what nobody calls: it is ready when the supervisor says that it runs."""
    return True
