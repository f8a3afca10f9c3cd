"""`anthesis models compare`: are two versions equal, by how much not, and what was otherwise when they were made."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table
from anthesis.provenance import Difference, differences, training_digest
from anthesis.v1.registry_pb2 import CompareVersionsResponse, ModelVersion

NOT_EQUAL = 3  # exit code; 1 is an error, 2 a wrong command line
SHOWN_TENSORS = 5


@dataclass(frozen=True, slots=True)
class Losses:
    """Step by step, of the steps that both jobs reported."""

    num_steps: int
    first_different: int  # 0: none is
    worst_step: int
    max_abs: float


@dataclass(frozen=True, slots=True)
class Comparison:
    version: str
    other: str
    equal: bool
    tensors: list[CompareVersionsResponse]  # those that differ, the worst first
    losses: Losses | None  # None: not both are jobs'
    differences: list[Difference]


def compare_models(
    version: Annotated[str, typer.Argument(help="A version, an alias or a model.")],
    other: Annotated[str, typer.Argument(help="The same.")],
    as_json: Json = False,
) -> None:
    """Whether two versions' weights are bitwise equal, or by how much not. Exit code 3 when they are not."""
    with Client() as client:
        report(compare(client, version, other), as_json)


def compare(client: Client, version: str, other: str) -> Comparison:
    """By digest first; tensor by tensor, where the weights lie, only when digests differ."""
    one, two = client.models.get_version(version), client.models.get_version(other)
    tensors = []
    if _weights(one) != _weights(two):
        tensors = [tensor for tensor in client.models.compare(one.name, two.name) if tensor.num_different]
    tensors.sort(key=lambda tensor: tensor.relative_l2, reverse=True)
    losses = _compare_losses(client, one, two) if one.job_id and two.job_id else None
    made = [training_digest(item) for item in (one, two)]
    texts = [client.artifacts.read(digest).decode() for digest in made if digest]
    return Comparison(one.name, two.name, not tensors, tensors, losses, differences(*texts) if len(texts) == 2 else [])


def _weights(version: ModelVersion) -> set[tuple[str, str]]:
    """Path and digest of the files that hold the model's tensors; an adapter in a folder of its own is merged there."""
    return {(file.path, file.digest) for file in version.files if file.path.endswith(".safetensors")}


def _compare_losses(client: Client, one: ModelVersion, two: ModelVersion) -> Losses:
    mine, theirs = (
        {
            event.progress.step: event.progress.loss
            for event in client.jobs.watch(version.job_id)
            if event.WhichOneof("event") == "progress"
        }
        for version in (one, two)
    )
    apart = {step: abs(loss - theirs[step]) for step, loss in sorted(mine.items()) if step in theirs}
    first = next((step for step in apart if mine[step] != theirs[step]), 0)
    worst = max(apart, key=lambda step: apart[step], default=0)
    return Losses(len(apart), first, worst, apart.get(worst, 0.0))


def report(found: Comparison, as_json: bool) -> None:
    """Print it. Raises typer.Exit(NOT_EQUAL) where the weights are not equal."""
    if as_json:
        losses = found.losses and asdict(found.losses)
        content: dict[str, Any] = {"version": found.version, "other": found.other, "equal": found.equal}
        content |= {"tensors": found.tensors, "losses": losses, "differences": [*map(asdict, found.differences)]}
        print_json(content)
    else:
        _print(found)
    if not found.equal:
        raise typer.Exit(NOT_EQUAL)


def _print(found: Comparison) -> None:
    if found.equal:
        print(f"{found.other} is bitwise equal to {found.version}")
    else:
        furthest = max(found.tensors, key=lambda tensor: tensor.max_abs)
        apart = f"by at most {furthest.max_abs:.3g} ({furthest.tensor})"
        print(
            f"{found.other} is not equal to {found.version}: {len(found.tensors)} tensors differ, {apart}; the worst:"
        )
        rows = [
            (
                tensor.tensor,
                f"{tensor.num_different}/{tensor.num_values}",
                f"{tensor.max_abs:.3g}",
                f"{tensor.relative_l2:.3g}",
            )
            for tensor in found.tensors[:SHOWN_TENSORS]
        ]
        print_table(("TENSOR", "DIFFERENT", "MAX ABS", "RELATIVE L2"), rows)
    if found.losses:
        print(_losses(found.losses))
    if found.differences:
        print("what was otherwise:")
        print_table(("WHAT", found.version, found.other), [(d.name, d.version, d.other) for d in found.differences])
    elif not found.equal:
        print("recipe, code, libraries and machine were the same, as far as they are recorded")


def _losses(losses: Losses) -> str:
    if not losses.first_different:
        return f"losses of {losses.num_steps} steps are equal"
    where = f"from step {losses.first_different} on, by at most {losses.max_abs:.3g} (step {losses.worst_step})"
    return f"losses of {losses.num_steps} steps differ {where}"
