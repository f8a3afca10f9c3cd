"""`python -m benchmarks.cleaning.cut_offs [--seeds 1 2 3]`: how good documents measure against the published cut-offs.

Stop words and special characters are not BigScience's, and the cut-offs are: a table of both, by language.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable

from benchmarks.cleaning import corpus
from benchmarks.figures import table
from services.trainer.cleaning import published, words
from services.trainer.cleaning.thresholds import OSCAR, oscar_code, thresholds_of

GOOD = ("plain", "lines", "pii")  # kinds of documents that should stay
HEADER = [
    *("language", "documents", "stop words listed", "their cut-off", "their share: least, median", "below the cut-off"),
    *("special characters' cut-off", "their share: median, most", "above the cut-off"),
]


def good_texts(seeds: Iterable[int]) -> dict[str, list[str]]:
    """Language with cut-offs of its own -> documents as the filters see them, without the lines that go before."""
    texts: dict[str, list[str]] = defaultdict(list)
    for document in (document for seed in seeds for document in corpus.corpus(seed)):
        if document.kind in GOOD and oscar_code(document.language) in OSCAR:
            planted = {*document.boilerplate, *document.foreign}
            text = "\n".join(line for line in document.text.split("\n") if line not in planted)
            texts[document.language].append(published.tidy(text, document.language))
    return dict(sorted(texts.items()))


def row(language: str, texts: list[str]) -> list[str]:
    limits = thresholds_of(language)
    stop = [published.stopword_share(text, language) for text in texts]
    special = [published.special_share(text) for text in texts]
    return [
        *(language, str(len(texts)), str(len(words.stopwords(language))), f"{limits.stopwords}"),
        *(f"{min(stop):.3f}, {statistics.median(stop):.3f}", str(sum(share < limits.stopwords for share in stop))),
        *(f"{limits.special}", f"{statistics.median(special):.3f}, {max(special):.3f}"),
        str(sum(share > limits.special for share in special)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleaning.cut_offs", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    texts = good_texts(parser.parse_args().seeds)
    print(table(HEADER, [row(language, found) for language, found in texts.items()]))


if __name__ == "__main__":
    main()
