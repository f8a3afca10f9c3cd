"""`anthesis pretrain submit`, `anthesis finetune submit`."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.descriptor import FieldDescriptor

from anthesis import Client, FineTuneSpec, LoraOptions, PretrainSpec, TrainOptions
from anthesis.cli.job_progress import follow
from anthesis.cli.output import MAX_COUNT, Json, enum_name, print_json, show_bytes
from anthesis.v1.job_pb2 import CheckpointSource, JobEstimate, JobPriority, JobState

pretrain = typer.Typer(help="Train a model from scratch.", no_args_is_help=True)
finetune = typer.Typer(help="Tune a version further.", no_args_is_help=True)

Output = Annotated[str, typer.Option("--output", help="Model that receives the version; made when missing.")]
Datasets = Annotated[list[str], typer.Option("--dataset", help="NAME or NAME@VERSION; may be repeated.")]
ValidationDatasets = Annotated[
    list[str] | None, typer.Option("--validation-dataset", help="Held out: its loss is reported. May be repeated.")
]
Steps = Annotated[int | None, typer.Option(min=0, max=MAX_COUNT, help="Optimizer steps; or give --epochs.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data; or give --steps.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", metavar="NAME=VALUE", help="Any of TrainOptions: -o learning_rate=1e-4, or =auto for some."
    ),
]
_KINDS: dict[int, tuple[Callable[[str], object], str]] = {
    FieldDescriptor.CPPTYPE_BOOL: (lambda text: {"true": True, "false": False}[text], "true or false"),
    FieldDescriptor.CPPTYPE_UINT32: (int, f"a whole number from 0 to {MAX_COUNT}"),
    FieldDescriptor.CPPTYPE_UINT64: (int, f"a whole number from 0 to {(1 << 64) - 1}"),
    FieldDescriptor.CPPTYPE_FLOAT: (float, "a number"),
    FieldDescriptor.CPPTYPE_STRING: (str, "a text"),
}


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


AtPriority = Annotated[Priority, typer.Option("--priority", help="Among the jobs that wait for a worker.")]
FromJob = Annotated[str, typer.Option(help="Begin with this job's newest checkpoint.")]
FromStep = Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="With --from-job: with that of this step.")]
DeployAlias = Annotated[str, typer.Option(help="Set this alias to the version when it is made, and deploy it.")]
Watch = Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")]


def register(app: typer.Typer) -> None:
    app.add_typer(pretrain, name="pretrain")
    app.add_typer(finetune, name="finetune")


@pretrain.command("submit")
def submit_pretrain(
    output: Output,
    dataset: Datasets,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json or its digest.")],
    config: Annotated[str, typer.Option(help="A preset (560m) or a config.json; vocab_size 0: the tokenizer's.")],
    licence: Annotated[str, typer.Option()] = "",
    validation_dataset: ValidationDatasets = None,
    steps: Steps = None,
    epochs: Epochs = None,
    option: Options = None,
    from_job: FromJob = "",
    from_step: FromStep = 0,
    deploy_alias: DeployAlias = "",
    priority: AtPriority = Priority.NORMAL,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Submit a pre-training job."""
    with Client() as client:
        digest = tokenizer if tokenizer.startswith("sha256:") else client.artifacts.upload(tokenizer).digest
        spec = PretrainSpec(
            output_model=output,
            datasets=dataset,
            tokenizer_digest=digest,
            config=Path(config).read_text() if Path(config).is_file() else config,
            licence=licence,
            validation_datasets=validation_dataset,
            from_checkpoint=_source(from_job, from_step),
            options=parse_options(option or [], steps, epochs),
        )
        _submit(client, spec, deploy_alias, priority, watch, as_json)


@finetune.command("submit")
def submit_finetune(
    output: Output,
    base: Annotated[str, typer.Option(help="An alias, a version or a model.")],
    dataset: Datasets,
    validation_dataset: ValidationDatasets = None,
    steps: Steps = None,
    epochs: Epochs = None,
    option: Options = None,
    lora_rank: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Train LoRA adapters, merged at the end; 0: all weights.")
    ] = 0,
    lora_alpha: Annotated[float | None, typer.Option(min=0, help="With --lora-rank; default 16.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(min=0, max=1, help="With --lora-rank; default 0.")] = None,
    qlora: Annotated[
        bool, typer.Option("--qlora", help="With --lora-rank: keep the frozen weights of the layers in 4 bits, NF4.")
    ] = False,
    from_job: FromJob = "",
    from_step: FromStep = 0,
    deploy_alias: DeployAlias = "",
    priority: AtPriority = Priority.NORMAL,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Submit a fine-tuning job."""
    if not lora_rank and (lora_alpha is not None or lora_dropout is not None or qlora):
        what = "--lora-alpha, --lora-dropout and --qlora are for adapters"
        raise ValueError(f"{what}; give their --lora-rank too, for example 8")
    lora = LoraOptions(
        rank=lora_rank, alpha=lora_alpha or 0, dropout=lora_dropout or 0, base_weights="nf4" if qlora else ""
    )
    spec = FineTuneSpec(
        output_model=output,
        base=base,
        datasets=dataset,
        validation_datasets=validation_dataset,
        from_checkpoint=_source(from_job, from_step),
        options=parse_options(option or [], steps, epochs),
        lora=lora if lora_rank else None,
    )
    with Client() as client:
        _submit(client, spec, deploy_alias, priority, watch, as_json)


def _source(job_id: str, step: int) -> CheckpointSource | None:
    """Raises ValueError for a step of no job."""
    if step and not job_id:
        raise ValueError(f"--from-step {step} needs --from-job: whose checkpoint it is")
    return CheckpointSource(job_id=job_id, step=step) if job_id else None


def parse_options(pairs: list[str], steps: int | None = None, epochs: float | None = None) -> TrainOptions:
    """TrainOptions from NAME=VALUE pairs. Raises ValueError naming the pair; ranges are the registry's to check."""
    options = TrainOptions(steps=steps, epochs=epochs)
    kinds = {field.name: _KINDS[field.cpp_type] for field in TrainOptions.DESCRIPTOR.fields if field.name != "auto"}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or name not in kinds:
            raise ValueError(f"--option {pair!r} is not NAME=VALUE with a NAME of {', '.join(kinds)}")
        if value == "auto":
            options.auto.append(name)
            continue
        kind, meaning = kinds[name]
        try:
            setattr(options, name, kind(value))
        except (ValueError, KeyError):
            raise ValueError(f"--option {pair!r}: {value!r} is not {meaning}") from None
    return options


def _submit(
    client: Client, spec: PretrainSpec | FineTuneSpec, deploy_alias: str, priority: Priority, watch: bool, as_json: bool
) -> None:
    number = JobPriority.Value(f"JOB_PRIORITY_{priority.name}")
    job = client.jobs.create(spec, deploy_alias=deploy_alias, priority=number)
    if watch:
        follow(client, job.id, as_json)
    elif as_json:
        print_json(job)
    else:
        print(f"{job.id}: {enum_name(JobState, job.state)}; `anthesis jobs watch {job.id}` follows it")
        if job.HasField("estimate"):
            print(_expected(job.estimate))


def _expected(estimate: JobEstimate) -> str:
    if not estimate.num_gpus:
        return f"on {estimate.cluster} it cannot run: {estimate.shortage}"
    hours, memory = estimate.seconds / 3600, show_bytes(estimate.memory.total_bytes)
    disk, energy = show_bytes(estimate.checkpoint_bytes), f"{estimate.energy_kwh:.3g} kWh"
    figures = f"{hours:.3g} h, {memory} a rank, {energy}, {disk} a checkpoint"
    return f"on {estimate.cluster}, by plan: {figures}" + (f"; {estimate.shortage}" if estimate.shortage else "")
