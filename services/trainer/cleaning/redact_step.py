"""Personal information replaced by its tag, in natural languages only, as in ROOTS; what it was is written nowhere."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from services.trainer.cleaning import pii
from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.documents import is_code
from services.trainer.cleaning.tally import count, side_writer

SHOWN_CHARACTERS = 40  # around a tag


class RedactPersonalInformation(PipelineStep):  # type: ignore[misc]
    type, name = "formatter", "personal information"

    def __init__(self, config: CleaningConfig) -> None:
        super().__init__()
        self._tags = config.pii
        self._examples = side_writer(config.output, "changed")

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with self._examples:
            for document in data or ():
                if not is_code(document):
                    self._redact(document, rank)
                yield document

    def _redact(self, document: Document, rank: int) -> None:
        spans = pii.find(document.text, self._tags)
        document.text = pii.redact(document.text, spans)
        for tag, number in Counter(span.tag for span in spans).items():
            what = f"pii_{tag}"
            place = document.text.find(f"PI:{tag}")
            shown = document.text[max(0, place - SHOWN_CHARACTERS) : place + SHOWN_CHARACTERS]
            example = replace(document, text=shown, metadata={**document.metadata, "filter_reason": what})
            count(self, "changed", example, what, number)
            self._examples.write(example, rank)
