"""`anthesis plan`: what a training run costs, computed here; the platform may be down."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from anthesis.bloom.batch_ramp import BatchRamp
from anthesis.bloom.cluster import CLUSTERS, GIB, Cluster, named_cluster
from anthesis.bloom.config import PRESETS, BloomConfig
from anthesis.bloom.fit import Candidate, candidates
from anthesis.bloom.layout import Layout
from anthesis.bloom.memory import Attention, Precision, Run
from anthesis.bloom.plan import Pauses, Plan
from anthesis.bloom.plan import plan as make_plan
from anthesis.bloom.zero import Offload, Zero
from anthesis.cli.output import Json, print_json, print_table, show_bytes, show_count

# Sequences per forward pass and per step of the published runs; another model's default is the last.
PUBLISHED_BATCHES = {"560m": (1, 256), "1b1": (1, 256), "1b7": (1, 512), "3b": (1, 512), "7b1": (1, 512)}
DEFAULT_BATCH = (2, 2048)
DAY_S = 86_400

Positive = Annotated[int | None, typer.Option(min=1)]


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    model: Annotated[str, typer.Argument(help=f"A preset ({', '.join(PRESETS)}) or a config.json.")],
    cluster: Annotated[str, typer.Option(help=f"One of {', '.join(CLUSTERS)}.")] = "jean-zay",
    gpus: Annotated[int | None, typer.Option(min=1, help="Of the cluster; without GPUs, processes.")] = None,
    gpus_per_node: Positive = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(help="Of one GPU.")] = None,
    peak_tflops: Annotated[float | None, typer.Option(help="Of one GPU, in the precision of the run.")] = None,
    efficiency: Annotated[float | None, typer.Option(help="Share of that peak which products reach.")] = None,
    link_gb_s: Annotated[float | None, typer.Option(help="Between GPUs of a node, one direction.")] = None,
    network_gb_s: Annotated[float | None, typer.Option(help="Out of one node.")] = None,
    layout: Annotated[str, typer.Option(help="TPxPPxDP; else the fastest that fits.")] = "",
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Sequences per rank and forward pass.")] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Sequences per step.")] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Else the model's own.")] = None,
    precision: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    checkpointing: Annotated[bool, typer.Option(help="Keep layers' inputs, compute the rest again.")] = True,
    sequence_parallel: Annotated[bool, typer.Option(help="With TP: each rank its part of the tokens.")] = True,
    attention: Annotated[str, typer.Option(help="What it keeps: dense, megatron or fused.")] = "dense",
    lora_rank: Annotated[int, typer.Option(min=0, help="Train adapters alone; 0: everything.")] = 0,
    qlora: Annotated[bool, typer.Option("--qlora", help="With --lora-rank: layers' frozen weights in NF4.")] = False,
    zero_stage: Annotated[int, typer.Option(help="Replicas divide 1 optimizer, 2 gradients, 3 weights, too.")] = 1,
    offload: Annotated[str, typer.Option(help="To the host's memory: optimizer or parameters.")] = "",
    tokens: Annotated[int, typer.Option(min=0, help="Training tokens.")] = 366_000_000_000,
    ramp: Annotated[str, typer.Option(help="Batch ramp: START,INCREMENT,SAMPLES.")] = "",
    checkpoint_hours: Annotated[float, typer.Option(help="Between two checkpoints.")] = 3.0,
    evaluation_s: Annotated[float, typer.Option(min=0, help="Of each evaluation, every 1000 steps.")] = 0.0,
    incident_hours: Annotated[float, typer.Option(min=0, help="Lost in all beside GPUs' failures.")] = 0.0,
    layouts: Annotated[int, typer.Option(min=0, help="Other layouts to show, fitting and not.")] = 5,
    as_json: Json = False,
) -> None:
    """Memory, time, energy and disk of a training run, and the layouts that fit, before it is started."""
    config = _config(model)
    micro, batch = PUBLISHED_BATCHES.get(model, DEFAULT_BATCH)
    run = Run(
        layout=Layout.parse(layout) if layout else Layout(),
        global_batch=global_batch or batch,
        micro_batch=micro_batch or micro,
        seq_length=sequence_length or config.seq_length,
        precision=cast(Precision, precision),  # checked by Run, as is attention
        checkpointing=checkpointing,
        sequence_parallel=sequence_parallel,
        attention=cast(Attention, attention),
        lora_rank=lora_rank,
        base_in_nf4=qlora,
        zero=Zero(zero_stage, cast(Offload, offload)),
    )
    speed = None if peak_tflops is None else peak_tflops * 1e12
    machine = _with(
        named_cluster(cluster, gpus),
        gpus_per_node=gpus_per_node,
        memory_bytes=None if gpu_memory_gib is None else round(gpu_memory_gib * GIB),
        flops_16bit=speed,
        flops_fp32=speed,
        matmul_efficiency=efficiency,
        link_bandwidth=None if link_gb_s is None else link_gb_s * 1e9,
        network_bandwidth=None if network_gb_s is None else network_gb_s * 1e9,
    )
    tried = candidates(config, run, machine)
    figures = make_plan(
        config,
        run if layout else replace(run, layout=_fastest(tried)),
        machine,
        tokens=tokens,
        ramp=BatchRamp.parse(ramp, run.global_batch) if ramp else None,
        pauses=Pauses(
            checkpoint_every_s=checkpoint_hours * 3600,
            evaluation_s=evaluation_s,
            incident_s=incident_hours * 3600,
        ),
    )
    if as_json:
        print_json(asdict(figures) | {"layouts": [asdict(one) for one in tried]})
    else:
        _show(figures, tried, layouts)


def _config(model: str) -> BloomConfig:
    path = Path(model)
    if model in PRESETS or not path.exists():
        return BloomConfig.preset(model)
    return BloomConfig.from_hf(json.loads((path / "config.json" if path.is_dir() else path).read_text()))


def _with(cluster: Cluster, **given: Any) -> Cluster:
    return replace(cluster, **{key: value for key, value in given.items() if value is not None})


def _fastest(tried: list[Candidate]) -> Layout:
    """Raises ValueError where none fits, with what the nearest one lacks."""
    if not tried or tried[0].reason:
        nearest = f"; the nearest is {tried[0].layout}: {tried[0].reason}" if tried else ""
        raise ValueError(f"no layout fits this cluster{nearest}; or give --layout to plan one that does not fit")
    return Layout.parse(tried[0].layout)


def _show(figures: Plan, tried: list[Candidate], limit: int) -> None:
    print_table(("FIGURE", "VALUE"), [*_model_rows(figures), *_run_rows(figures)])
    memory = [(kind, show_bytes(size)) for kind, size in figures.memory.kinds().items()]
    print()
    print_table((f"MEMORY OF A RANK, STAGE {figures.fullest_stage}", "BYTES"), memory)
    print()
    terms = [(field.name, getattr(figures.step, field.name)) for field in fields(figures.step)]
    rows = [
        (name.replace("_", " "), f"{seconds:.3g} s", f"{seconds / figures.step_seconds:.1%}") for name, seconds in terms
    ]
    print_table(("TIME OF A STEP", "SECONDS", "SHARE"), rows)
    if limit:
        fitting = [one for one in tried if not one.reason]
        print()
        print_table(("LAYOUT", "GPUS", "STEP", "MEMORY", "FITS"), map(_layout_row, fitting[:limit]))
        others = tried[len(fitting) : len(fitting) + limit]
        if others:
            print()
            print_table(("LAYOUT", "GPUS", "STEP", "MEMORY", "WHY NOT"), map(_layout_row, others))


def _model_rows(figures: Plan) -> list[tuple[str, str]]:
    weights = figures.weight_bytes
    return [
        ("parameters", f"{figures.parameters:,}"),
        ("of these embeddings", f"{figures.embedding_parameters:,}"),
        ("weights", ", ".join(f"{dtype} {show_bytes(size)}" for dtype, size in weights.items())),
        ("checkpoint with optimizer", show_bytes(figures.checkpoint_bytes)),
        ("KV cache per token (bf16)", show_bytes(figures.kv_bytes_per_token["bf16"])),
        ("FLOPs per token", f"{figures.flops_per_token:.3g}, on the hardware {figures.hardware_flops_per_token:.3g}"),
    ]


def _run_rows(figures: Plan) -> list[tuple[str, str]]:
    run, peak = figures.run, figures.cluster.flops(figures.run.precision) / 1e12
    usable = show_bytes(figures.cluster.usable_bytes)
    return [
        ("layout", f"{run.layout} (TP x PP x DP), {run.layout.num_ranks} GPUs"),
        ("batch", f"{run.global_batch} sequences of {run.seq_length}, {run.micro_batch} per pass"),
        ("memory of a rank", f"{show_bytes(figures.memory_bytes)} of {usable} usable"),
        *([("of the host, a rank", show_bytes(figures.memory.host))] if figures.memory.host else []),
        ("fits", figures.shortage or "yes"),
        ("step", f"{figures.step_seconds:.4g} s, {figures.tokens_per_second:,.0f} tokens/s"),
        ("model FLOP/s per GPU", f"{figures.mfu * peak:.4g} T, {figures.mfu:.1%} of the peak"),
        ("hardware FLOP/s per GPU", f"{figures.hfu * peak:.4g} T, {figures.hfu:.1%} of the peak"),
        ("training tokens", f"{show_count(figures.tokens)}, {figures.num_steps:,} steps"),
        ("pure compute", f"{figures.compute_seconds / DAY_S:,.1f} days, {figures.compute_gpu_hours:,.0f} GPU hours"),
        ("with ramp and pauses", f"{figures.seconds / DAY_S:,.1f} days, {figures.gpu_hours:,.0f} GPU hours"),
        ("energy", f"{figures.energy_kwh:,.0f} kWh, {figures.co2_kg:,.0f} kg CO2"),
    ]


def _layout_row(one: Candidate) -> tuple[object, ...]:
    step = f"{one.step_seconds:.4g} s"
    return one.layout, one.num_gpus, step, show_bytes(one.memory_bytes), one.reason or "yes"
