"""Who is measured: which program, in which environment, on which file."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.protocol import Task
from services.common.settings import ROOT
from services.inference.engine_client import SPIN_COUNT

WORK = ROOT / ".cache" / "benchmarks"  # environments, models, results; --work names another


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One program and one number format."""

    name: str
    module: str  # under benchmarks
    weights: str  # as the module calls it
    model: str  # under the work folder's models
    environment: str = ""  # folder under the work folder; "": this one
    sixteen_bit: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    sets_own_threads: bool = False
    timeout_s: float = 600.0

    @property
    def is_ours(self) -> bool:
        return not self.environment

    def command(self, work: Path, task: Task) -> list[str]:
        python = work / self.environment / "bin" / "python" if self.environment else Path(sys.executable)
        return [str(python), "-m", f"benchmarks.{self.module}", task.to_json()]

    def variables(self, threads: int) -> dict[str, str]:
        """Added to the environment."""
        quiet = {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
        own = {} if self.sets_own_threads else {"OMP_NUM_THREADS": str(threads)}
        return quiet | own | dict(self.env)


def _ours(weights: str, model: str) -> Contestant:
    return Contestant(
        name=f"anthesis {weights}",
        module="ours",
        weights=weights,
        model=model,
        env={"GOMP_SPINCOUNT": SPIN_COUNT},  # as the worker starts its engines
    )


def _llama(kind: str) -> Contestant:
    return Contestant(
        name=f"llama.cpp {kind}",
        module="peers.llama_cpp",
        weights=kind,
        model=f"560m-{kind}.gguf",
        environment="venv-llama",
        sixteen_bit=kind in ("f16", "bf16"),
    )


CONTESTANTS = (
    _ours("bfloat16", "560m-bfloat16"),
    _ours("int8", "560m-bfloat16"),
    _ours("int8_dynamic", "560m-bfloat16"),
    _ours("float32", "560m-float32"),
    Contestant(
        name="transformers bf16",
        module="peers.transformers",
        weights="bfloat16",
        model="560m-bfloat16",
        environment="venv",
        sixteen_bit=True,
    ),
    Contestant(
        name="ctranslate2 int8",
        module="peers.ctranslate2",
        weights="int8",
        model="560m-ct2-int8",
        environment="venv",
    ),
    Contestant(
        name="vllm bf16",
        module="peers.vllm",
        weights="bfloat16",
        model="560m-bfloat16",
        environment="venv-vllm",
        sixteen_bit=True,
        sets_own_threads=True,
        timeout_s=900.0,
    ),
    _llama("f16"),
    _llama("bf16"),
    _llama("q8_0"),
)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


def choose(words: list[str]) -> list[Contestant]:
    """Those whose name holds one of the words; all without words. Raises ValueError for a word in none."""
    for word in words:
        if not any(word in name for name in BY_NAME):
            raise ValueError(f"no contestant has {word!r} in its name; there are {', '.join(BY_NAME)}")
    return [one for one in CONTESTANTS if not words or any(word in one.name for word in words)]
