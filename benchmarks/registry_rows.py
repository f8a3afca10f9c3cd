"""Rows of a full registry, as wide as real ones, and values that some of them have."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bloom.config import BloomConfig
from services.registry.estimates import TrainingCluster, estimate
from services.registry.job_specs import FineTuneSpec, TrainOptions, spec_to_row
from services.registry.names import id_at
from services.registry.tables import Job, JobDataset, Model, ModelVersion
from services.registry.text import searchable

START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = timedelta(days=365)
VERSIONS_OF_A_MODEL = 10
NUM_DATASETS, NUM_PRINCIPALS, NUM_TAGS = 500, 50, 200
LANGUAGES = ("ar", "bn", "en", "es", "eu", "fr", "gu", "hi", "id", "ig", "rw", "sw", "ta", "vi", "wo", "zu")
STATES = {"SUCCEEDED": 0.9, "FAILED": 0.07, "CANCELLED": 0.029, "RUNNING": 0.0005, "PENDING": 0.0005}
NUM_FILES = 12
_CONFIG = json.dumps(BloomConfig.preset("560m").to_hf(), indent=2)
_LOSS = {"dataset": "held-out", "language": "fr", "bits_per_byte": 1.25, "num_bytes": 100_000}
_PROGRESS = {
    "step": 1000,
    "total_steps": 1000,
    "loss": 2.5,
    "learning_rate": 1e-6,
    "tokens_per_second": 12345.0,
    "tokens_seen": 10**8,
    "time": START.isoformat(),
    "validation": [_LOSS | {"language": language} for language in LANGUAGES],
    "validation_step": 1000,
}


@dataclass(frozen=True, slots=True)
class Kind:
    table: type[Any]
    rows: Iterator[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    num_versions: int
    num_jobs: int

    @property
    def num_models(self) -> int:
        return max(1, self.num_versions // VERSIONS_OF_A_MODEL)

    def model(self, draw: random.Random) -> str:
        return f"garden/bloom-{draw.randrange(self.num_models):05}"

    def version(self, draw: random.Random) -> str:
        return f"{self.model(draw)}@{draw.randint(1, VERSIONS_OF_A_MODEL)}"

    def dataset(self, draw: random.Random) -> str:
        return f"rows-{draw.randrange(NUM_DATASETS):03}"

    def principal(self, draw: random.Random) -> str:
        return f"principal-{draw.randrange(NUM_PRINCIPALS):02}"

    def tag(self, draw: random.Random) -> str:
        return f"tag-{draw.randrange(NUM_TAGS):03}"

    def language(self, draw: random.Random) -> str:
        return draw.choice(LANGUAGES)

    def time(self, draw: random.Random) -> datetime:
        return START + SPAN * draw.random()

    def tables(self) -> Iterator[Kind]:
        """In an order in which each refers to earlier ones."""
        yield Kind(Model, self._models())
        yield Kind(Job, self._jobs())
        yield Kind(JobDataset, self._job_datasets())
        yield Kind(ModelVersion, self._versions())

    def _models(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(1)
        for number in range(self.num_models):
            name, tags = f"garden/bloom-{number:05}", [self.tag(draw)]
            words = " ".join(draw.choice(("a", "BLOOM", "tuned", "for", "gardens", "and", "fields")) for _ in range(30))
            yield {
                "name": name,
                "description": words,
                "licence": "bigscience-rail-1.0" if draw.random() < 0.99 else "mit",
                "languages": sorted(draw.sample(LANGUAGES, 4)),
                "config_json": _CONFIG,
                "latest_version": VERSIONS_OF_A_MODEL,
                "create_time": self.time(draw),
                "tags": tags,
                "search_text": searchable(name, words, *tags),
                "created_by": self.principal(draw),
            }

    def _versions(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(2)
        for number in range(self.num_models * VERSIONS_OF_A_MODEL):
            model, of_model = f"garden/bloom-{number % self.num_models:05}", number // self.num_models + 1
            parent = f"garden/bloom-{draw.randrange(self.num_models):05}@{of_model - 1}" if of_model > 1 else None
            yield {
                "name": f"{model}@{of_model}",
                "model": model,
                "number": of_model,
                "licence": "bigscience-rail-1.0" if draw.random() < 0.99 else "bigscience-rail-1.0 AND mit",
                "tokenizer_digest": _digest(draw),
                "files": [_file(draw, index) for index in range(NUM_FILES)],
                "config_json": _CONFIG,
                "parameters": 559_214_592,
                "size_bytes": 1_118_429_184,
                "parent": parent,
                "datasets": [self.dataset(draw)],
                "source": "import",
                "create_time": START + SPAN * number / (self.num_models * VERSIONS_OF_A_MODEL),
                "tags": sorted({self.tag(draw), self.tag(draw)}),
                "created_by": self.principal(draw),
            }

    def _jobs(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(3)
        expected = estimate(self._spec(draw, []), BloomConfig.preset("560m"), 10**8, TrainingCluster("jean-zay", 64))
        datasets = random.Random(4)
        for number in range(self.num_jobs):
            spec, now = self._spec(draw, self._datasets_of(datasets)), START + SPAN * number / self.num_jobs
            yield {
                "id": f"{id_at('job', now)}-{draw.getrandbits(32):08x}",
                "spec": spec_to_row(spec),
                "state": draw.choices(list(STATES), list(STATES.values()))[0],
                "created_by": self.principal(draw),
                "create_time": now,
                "wake_time": now,
                "queue_time": now,
                "progress": _PROGRESS,
                "estimate": expected,
                "output_model": spec.output_model,
                "base": spec.base,
            }

    def _job_datasets(self) -> Iterator[dict[str, Any]]:
        for job in self._jobs():  # the same again
            yield from ({"job_id": job["id"], "dataset": name} for name in job["spec"]["datasets"])

    def _datasets_of(self, draw: random.Random) -> list[str]:
        return sorted({self.dataset(draw) for _ in range(draw.randint(1, 3))})

    def _spec(self, draw: random.Random, datasets: list[str]) -> FineTuneSpec:
        options = TrainOptions(steps=1000, learning_rate=1e-5, micro_batch=1, layout="1x1x8")
        return FineTuneSpec(output_model=self.model(draw), base=self.version(draw), datasets=datasets, options=options)


def _digest(draw: random.Random) -> str:
    return f"sha256:{draw.getrandbits(256):064x}"


def _file(draw: random.Random, index: int) -> dict[str, Any]:
    path = f"model-{index:05}-of-{NUM_FILES:05}.safetensors"
    return {"path": path, "digest": _digest(draw), "size_bytes": 93_000_000, "carried": False}
