"""vLLM's own load client (`vllm bench serve`) against our OpenAI endpoint and against `vllm serve`, same weights.

The client needs a tokenizer, and finds none offline but a local folder: --tokenizer names the model's own, which is a
byte-level BPE trained here on the project's files. Its `random` data set draws ids of that tokenizer and sends text.
End tokens need no flag: random weights never draw one in greedy decoding, and `total_output_tokens` shows it.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import short, table
from benchmarks.goals import Goal
from benchmarks.local_platform import Endpoint, free_ports, serving
from benchmarks.peers.install import VLLM
from benchmarks.random_model import random_model
from bloom import bpe
from bloom.config import BloomConfig
from services.common.settings import ROOT

NAME = "random"  # of the served model
TOKENIZER_IDS = 4096
GOALS = {"bfloat16": 1.2, "int8": 2.0, "int8_dynamic": 2.0}
OFFLINE = {
    "VLLM_TARGET_DEVICE": "cpu",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# By default vLLM's server keeps one processor free for its scheduler. On a machine of two that is half of it, so it is
# also asked to compute on as many as we do, and the better of the two counts.
VLLM_SERVERS = {"vllm bfloat16, its default": "auto", "vllm bfloat16, all threads": "0-{last}"}
START_TIMEOUT_S = 300.0
PERCENTILES = ("ttft", "itl")
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", nargs="+", default=["bfloat16", "int8"], choices=tuple(GOALS), help="of ours")
    parser.add_argument("--rounds", type=int, default=3, help="of each server, one after another (%(default)s)")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--streams", type=int, default=32, help="under way at once (%(default)s)")
    parser.add_argument("--prompt", type=int, default=256, help="tokens (%(default)s)")
    parser.add_argument("--new", type=int, default=128, help="tokens (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-vllm", action="store_true", help="our side alone")


def run(args: argparse.Namespace) -> list[Goal]:
    """Print the table; the goals it decides. Raises OSError, RuntimeError, CalledProcessError."""
    work = args.work.resolve()
    model = served_folder(work, args.preset)
    results: dict[str, list[Result]] = {}
    for _ in range(args.rounds):
        if not args.no_vllm:
            for name, processors in VLLM_SERVERS.items():
                with vllm_serving(model, work, processors.format(last=args.threads - 1)) as endpoint:
                    results.setdefault(name, []).append(bench(endpoint, args, model, work))
        for weights in args.weights:
            with serving(model, NAME, engine_environment(weights, args.threads), work=work) as endpoint:
                results.setdefault(f"anthesis {weights}", []).append(bench(endpoint, args, model, work))
    print(result_table(results))
    return goals_of(results)


def engine_environment(weights: str, threads: int) -> dict[str, str]:
    chosen = ("WEIGHTS", weights) if weights.startswith("int8") else ("DTYPE", weights)
    return {f"ANTHESIS_INFERENCE_{chosen[0]}": chosen[1], "ANTHESIS_INFERENCE_THREADS": str(threads)}


def served_folder(work: Path, preset: str) -> Path:
    """The random model with a tokenizer beside it, as both servers and the client read it."""
    source = random_model(work / "models" / f"{preset}-bfloat16", BloomConfig.preset(preset), weights="bfloat16")
    folder = work / "models" / f"{preset}-served"
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            os.link(file, folder / file.name)
    if not (folder / "tokenizer.json").exists():
        texts = [path.read_text() for part in ("docs", "services", "bloom") for path in sorted(_texts(ROOT / part))]
        tokenizer = bpe.train(texts, vocab_size=TOKENIZER_IDS)
        specials = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), bpe.SPECIAL_TOKENS, strict=True))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **specials}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _texts(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in (".py", ".md"))


@contextmanager
def vllm_serving(model: Path, work: Path, processors: str) -> Iterator[Endpoint]:
    """`vllm serve`, its threads bound to `processors`. Raises RuntimeError when it does not come up, naming its log."""
    (port,) = free_ports(1)
    log = work / "vllm-serve.log"
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    flags += ["--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "32"]
    flags += ["--no-enable-log-requests"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            vllm_command(work, "serve", str(model), *flags),
            cwd=ROOT,
            env=os.environ | OFFLINE | {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": processors},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"vllm serve did not come up; see {log}")
            time.sleep(0.5)
        yield Endpoint(base_url=url, api_key="none", model=NAME)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def vllm_command(work: Path, *args: str) -> list[str]:
    return [str(VLLM.python(work)), "-m", "benchmarks.peers.vllm_command", *args]


def bench(endpoint: Endpoint, args: argparse.Namespace, model: Path, work: Path) -> Result:
    """One run of the client. Raises RuntimeError when a request failed."""
    file = work / "vllm-bench.json"
    file.unlink(missing_ok=True)
    flags = {
        "--backend": "openai",
        "--base-url": endpoint.base_url,
        "--endpoint": "/v1/completions",
        "--model": endpoint.model,
        "--tokenizer": str(model),
        "--dataset-name": "random",
        "--random-input-len": str(args.prompt),
        "--random-output-len": str(args.new),
        "--random-range-ratio": "0.5",
        "--num-prompts": str(args.requests),
        "--max-concurrency": str(args.streams),
        "--num-warmups": "2",
        "--temperature": "0",
        "--seed": "0",
        "--result-dir": str(file.parent),
        "--result-filename": file.name,
    }
    command = vllm_command(work, "bench", "serve", *(word for flag in flags.items() for word in flag))
    command += ["--save-result", "--disable-tqdm"]
    env = os.environ | OFFLINE | {"OPENAI_API_KEY": endpoint.api_key, "TOKENIZERS_PARALLELISM": "false"}
    with (work / "vllm-bench.log").open("ab") as log:
        subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=True)
    result: Result = json.loads(file.read_text())
    if result["completed"] != args.requests:
        raise RuntimeError(f"{result['completed']} of {args.requests} requests completed; see {log.name}")
    return result


def _median(results: Sequence[Result], key: str) -> float:
    return statistics.median(float(result[key]) for result in results)


def result_table(results: dict[str, list[Result]]) -> str:
    keys = {
        "requests/s": "request_throughput",
        "output tok/s": "output_throughput",
        "first token ms": "median_ttft_ms",
        "p99": "p99_ttft_ms",
        "between tokens ms": "median_itl_ms",
        "p99 ": "p99_itl_ms",
        "tokens in": "total_input_tokens",
        "out": "total_output_tokens",
    }
    lines = [[name, *(short(_median(runs, key)) for key in keys.values())] for name, runs in results.items()]
    return table(["server", *keys], lines)


def goals_of(results: dict[str, list[Result]]) -> list[Goal]:
    """Request throughput against vLLM's, for each of our formats."""
    servers = {name: _median(results[name], "request_throughput") for name in VLLM_SERVERS if name in results}
    if not servers:
        return []
    best = max(servers, key=servers.__getitem__)
    return [
        Goal(
            text=f"vllm bench serve: requests/s of anthesis {weights} against {best}",
            value=_median(results[f"anthesis {weights}"], "request_throughput") / servers[best],
            bound=bound,
        )
        for weights, bound in GOALS.items()
        if f"anthesis {weights}" in results
    ]
