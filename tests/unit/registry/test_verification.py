"""Artifacts hashed again: well, damaged, cut off, missing."""

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.registry.verification import DAMAGED, MISSING, OK
from tests.support.registry_data import store_checkpoint


def damage(artifacts, digest):
    path = artifacts.local_path(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def states(results):
    return {found.digest: found.state async for found in results}


async def test_a_version_is_read_again_with_its_tokenizer(registry):
    version = await registry.add_version()
    config, weights, *carried = (file["digest"] for file in version.files)
    results = [found async for found in registry.verification.version("seedling")]
    assert [(found.digest, found.state, found.needed_by) for found in results] == [
        *((file["digest"], OK, [file["path"]]) for file in version.files),
        (version.tokenizer_digest, OK, ["tokenizer"]),
    ]
    assert sum(found.size_bytes for found in results[:-1]) == version.size_bytes
    damage(registry.artifacts, weights)
    registry.artifacts.local_path(config).unlink()
    assert await states(registry.verification.version("seedling@1")) == {
        **dict.fromkeys(carried, OK),
        config: MISSING,
        weights: DAMAGED,
        version.tokenizer_digest: OK,
    }
    with pytest.raises(NotFound):
        await states(registry.verification.version("nothing"))


async def test_everything_is_what_is_stored_and_what_should_be(registry):
    version = await registry.add_version()
    await registry.add_dataset("udhr")
    rows = (await registry.datasets.get("udhr")).digest
    orphan = registry.artifacts.write_bytes(b"nobody's")
    registry.artifacts.local_path(rows).unlink()
    damage(registry.artifacts, orphan)
    found = {item.digest: item async for item in registry.verification.everything()}
    assert {digest: item.state for digest, item in found.items()} == {
        **{file["digest"]: OK for file in version.files},
        version.tokenizer_digest: OK,
        rows: MISSING,
        orphan: DAMAGED,
    }
    assert (found[rows].needed_by, found[orphan].needed_by) == (["dataset udhr@1"], [])
    assert found[version.files[0]["digest"]].needed_by == ["seedling@1/config.json"]


async def test_a_file_that_is_cut_off_is_damaged(registry):
    digest = store_checkpoint(registry.artifacts).files[1].digest
    path = registry.artifacts.local_path(digest)
    path.write_bytes(path.read_bytes()[:-1])
    assert await states(registry.verification.digests([digest, digest])) == {digest: DAMAGED}


async def test_digests_are_checked_and_counted(registry):
    with pytest.raises(InvalidArgument, match="64 lower-case hex"):
        await states(registry.verification.digests(["../../etc/passwd"]))
    with pytest.raises(InvalidArgument, match="1001 digests at once; ask for at most 1000"):
        await states(registry.verification.digests(f"sha256:{number:064x}" for number in range(1001)))
