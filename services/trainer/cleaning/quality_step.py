"""The published filters, as a step: those for natural languages, and those for code."""

from datatrove.data import Document

from services.trainer.cleaning import code_rules, flagged_words, published
from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.documents import is_code, language_of
from services.trainer.cleaning.tally import TallyFilter

REASONS = (*published.REASONS, *code_rules.REASONS)


class JudgeQuality(TallyFilter):
    name = "quality"

    def __init__(self, config: CleaningConfig) -> None:
        super().__init__(config.output)
        self._licences, self._licence_key = config.licences, config.licence_key
        self._flagged_words = flagged_words.read(config.flagged_words)

    def reason(self, document: Document) -> str | None:
        if is_code(document):
            return code_rules.reason_to_drop(document.text, document.metadata.get(self._licence_key), self._licences)
        language = language_of(document)
        document.text = published.tidy(document.text, language)
        return published.reason_to_drop(document.text, language, self._flagged_words.get(language, frozenset()))
