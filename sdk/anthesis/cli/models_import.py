"""`anthesis models import`: a Hugging Face BLOOM checkpoint becomes a version."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client, ImportModelSpec
from anthesis.bloom.checkpoint import open_checkpoint
from anthesis.cli.job_progress import follow
from anthesis.cli.output import Json, print_json, stderr, transfer
from anthesis.errors import NotFoundError
from anthesis.hub import SMALL_FILES, TOKENIZER_FILE, HubCheckpoint, find_checkpoint, notices, weight_files
from anthesis.names import check_model_name, check_name
from anthesis.v1.registry_pb2 import ModelFile, ModelVersion

AT_ONCE = 2  # files; each may be a shard of 7 GB on this machine's disk
STATE_FOLDER = "state"  # what `python -m services.trainer.megatron import` writes beside the weights


def import_model(
    name: Annotated[str, typer.Argument(help='The model, for example "bigscience/bloom-560m".')],
    folder: Annotated[
        Path | None, typer.Option("--from", help="Folder of the checkpoint; without it, the Hugging Face hub is asked.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Needed where the model is not in the catalogue (SPDX).")] = "",
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json or its digest; else the folder's.")] = "",
    parent: Annotated[
        str, typer.Option(help="The version it was made from, for example by quantizing; its licence is kept.")
    ] = "",
    other_parent: Annotated[
        list[str] | None, typer.Option(help="A further version that was merged into it; can be given several times.")
    ] = None,
    with_state: Annotated[
        bool,
        typer.Option("--with-state", help="Upload the folder's state/, too: jobs on the version go on with its run."),
    ] = False,
    on_worker: Annotated[
        bool,
        typer.Option("--on-worker", help="Have a trainer's worker fetch it from the hub, by a job."),
    ] = False,
    alias: Annotated[str, typer.Option(help="Point this alias at the version; --on-worker deploys it, too.")] = "",
    deploy: Annotated[bool, typer.Option("--deploy", help="Have workers load it, and wait.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a BLOOM checkpoint and register it as a version. Begun again, it goes on where it stopped."""
    check_model_name(name)  # this, and all that the files alone can tell, before anything is sent
    if alias:
        check_name("alias", alias)
    if on_worker:
        if folder or tokenizer or parent or other_parent or with_state or deploy:
            raise ValueError(
                "a worker imports what the hub has, as it is; with --on-worker give only --licence, --alias"
            )
        with Client() as client:
            job = client.jobs.create(ImportModelSpec(model=name, licence=licence), deploy_alias=alias)
            return follow(client, job.id, as_json)
    with Client() as client:
        hub = None
        if folder:
            open_checkpoint(folder)
        else:
            hub = find_checkpoint(name, SMALL_FILES)
            folder = hub.folder
        state = [str(path.relative_to(folder)) for path in sorted((folder / STATE_FOLDER).glob("*"))]
        if with_state and not state:
            raise ValueError(
                f"there is no {folder / STATE_FOLDER}; leave --with-state out, or name the folder that has it"
            )
        wanted = ModelVersion(model=name, source="import")
        if parent:
            first, *others = [client.models.get_version(name) for name in (parent, *(other_parent or ()))]
            wanted.parent, wanted.licence = first.name, licence or _all_licences([first, *others])
            wanted.other_parents.extend(other.name for other in others)
        else:
            wanted.licence = licence or _known_licence(client, name)
        wanted.tokenizer_digest = _tokenizer(client, folder, tokenizer)
        files = [*weight_files(folder, hub), *notices(folder), *(state if with_state else [])]
        wanted.files.extend(_bring(client, folder, files, hub))
        version = _find_same(client, wanted) or client.models.create_version(wanted)
        if alias:
            client.aliases.set(alias, version.name)
        if deploy:
            deployment = client.deployments.create(alias or version.name)
            with stderr.status(f"{version.name} is being loaded"):
                client.deployments.wait(deployment.name)
    if as_json:
        print_json(version)
    else:
        print(f"{version.name}: {version.parameters:,} parameters, licence {version.licence}")


def _known_licence(client: Client, name: str) -> str:
    try:
        return client.models.get(name).licence
    except NotFoundError:
        raise ValueError(
            f"{name} is no model yet: say its licence, --licence apache-2.0 or --licence bigscience-rail-1.0"
        ) from None


def _all_licences(parents: Sequence[ModelVersion]) -> str:
    return " AND ".join(sorted({licence for parent in parents for licence in parent.licence.split(" AND ")}))


def _tokenizer(client: Client, folder: Path, choice: str) -> str:
    """The digest of the tokenizer that the version shall pin, uploaded if it is a file."""
    if choice.startswith("sha256:"):
        return client.artifacts.get(choice).digest
    file = Path(choice) if choice else folder / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; name the model's tokenizer.json or its digest with --tokenizer")
    return client.artifacts.upload(file).digest


def _bring(client: Client, folder: Path, paths: Sequence[str], hub: HubCheckpoint | None) -> list[ModelFile]:
    """Each file as an artifact, two at a time: one is read, or comes from the hub, while another goes out."""

    shards = hub.shards if hub else {}
    sizes = {path: shards[path][1] if path in shards else (folder / path).stat().st_size for path in paths}
    done = dict.fromkeys(paths, 0)
    total = sum(sizes.values())
    with transfer(f"{len(paths)} files", total) as progress, ThreadPoolExecutor(AT_ONCE) as pool:

        def bring(path: str) -> ModelFile:
            def move(num_bytes: int, _: int) -> None:
                done[path] = num_bytes
                progress(sum(done.values()), total)

            if hub and path in shards:
                file = hub.bring(client, path, move)
            else:
                file = ModelFile(path=path, digest=client.artifacts.upload(folder / path, progress=move).digest)
            move(sizes[path], total)
            return file

        try:
            return list(pool.map(bring, paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is under way ends; it need not be sent again
            raise


def _find_same(client: Client, wanted: ModelVersion) -> ModelVersion | None:
    """The version that an earlier import of the same files, under the same licence and parent, made."""

    def content(version: ModelVersion) -> object:
        return (
            version.licence,
            version.parent,
            list(version.other_parents),
            version.tokenizer_digest,
            {file.digest for file in version.files if not file.carried},  # the registry moves notices
        )

    try:
        versions = client.models.list_versions(wanted.model)
    except NotFoundError:
        return None
    return next((version for version in versions if content(version) == content(wanted)), None)
