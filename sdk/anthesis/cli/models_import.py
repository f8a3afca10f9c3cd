"""`anthesis models import`: a Hugging Face BLOOM checkpoint becomes a version."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.bloom.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, open_checkpoint
from anthesis.cli.output import Json, print_json, stderr, transfer
from anthesis.errors import NotFoundError
from anthesis.names import check_model_name, check_name
from anthesis.v1.registry_pb2 import ModelFile, ModelVersion

TOKENIZER_FILE = "tokenizer.json"
NOTICES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "COPYRIGHT", "AUTHORS", "README", "CHANGES", "USE_RESTRICTIONS")
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
    alias: Annotated[str, typer.Option(help="Point this alias at the version.")] = "",
    deploy: Annotated[bool, typer.Option("--deploy", help="Have workers load it, and wait.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a BLOOM checkpoint and register it as a version. Begun again, it goes on where it stopped."""
    check_model_name(name)  # this, and all that the files alone can tell, before anything is sent
    if alias:
        check_name("alias", alias)
    with Client() as client:
        folder = folder or _download(name)
        open_checkpoint(folder)
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
        files = [*_files(folder), *_notices(folder), *(state if with_state else [])]
        wanted.files.extend(_upload(client, folder, file) for file in files)
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


def _download(name: str) -> Path:
    """A snapshot from the hub, in its own cache, which resumes what was broken off."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"to fetch {name} from the Hugging Face hub, `pip install 'anthesis[hub]'`; or name a folder: --from DIR"
        ) from None
    wanted = [CONFIG_FILE, SINGLE_FILE, "model-*.safetensors", INDEX_FILE, TOKENIZER_FILE, *(f"{n}*" for n in NOTICES)]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises kinds of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} cannot be fetched from the Hugging Face hub ({reason}); use --from DIR") from error


def _known_licence(client: Client, name: str) -> str:
    try:
        return client.models.get(name).licence
    except NotFoundError:
        raise ValueError(
            f"{name} is no model yet: say its licence, --licence apache-2.0 or --licence bigscience-rail-1.0"
        ) from None


def _files(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():
        return [CONFIG_FILE, SINGLE_FILE]
    shards = json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()
    return [CONFIG_FILE, INDEX_FILE, *sorted(set(shards))]


def _all_licences(parents: Sequence[ModelVersion]) -> str:
    return " AND ".join(sorted({licence for parent in parents for licence in parent.licence.split(" AND ")}))


def _notices(folder: Path) -> list[str]:
    """Licence texts and attributions, which have to stay with the weights."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name.partition(".")[0].upper() in NOTICES]


def _tokenizer(client: Client, folder: Path, choice: str) -> str:
    """The digest of the tokenizer that the version shall pin, uploaded if it is a file."""
    if choice.startswith("sha256:"):
        return client.artifacts.get(choice).digest
    file = Path(choice) if choice else folder / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; name the model's tokenizer.json or its digest with --tokenizer")
    return client.artifacts.upload(file).digest


def _upload(client: Client, folder: Path, path: str) -> ModelFile:
    with transfer(path, (folder / path).stat().st_size) as progress:
        artifact = client.artifacts.upload(folder / path, progress=progress)
    return ModelFile(path=path, digest=artifact.digest)


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
