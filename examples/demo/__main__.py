"""The demo: two models, from text to answers, through the platform that `make up` started.

    python -m examples.demo

Ends with 0 when every bar of bars.py is met. A second run reuses what the first one made.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anthesis.client import Client
from anthesis.errors import AnthesisError
from anthesis.v1.job_pb2 import FineTuneSpec, PretrainSpec, TrainingProgress
from anthesis.v1.registry_pb2 import DATASET_FORMAT_MULTITASK, DATASET_FORMAT_TEXT, ModelVersion
from rich.console import Console

from . import data, recipe, report, results, training
from .bars import Results, judge
from .languages import MISSING

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "demo"
PLAYGROUND_PORT = os.environ.get("ANTHESIS_PLAYGROUND_PORT") or "8501"
REPORT_EVERY_S = 15.0
WIDTH = 120  # columns where the output is no terminal


class Demo:
    """The stages in order, each timed and announced."""

    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self.seconds: dict[str, float] = {}

    def run(self) -> Results:
        with self._stage("gather text"):
            text = data.gather(CACHE / "udhr")
            self._say(f"{len(text.declaration)} languages of 46; there is no Declaration in {', '.join(MISSING)}")
            self._say(f"source code in {len(text.code)} of 13; none installed in {', '.join(text.missing_code)}")
        base, tuned = self._train(text)
        with self._stage("baselines"):
            baselines = results.of_baselines(text, CACHE / "results")
        with self._stage("bits per byte"):
            sizes = results.of_text(self._client, base, text, CACHE / "results")
        models = {}
        for alias, version in ((recipe.PRETRAINED, base), (recipe.FINE_TUNED, tuned)):
            with self._stage(f"tasks and completions, {alias}"):
                models[alias] = results.of_model(self._client, version, text, CACHE / "results")
        return Results(
            pretrained=recipe.PRETRAINED,
            fine_tuned=recipe.FINE_TUNED,
            models=models,
            sizes=sizes,
            baselines=baselines,
            questions=text.shown,
            prompts=text.prompts,
        )

    def _train(self, text: data.Data) -> tuple[ModelVersion, ModelVersion]:
        client, folder = self._client, CACHE / "datasets"
        folder.mkdir(parents=True, exist_ok=True)
        with self._stage("upload"):
            declaration = training.upload(client, folder, "demo-declaration", DATASET_FORMAT_TEXT, text.declaration)
            code = training.upload(client, folder, "demo-code", DATASET_FORMAT_TEXT, text.code)
            multitask = training.upload(client, folder, "demo-multitask", DATASET_FORMAT_MULTITASK, text.multitask)
        with self._stage("train tokenizer"):
            tokenizer = training.train_tokenizer(client, [declaration, code], recipe.VOCAB_SIZE)
        pretrain = PretrainSpec(
            output_model=recipe.PRETRAINED,
            licence="apache-2.0",
            tokenizer_digest=tokenizer,
            datasets=[declaration.name, code.name],
            config=recipe.CONFIG,
            options=recipe.PRETRAIN,
        )
        base = self._job(f"pre-train {recipe.PRETRAINED}", pretrain, recipe.PRETRAINED)
        fine_tune = FineTuneSpec(
            output_model=recipe.FINE_TUNED, base=base.name, datasets=[multitask.name], options=recipe.FINE_TUNE
        )
        return base, self._job(f"fine-tune {recipe.FINE_TUNED}", fine_tune, recipe.FINE_TUNED)

    def _job(self, stage: str, spec: PretrainSpec | FineTuneSpec, alias: str) -> ModelVersion:
        last = time.monotonic()

        def show(progress: TrainingProgress) -> None:
            nonlocal last
            if time.monotonic() - last >= REPORT_EVERY_S:
                last = time.monotonic()
                self._say(
                    f"step {progress.step} of {progress.total_steps}, loss {progress.loss:.2f}, "
                    f"{progress.tokens_per_second:,.0f} tokens/s, {progress.seconds_left:.0f} s left"
                )

        with self._stage(stage):
            version = training.run_job(self._client, spec, alias, show)
            self._say(f"{version.name}: {version.parameters:,} parameters, answers to {alias!r}")
        return version

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._console.print(f"[bold]{name}[/bold]")
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def _say(self, line: str) -> None:
        self._console.print(f"  {line}", highlight=False)


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        with Client() as client:
            demo = Demo(client, console)
            measured = demo.run()
    except (AnthesisError, training.JobNotDone, RuntimeError, ValueError) as error:
        console.print(f"The demo stopped: {error}", style="red", markup=False)
        return 1
    report.print_all(console, measured, demo.seconds)
    bars = judge(measured)
    for bar in bars:
        console.print(
            f"{'met   ' if bar.met else 'MISSED'} {bar.text}", style="" if bar.met else "red", highlight=False
        )
    console.print(f"Playground: http://127.0.0.1:{PLAYGROUND_PORT}   Stop the platform: make down", highlight=False)
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
