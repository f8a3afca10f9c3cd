"""`anthesis models`."""

import json
from typing import Annotated, Any

import typer

from anthesis import Client
from anthesis.cli import artifacts, comparison, models_card, models_change, models_import, search
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_bytes, show_count, show_time
from anthesis.errors import NotFoundError
from anthesis.provenance import training_digest
from anthesis.v1.registry_pb2 import Model, ModelVersion, VersionState

group = typer.Typer(help="Models, their versions, lineage and licences.", no_args_is_help=True)
group.command("import")(models_import.import_model)
group.command("compare")(comparison.compare_models)
group.command("verify")(artifacts.verify_model)
group.command("download")(artifacts.download_model)
group.command()(models_change.delete)
group.command()(models_change.undelete)
group.command()(models_change.tag)
group.command()(models_card.card)
VERSION_COLUMNS = ("VERSION", "SIZE", "LICENCE", "PARENT", "DATASETS", "SOURCE", "CREATED")


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="models")


@group.command("list")
def list_models(
    ready: Annotated[bool, typer.Option("--ready", help="Only those that have weights here.")] = False,
    text: search.Text = "",
    licence: search.Licence = "",
    language: search.Language = "",
    tag: search.Tag = "",
    base_model: Annotated[str, typer.Option(help="Only those tuned from this model.")] = "",
    created_by: search.CreatedBy = "",
    since: search.Since = "",
    until: search.Until = "",
    newest: Annotated[bool, typer.Option("--newest", help="The newest first, not by name.")] = False,
    deleted: search.Deleted = False,
    as_json: Json = False,
) -> None:
    """Models, the catalogue of published BLOOM models included."""
    query = search.asked(
        since,
        until,
        ready=ready,
        text=text,
        licence=licence,
        language=language,
        tag=tag,
        base_model=base_model,
        created_by=created_by,
        order="newest" if newest else "",
        show_deleted=deleted,
    )
    with Client() as client:
        models = client.models.list(**query)
    if as_json:
        print_json(models)
    else:
        print_table(("NAME", "PARAMETERS", "LICENCE", "LATEST", "LANGUAGES"), map(_row, models))


@group.command("versions")
def list_versions(
    model: Annotated[str, typer.Argument(help="Whose; without, of all models.")] = "",
    text: search.Text = "",
    licence: search.Licence = "",
    language: search.Language = "",
    tag: search.Tag = "",
    parent: Annotated[str, typer.Option(help="Only those made from this version.")] = "",
    dataset: search.Dataset = "",
    created_by: search.CreatedBy = "",
    since: search.Since = "",
    until: search.Until = "",
    deleted: search.Deleted = False,
    as_json: Json = False,
) -> None:
    """Versions, the newest first."""
    query = search.asked(
        since,
        until,
        text=text,
        licence=licence,
        language=language,
        tag=tag,
        parent=parent,
        dataset=dataset,
        created_by=created_by,
        show_deleted=deleted,
    )
    with Client() as client:
        versions = client.models.list_versions(model, **query)
    if as_json:
        print_json(versions)
    else:
        print_table((*VERSION_COLUMNS, "STATE", "TAGS"), map(_long_version_row, versions))


@group.command()
def show(name: Annotated[str, typer.Argument(help="A model, a version or an alias.")], as_json: Json = False) -> None:
    """A model, its versions, and what its newest (or the named) version was tuned from and made by."""
    with Client() as client:
        model, version = _find(client, name)
        versions = client.models.list_versions(model.name)
        lineage = client.models.lineage(version) if version else []
        made_by = _training(client, version) if version else None
    if as_json:
        print_json({"model": model, "versions": versions, "lineage": lineage, "training": made_by})
        return
    print_table(("NAME", "PARAMETERS", "LICENCE", "LATEST", "LANGUAGES"), [_row(model)])
    print_table(VERSION_COLUMNS, map(_version_row, versions))
    if lineage:
        print(" <- ".join([version, *(ancestor.name for ancestor in lineage)]))
    if made_by:
        print(f"{version} was made by:")
        print(json.dumps(made_by, indent=1))


def _find(client: Client, name: str) -> tuple[Model, str]:
    """The model and the name of the version that `name` means ("" where it has none)."""
    try:
        model = client.models.get(name)
    except NotFoundError:
        version = client.models.get_version(name)
        return client.models.get(version.model), version.name
    return model, f"{model.name}@{model.latest_version}" if model.latest_version else ""


def _training(client: Client, version: str) -> Any:
    """The content of the version's training.json, if it has one."""
    digest = training_digest(client.models.get_version(version))
    return json.loads(client.artifacts.read(digest)) if digest else None


def _row(model: Model) -> tuple[object, ...]:
    parameters = show_count(model.parameters) if model.parameters else "-"
    latest = f"@{model.latest_version}" if model.latest_version else "-"
    return model.name, parameters, model.licence, latest, len(model.languages) or "-"


def _version_row(version: ModelVersion) -> tuple[object, ...]:
    source = version.job_id or version.source
    datasets = ",".join(version.datasets) or "-"
    size = show_bytes(version.size_bytes)
    parents = ",".join(filter(None, (version.parent, *version.other_parents))) or "-"
    return version.name, size, version.licence, parents, datasets, source, show_time(version.create_time)


def _long_version_row(version: ModelVersion) -> tuple[object, ...]:
    state = enum_name(VersionState, version.state).lower()
    if version.deleted_by:
        state += f" by {version.deleted_by}, {show_time(version.delete_time)}"
    return *_version_row(version), state, ",".join(version.tags) or "-"
