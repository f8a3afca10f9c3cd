"""A checkpoint on the Hugging Face hub, brought into the registry a shard at a time.

All headers are checked before a shard is fetched. A shard lies on this machine's disk only until the registry has it,
and what the registry has, by the sha256 that the hub states, is not fetched: a broken import goes on with the next one.
"""

import fnmatch
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anthesis import Client
from anthesis.artifacts import Progress
from anthesis.bloom.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, read_config, read_index
from anthesis.bloom.config import BloomConfig, is_quantized
from anthesis.bloom.tensors import HEAD, StoredTensor, canonical_name, check_tensors
from anthesis.errors import NotFoundError
from anthesis.v1.registry_pb2 import ModelFile

TOKENIZER_FILE = "tokenizer.json"
NOTICES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "COPYRIGHT", "AUTHORS", "README", "CHANGES", "USE_RESTRICTIONS")
SMALL_FILES = (TOKENIZER_FILE, *(f"{notice}*" for notice in NOTICES))

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi


@dataclass(frozen=True, kw_only=True, slots=True)
class HubCheckpoint:
    """A repository at one commit; what is small of it lies in `folder`."""

    name: str
    commit: str
    folder: Path
    shards: dict[str, tuple[str, int]]  # path -> digest, bytes
    token: bool | None = None  # False: ask as anybody; None: with the token of whoever runs this, if there is one

    @contextmanager
    def fetched(self, path: str) -> "Iterator[Path]":
        """A shard on this machine's disk, for as long as that is needed."""
        with _errors(self.name):
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(self.name, path, revision=self.commit, local_dir=self.folder, token=self.token))
        try:
            yield file
        finally:
            file.unlink()

    def bring(self, client: Client, path: str, progress: Progress) -> ModelFile:
        """A shard as an artifact; through this machine's disk where the registry lacks it."""
        digest, _ = self.shards[path]
        try:
            client.artifacts.get(digest)
        except NotFoundError:
            with self.fetched(path) as file:
                digest = client.artifacts.upload(file, progress=progress).digest
        return ModelFile(path=path, digest=digest)


def find_checkpoint(
    name: str, others: Sequence[str], *, cache: Path | None = None, token: bool | None = None
) -> HubCheckpoint:
    """The newest commit's checkpoint, whole by its headers. `others`: patterns of small files that go with it.

    cache: the folder for what is fetched. token: as in HubCheckpoint.

    Raises ValueError where the hub cannot be asked, or for anything that is not a whole BLOOM checkpoint.
    """
    with _errors(name):
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()  # there is one for the whole
        api = HfApi(token=token)
        info = api.model_info(name, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or ()}
        wanted = [path for path in files if _is_one_of(path, [CONFIG_FILE, INDEX_FILE, *others])]
        folder = (cache or _cache()) / name / str(info.sha)
        for path in wanted:
            hf_hub_download(name, path, revision=info.sha, local_dir=folder, token=token)
    shards = {}
    for path in [SINGLE_FILE] if SINGLE_FILE in files else sorted(set(read_index(folder).values())):
        lfs: Any = files[path].lfs if path in files else None
        if not lfs:
            raise ValueError(f"{name} on the hub has no {path} with its sha256; use --from DIR")
        shards[path] = (f"sha256:{lfs.sha256}", int(lfs.size))
    checkpoint = HubCheckpoint(name=name, commit=str(info.sha), folder=folder, shards=shards, token=token)
    with _errors(name):
        stored = [tensor for path in shards for tensor in _header(api, checkpoint, path)]
    if any(canonical_name(tensor.name) == HEAD for tensor in stored):
        raise ValueError(f"{name} has a saved head, to be compared with the embedding; fetch it and use --from DIR")
    config_json = read_config(folder)
    check_tensors(BloomConfig.from_hf(config_json), stored, quantized=is_quantized(config_json))
    return checkpoint


def weight_files(folder: Path, hub: HubCheckpoint | None) -> list[str]:
    """Paths of a checkpoint's configuration, index and shards, in `folder` or on the hub."""
    if (folder / SINGLE_FILE).is_file() or (hub and SINGLE_FILE in hub.shards):
        return [CONFIG_FILE, SINGLE_FILE]
    return [CONFIG_FILE, INDEX_FILE, *sorted(set(read_index(folder).values()))]


def notices(folder: Path) -> list[str]:
    """Licence texts and attributions, which have to stay with the weights."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name.partition(".")[0].upper() in NOTICES]


def _is_one_of(path: str, patterns: Sequence[str]) -> bool:
    return "/" not in path and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _header(api: "HfApi", checkpoint: HubCheckpoint, path: str) -> "Iterator[StoredTensor]":
    """By a request for the file's first bytes. Offsets count from the end of the header here."""
    found = api.parse_safetensors_file_metadata(checkpoint.name, path, revision=checkpoint.commit)
    for name, tensor in found.tensors.items():
        start, end = tensor.data_offsets
        yield StoredTensor(file=path, name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), start=start, end=end)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anthesis" / "hub"


@contextmanager
def _errors(name: str) -> "Iterator[None]":
    """What the hub's client raises, which is of several libraries' kinds, as one with the remedy."""
    try:
        yield
    except ImportError:
        raise ValueError(
            f"to fetch {name} from the Hugging Face hub, `pip install 'anthesis[hub]'`; or name a folder: --from DIR"
        ) from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} cannot be fetched from the Hugging Face hub ({reason}); use --from DIR") from error
