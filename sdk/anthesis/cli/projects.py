"""`anthesis projects`."""

from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table, show_time
from anthesis.v1.project_pb2 import Project, Quotas

group = typer.Typer(help="Projects: what is one's own on a shared platform.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The project.")]
Description = Annotated[str, typer.Option(help="What it is for.")]
NewDescription = Annotated[str | None, typer.Option("--description", help="What it is for.")]
MaxJobs = Annotated[int | None, typer.Option(min=0, help="Jobs that have not ended; 0: no limit.")]
MaxRequests = Annotated[int | None, typer.Option(min=0, help="Requests a minute; 0: no limit.")]
MaxTokens = Annotated[int | None, typer.Option(min=0, help="Tokens a day, prompts and completions; 0: no limit.")]
MaxBytes = Annotated[int | None, typer.Option(min=0, help="Bytes in the store; 0: no limit.")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="projects")


@group.command()
def create(
    name: Name,
    description: Description = "",
    max_jobs: MaxJobs = None,
    max_stored_bytes: MaxBytes = None,
    max_requests_per_minute: MaxRequests = None,
    max_tokens_per_day: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Make a project; needs a platform admin's key."""
    quotas = Quotas(
        jobs=max_jobs,
        stored_bytes=max_stored_bytes,
        requests_per_minute=max_requests_per_minute,
        tokens_per_day=max_tokens_per_day,
    )
    with Client() as client:
        project = client.projects.create(name, description=description, quotas=quotas)
    _print(project, as_json)


@group.command("list")
def list_projects(as_json: Json = False) -> None:
    """Every project; with a project's key, that one."""
    with Client() as client:
        projects = client.projects.list()
    if as_json:
        print_json(projects)
    else:
        print_table(("PROJECT", "CREATED", "ARCHIVED", "DESCRIPTION"), map(_row, projects))


@group.command()
def show(name: Name, as_json: Json = False) -> None:
    """One project, its quotas, and what counts against them now."""
    with Client() as client:
        project = client.projects.get(name)
    _print(project, as_json)


@group.command("set")
def set_project(
    name: Name,
    description: NewDescription = None,
    max_jobs: MaxJobs = None,
    max_stored_bytes: MaxBytes = None,
    max_requests_per_minute: MaxRequests = None,
    max_tokens_per_day: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Change what is given of a project; needs a platform admin's key."""
    quotas = Quotas(
        jobs=max_jobs,
        stored_bytes=max_stored_bytes,
        requests_per_minute=max_requests_per_minute,
        tokens_per_day=max_tokens_per_day,
    )
    with Client() as client:
        project = client.projects.update(name, description=description, quotas=quotas)
    _print(project, as_json)


@group.command()
def archive(name: Name) -> None:
    """Make a project's keys worthless; what it has stays, and `restore` brings them back."""
    with Client() as client:
        client.projects.update(name, archived=True)
    print(f"{name} is archived")


@group.command()
def restore(name: Name) -> None:
    """Take a project out of the archive."""
    with Client() as client:
        client.projects.update(name, archived=False)
    print(f"{name} is open")


def _print(project: Project, as_json: bool) -> None:
    if as_json:
        print_json(project)
    else:
        print("\t".join(map(str, _row(project))))
        used = {"jobs": project.used.jobs, "stored_bytes": project.used.stored_bytes}
        used["tokens_per_day"] = project.used.tokens_today
        for quota in (field.name for field in Quotas.DESCRIPTOR.fields):
            print(f"{quota}: {used.get(quota, '-')} of {getattr(project.quotas, quota) or 'any number'}")


def _row(project: Project) -> tuple[object, ...]:
    return project.name, show_time(project.create_time), show_time(project.archive_time), project.description or "-"
