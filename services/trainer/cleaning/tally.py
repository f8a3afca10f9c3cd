"""Filters that count what they drop by language: what the report is made of.

Counts go through datatrove's own statistics, so they are there whichever executor ran, and a task that was run again
counts once. A label is `kind|language|what`.
"""

from abc import abstractmethod
from collections.abc import Iterator

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.jsonl import JsonlWriter

from services.trainer.cleaning.documents import LANGUAGE, language_of


class TallyFilter(BaseFilter):  # type: ignore[misc]
    """Drops a document for a reason, or passes it on; what is dropped is kept in `dropped/<reason>/<language>/`."""

    def __init__(self, output: str) -> None:
        super().__init__(exclusion_writer=side_writer(output, "dropped"))

    @abstractmethod
    def reason(self, document: Document) -> str | None:
        """Why to drop the document; None to pass it on."""

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        reason = self.reason(doc)
        if reason is None:
            return True
        count(self, "dropped", doc, reason)
        return False, reason


def side_writer(output: str, folder: str) -> JsonlWriter:
    """Writes documents by the `filter_reason` and the language in their metadata."""
    return JsonlWriter(f"{output}/{folder}", f"${{filter_reason}}/${{{LANGUAGE}}}/${{rank}}.jsonl.gz")


def count(step: PipelineStep, kind: str, document: Document, what: str, number: int = 1) -> None:
    """Count `number` things, and the document's bytes, under the document's language."""
    step.stat_update(f"{kind}|{language_of(document)}|{what}", value=number)
    step.stat_update(f"{kind}_bytes|{language_of(document)}|{what}", value=len(document.text.encode()))


class CountKept(PipelineStep):  # type: ignore[misc]
    type, name = "tally", "kept"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data or ():
            count(self, "kept", document, "clean")
            yield document
