"""Text as it is kept to be searched."""

import unicodedata


def searchable(*parts: str) -> str:
    """`parts` without case, width and runs of white space: so is kept what is searched, and what is searched for."""
    return " ".join(unicodedata.normalize("NFKC", " ".join(parts)).casefold().split())
