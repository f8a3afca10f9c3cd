"""`python -m services.trainer.train_tokenizer JOB_FOLDER`: train the tokenizer that the job asks for into the store."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bloom import bpe
from services.common.corpus import Corpus
from services.common.errors import InvalidArgument
from services.trainer.failure import JobFailure, recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.room import when_there_is_room
from services.trainer.spec import Spec

TOKENIZER_FILE = "tokenizer.json"  # as the registry expects it
MIN_FREQUENCY = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec(Spec):
    """Kept as `run.json` in the job's folder."""

    digests: tuple[str, ...]  # of the datasets
    vocab_size: int
    min_frequency: int


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = TokenizerSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    store = spec.store()
    with recorded(folder.failure(spec.fencing_token)):
        corpus = Corpus(store, spec.digests)
        try:
            tokenizer = bpe.train(corpus, vocab_size=spec.vocab_size, min_frequency=spec.min_frequency)
        except InvalidArgument as error:  # names the row
            raise JobFailure("BAD_DATA", str(error), "datasets") from error
        if not corpus.num_bytes:
            raise JobFailure("BAD_DATA", "the datasets hold no text to learn from; add rows with text", "datasets")
        learnt = f"{corpus.num_texts:,} texts, {corpus.num_bytes:,} bytes"
        print(f"a vocabulary of {tokenizer.get_vocab_size():,} from {learnt}", flush=True)
        digest = when_there_is_room(lambda: store.write_bytes(tokenizer.to_str().encode()))
        result = json.dumps([[TOKENIZER_FILE, digest]])
        when_there_is_room(lambda: write_whole(folder.result(spec.fencing_token), result))


if __name__ == "__main__":
    main(sys.argv[1])
