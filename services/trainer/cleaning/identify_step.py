"""The language of each document: identified, compared with what its data set declares, and scored."""

from datatrove.data import Document

from services.trainer.cleaning.documents import DECLARED, LANGUAGE, is_code
from services.trainer.cleaning.identifier import UNKNOWN, Guess, identifier
from services.trainer.cleaning.languages import OTHER, UNDETERMINED
from services.trainer.cleaning.tally import TallyFilter, count
from services.trainer.cleaning.thresholds import thresholds_of

CLAIMS = ("language_outside_roots", "language_not_as_declared")  # reasons that say what the language is not


class IdentifyLanguage(TallyFilter):
    name = "language"

    def reason(self, document: Document) -> str | None:
        declared = document.metadata[DECLARED]
        if is_code(document) or declared in UNKNOWN:
            document.metadata[LANGUAGE] = declared
            if declared in UNKNOWN:
                count(self, "unchecked", document, "no model knows the language: taken as declared")
            return None
        guess = identifier().guess(document.text)
        document.metadata["language_score"] = round(guess.score, 4)
        document.metadata[LANGUAGE] = declared or guess.language
        if guess.language == UNDETERMINED:
            return self._undetermined(document, guess)
        if guess.language == OTHER:
            document.metadata["language_candidates"] = guess.candidates
            return "language_outside_roots"
        if declared and declared != guess.language:
            document.metadata["language_candidates"] = guess.candidates
            return "language_not_as_declared"
        return "language_score" if guess.score < thresholds_of(guess.language).language_score else None

    def _undetermined(self, document: Document, guess: Guess) -> str | None:
        """A declaration decides among the candidates; without one the text stays undetermined."""
        document.metadata["language_candidates"] = guess.candidates
        count(self, "candidates", document, " or ".join(sorted(guess.candidates)) or "no letters")
        return None if document.metadata[DECLARED] in guess.candidates else "language_undetermined"
