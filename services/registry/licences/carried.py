"""What goes along with a version because of its licences: their texts, restrictions, attribution and what was changed.

Files that an import brings under such names stay, byte for byte, in upstream/<version>/, and go along with whatever is
made from the version. Source: BigScience RAIL License v1.0, paragraphs 4 and 8; Apache License 2.0, paragraph 4.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.registry.licences.acceptance import find_licences
from services.registry.licences.terms import use_restrictions
from services.registry.tables import Licence, ModelVersion

LICENCES, UPSTREAM = "LICENSES", "upstream"  # the first as REUSE has it: LICENSES/<id>.txt
RESTRICTIONS, NOTICE, CHANGES = "USE_RESTRICTIONS", "NOTICE", "CHANGES"
_OURS = {LICENCES, UPSTREAM.upper(), RESTRICTIONS, NOTICE, CHANGES}
# A README among them: often it is what names the authors. The version's own is its card, made when it is downloaded.
_NOTICES = _OURS | {"LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "AUTHORS", "README"}
Files = list[dict[str, Any]]


async def carry(session: AsyncSession, artifacts: ArtifactStore, version: ModelVersion) -> Files:
    """The version's own files, notices among them moved, and all that goes along, which is put into the store."""
    ancestors = await read_ancestors(session, version)
    texts = write_texts(version, ancestors, await find_licences(session, version.licence))
    added = {path: await asyncio.to_thread(_store, artifacts, path, text) for path, text in texts.items()}
    for ancestor in ancestors:
        kept = (file for file in ancestor.files if file["path"].startswith(f"{UPSTREAM}/"))
        added |= {file["path"]: file | {"carried": True} for file in kept}
    return [*(_moved(file, version.name) for file in version.files), *added.values()]


def write_texts(
    version: ModelVersion, ancestors: Sequence[ModelVersion], licences: Sequence[Licence]
) -> dict[str, str]:
    """Path -> text of what the registry itself adds."""
    texts = {f"{LICENCES}/{licence.id}.txt": licence.text for licence in licences}
    if restrictions := [_restrictions(licence) for licence in licences if use_restrictions(licence.text)]:
        texts[RESTRICTIONS] = "\n".join([_binding(version.name), *restrictions])
    texts[NOTICE] = _notice(version, ancestors, licences)
    texts[CHANGES] = f"What was changed to make {version.name}, the newest first. Dates are in UTC.\n\n" + "".join(
        map(_change, [version, *ancestors])
    )
    return texts


def _binding(name: str) -> str:
    return (
        f"Use restrictions of {name}\n\n"
        "Whoever uses this model, or a derivative of it, agrees to the terms below as an enforceable provision.\n"
        "Whoever passes it on, or offers it as a service, makes them an enforceable provision of every agreement\n"
        "about it, tells who receives it, and gives them a copy of the licence. They are the licence's own words.\n"
    )


def _restrictions(licence: Licence) -> str:
    return f"From {licence.name} ({LICENCES}/{licence.id}.txt):\n\n{use_restrictions(licence.text)}"


def _notice(version: ModelVersion, ancestors: Sequence[ModelVersion], licences: Sequence[Licence]) -> str:
    lines = [f"{version.name} is under {version.licence}; the texts are in {LICENCES}/."]
    if any(use_restrictions(licence.text) for licence in licences):
        lines.append(f"Its use is restricted: see {RESTRICTIONS}.")
    if any(licence.id == "bigscience-rail-1.0" for licence in licences):
        lines.append("It is, or derives from, a BLOOM model of the participants of BigScience, who license that.")
    lines += [f"It derives from {ancestor.name}, which is under {ancestor.licence}." for ancestor in ancestors]
    lines.append(f"Notices that came with it or with what it derives from are in {UPSTREAM}/, where there are any.")
    lines.append("Nobody named here endorses this model; names and marks are theirs, and here for attribution alone.")
    lines.append("Text that it writes is machine-generated.")
    return "\n".join(lines) + "\n"


def _change(version: ModelVersion) -> str:
    parents = " and ".join(parents_of(version))
    data = f", on the data {', '.join(version.datasets)}" if version.datasets else ""
    if version.source == "job":
        start = f"the weights of {parents}, which it changed" if parents else "new weights"
        what = f"trained by job {version.job_id} from {start}{data}"
    elif parents:
        what = f"imported as made from {parents}, whose weights were changed outside this registry{data}"
    else:
        what = f"imported; this registry changed none of its files{data}"
    return f"{version.name} ({version.create_time:%Y-%m-%d %H:%M}): {what}.\n"


def _store(artifacts: ArtifactStore, path: str, text: str) -> dict[str, Any]:
    data = text.encode()
    return {"path": path, "digest": artifacts.write_bytes(data), "size_bytes": len(data), "carried": True}


def _moved(file: dict[str, Any], version: str) -> dict[str, Any]:
    """`file`, out of the way where it is a notice: one of another's, which has to be kept."""
    top, _, rest = file["path"].partition("/")
    is_notice = top.upper() in _OURS if rest else top.partition(".")[0].upper() in _NOTICES
    return file | {"path": f"{UPSTREAM}/{version}/{file['path']}"} if is_notice else file


def parents_of(version: ModelVersion) -> list[str]:
    return [*([version.parent] if version.parent else []), *version.other_parents]


async def read_ancestors(session: AsyncSession, version: ModelVersion) -> list[ModelVersion]:
    """All that a version was made from and the caller sees, nearest first, each once."""
    found: dict[str, ModelVersion] = {}
    wanted = parents_of(version)
    while wanted := [name for name in dict.fromkeys(wanted) if name not in found]:
        rows = await session.scalars(select(ModelVersion).where(ModelVersion.name.in_(wanted)))
        by_name = {row.name: row for row in rows}
        seen = {name: by_name[name] for name in wanted if name in by_name}
        found |= seen
        wanted = [parent for row in seen.values() for parent in parents_of(row)]
    return list(found.values())
