"""`anthesis plan`: what a model costs, computed here; the platform may be down."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from anthesis.bloom.config import PRESETS, BloomConfig
from anthesis.bloom.plan import Machine
from anthesis.bloom.plan import plan as make_plan
from anthesis.cli.output import Json, print_json, print_table, show_bytes, show_count


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    model: Annotated[str, typer.Argument(help=f"A preset ({', '.join(PRESETS)}) or a config.json.")],
    tokens: Annotated[int, typer.Option(min=0, help="Training tokens.")] = 366_000_000_000,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Else the model's own.")] = None,
    gpus: Annotated[int, typer.Option(min=1)] = Machine().num_gpus,
    peak_tflops: Annotated[float, typer.Option(help="Of one GPU.")] = Machine().peak_flops / 1e12,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the model's FLOPs reach.")] = Machine().mfu,
    as_json: Json = False,
) -> None:
    """Parameters, bytes, FLOPs, time and energy of a training run, before it is started."""
    machine = Machine(num_gpus=gpus, peak_flops=peak_tflops * 1e12, mfu=mfu)
    figures = make_plan(_config(model), tokens=tokens, seq_length=sequence_length, machine=machine)
    if as_json:
        print_json(asdict(figures))
        return
    weights = figures.weight_bytes
    rows = [
        ("parameters", f"{figures.parameters:,}"),
        ("of these embeddings", f"{figures.embedding_parameters:,}"),
        ("weights", ", ".join(f"{dtype} {show_bytes(size)}" for dtype, size in weights.items())),
        ("checkpoint with optimizer", show_bytes(figures.checkpoint_bytes)),
        ("training state per GPU", show_bytes(figures.training_state_bytes_per_gpu)),
        ("KV cache per token (bf16)", show_bytes(figures.kv_bytes_per_token["bf16"])),
        ("training tokens", show_count(figures.tokens)),
        ("FLOPs per token", f"{figures.flops_per_token:.3g}"),
        ("FLOPs in total", f"{figures.total_flops:.3g}"),
        ("time", f"{figures.seconds / 86_400:,.1f} days on {figures.num_gpus} GPUs"),
        ("GPU hours", f"{figures.gpu_hours:,.0f}"),
        ("energy", f"{figures.energy_kwh:,.0f} kWh, {figures.co2_kg:,.0f} kg CO2"),
    ]
    print_table(("FIGURE", "VALUE"), rows)


def _config(model: str) -> BloomConfig:
    path = Path(model)
    if model in PRESETS or not path.exists():
        return BloomConfig.preset(model)
    return BloomConfig.from_hf(json.loads((path / "config.json" if path.is_dir() else path).read_text()))
