"""`python -m benchmarks.cleaning [--seeds 1 2 3]`: clean corpora made from seeds; table what was found."""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.cleaning import corpus
from benchmarks.cleaning.score import Score, read_outcome, scores
from benchmarks.figures import table
from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.stages import run


def clean_and_score(seed: int, folder: Path, workers: int = 1) -> list[Score]:
    """Make the corpus of a seed in a folder, clean it there, and score."""
    corpus.write(seed, folder)
    config = CleaningConfig(input=str(folder / "corpus"), output=str(folder / "output"), tasks=2, workers=workers)
    run(config.resolved())
    return scores(corpus.read_truth(folder), read_outcome(folder / "output"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleaning", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--keep", type=Path, help="folder to leave corpora, outputs and reports in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = arguments.keep or Path(temporary), time.perf_counter()
        by_seed = [clean_and_score(seed, folder / str(seed), workers=2) for seed in arguments.seeds]
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.glob("*/corpus/*"))
    print(results(arguments.seeds, by_seed))
    print(f"\n{size / 1e6:.1f} MB in {seconds:.0f} s")


def results(seeds: list[int], by_seed: list[list[Score]]) -> str:
    """A row per kind: planted with the first seed, then recall and precision with each."""
    header = ["kind", "planted", *(f"{what}, seed {seed}" for seed in seeds for what in ("recall", "precision"))]
    rows = [
        [
            row[0].kind,
            str(row[0].planted),
            *(f"{value:.3f}" for score in row for value in (score.recall, score.precision)),
        ]
        for row in zip(*by_seed, strict=True)
    ]
    return table(header, rows)


if __name__ == "__main__":
    main()
