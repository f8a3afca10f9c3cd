"""Options that a job leaves to the registry: `auto`. They are chosen when the job is created, and then are its options.

Learning rate and batch are those of the published run of the model that is nearest in size, BLOOM's where the job
pre-trains and BLOOMZ's where it tunes (recipes/ has them whole; a test keeps the two alike). Two things are ours, for
runs that are smaller than those: the batch is no more than a tenth of a pass over the job's data, and the micro-batch
the largest power of two up to the trainer's default that fits in memory by the plan.
"""

import math
from dataclasses import dataclass, replace

from bloom.config import PRESETS, BloomConfig
from bloom.layout import Layout
from services.common.errors import InvalidArgument
from services.registry.estimates import BYTES_PER_TOKEN, MICRO_BATCH, SEQUENCE_LENGTH, TrainingCluster, estimate
from services.registry.job_specs import FineTuneSpec, JobSpec, TrainOptions, check_options

AUTO = ("learning_rate", "min_learning_rate", "micro_batch", "gradient_accumulation")
PUBLISHED_LENGTH = 2048  # tokens of a sequence
BATCHES_A_PASS = 10
MAX_ACCUMULATION = 65536


@dataclass(frozen=True, slots=True)
class Published:
    learning_rate: float
    min_learning_rate: float
    batch: int  # sequences


# Source: bigscience-workshop/bigscience@9e64edec train/tr11-176B-ml; for BLOOMZ, whose rate is constant, xmtf@5caa1b12.
BLOOM = {
    "560m": Published(3e-4, 1e-5, 256),
    "1b1": Published(2.5e-4, 1e-5, 256),
    "1b7": Published(2e-4, 1e-5, 512),
    "3b": Published(1.6e-4, 1e-5, 512),
    "7b1": Published(1.2e-4, 1e-5, 512),
    "176b": Published(6e-5, 6e-6, 2048),
}
BLOOMZ = {name: Published(2e-5, 2e-5, 1024 if name in ("560m", "1b1") else 2048) for name in BLOOM}


@dataclass(frozen=True, slots=True)
class Chosen:
    spec: JobSpec
    said: str  # for the job's events; "": nothing was left to the registry


def choose(spec: JobSpec, config: BloomConfig, dataset_bytes: int, where: TrainingCluster) -> Chosen:
    """The spec with every option that is `auto` set. Raises InvalidArgument for one that cannot be chosen."""
    auto = list(dict.fromkeys(spec.options.auto))
    if not auto:
        return Chosen(spec, "")
    _check(spec, auto)
    kind, table = ("bloomz", BLOOMZ) if isinstance(spec, FineTuneSpec) else ("bloom", BLOOM)
    nearest = min(table, key=lambda name: abs(math.log(PRESETS[name].parameters / config.parameters)))
    published = table[nearest]
    options = replace(spec.options, auto=[])
    for name in ("learning_rate", "min_learning_rate"):
        if name in auto:
            options = replace(options, **{name: getattr(published, name)})
    if "micro_batch" in auto:
        options = replace(options, micro_batch=_micro_batch(spec, options, config, dataset_bytes, where))
    if "gradient_accumulation" in auto:
        options = replace(options, gradient_accumulation=_accumulation(options, published, dataset_bytes))
    check_options(options)
    values = ", ".join(f"{name}={getattr(options, name):g}" for name in auto)
    return Chosen(replace(spec, options=options), f"auto: {values}; nearest in size: {kind}-{nearest}")


def _check(spec: JobSpec, auto: list[str]) -> None:
    for name in auto:
        if name not in AUTO:
            raise InvalidArgument(f"auto names {name[:40]!r}, which cannot be chosen; give it a value")
        if (value := getattr(spec.options, name)) is not None:
            raise InvalidArgument(f"{name} is auto and has the value {value:g}; leave out one of the two")
    if isinstance(spec, FineTuneSpec) and spec.lora and "learning_rate" in auto:
        raise InvalidArgument("learning_rate=auto: BLOOMZ was tuned without adapters; give a value, such as 2e-4")


def _micro_batch(
    spec: JobSpec, options: TrainOptions, config: BloomConfig, dataset_bytes: int, where: TrainingCluster
) -> int:
    size = MICRO_BATCH
    while size > 1:
        tried = replace(spec, options=replace(options, micro_batch=size))
        if not estimate(tried, config, dataset_bytes, where)["shortage"]:
            return size
        size //= 2
    return 1


def _accumulation(options: TrainOptions, published: Published, dataset_bytes: int) -> int:
    tokens = min(published.batch * PUBLISHED_LENGTH, dataset_bytes // BYTES_PER_TOKEN // BATCHES_A_PASS)
    dp = Layout.parse(options.layout or "1x1x1").dp
    at_once = (options.micro_batch or MICRO_BATCH) * dp * (options.sequence_length or SEQUENCE_LENGTH)
    return min(MAX_ACCUMULATION, max(1, tokens // at_once))
