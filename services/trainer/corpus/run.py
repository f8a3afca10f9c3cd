"""A tokenizing run: workers encode pieces of text, this process writes what they return, shard after shard."""

import contextlib
import fcntl
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from services.common.artifacts import digest_file
from services.trainer.corpus.cutting import Pieces, cut_shards
from services.trainer.corpus.encoding import Encoded, Encoding, encode, start_worker
from services.trainer.corpus.indexed import ShardWriter, dtype_for
from services.trainer.corpus.manifest import MAX_BAD_ROWS, Manifest, ShardRecord, manifest_path, resume
from services.trainer.corpus.shards import shard_prefix
from services.trainer.corpus.texts import PIECE_BYTES, BadRow, Reading, cut, find_sources
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure

SHARD_BYTES = 256 << 20  # of text
_AHEAD = 2  # times the workers: pieces under way


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    tokenizer: Path
    inputs: tuple[Path, ...]
    output: Path  # prefix of the shards' paths
    workers: int
    reading: Reading
    end: str | None = "</s>"  # the token that ends a document; None: nothing does
    skip_bad_rows: bool = False
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How far a run is, for whoever shows it."""

    read_bytes: int  # of the inputs
    of_bytes: int
    num_tokens: int
    shard: int  # being written, from 0
    num_shards: int


def tokenize(options: Options, show: Callable[[Done], None] = lambda _: None) -> Manifest:
    """Run to the end, from where an earlier run stopped. Raises JobFailure, and leaves finished shards as they are."""
    encoder = _encoder(options.tokenizer)
    _check_output(options)
    sources = find_sources(options.inputs)
    shards = cut_shards([piece for source in sources for piece in cut(source, options.reading)], options.shard_bytes)
    if not shards:
        raise JobFailure("BAD_DATA", f"the {len(sources)} input files are empty; name others")
    made_from = {
        "inputs": [[str(source.path.resolve()), source.num_bytes, source.changed_ns] for source in sources],
        "key": options.reading.key,
        "plain": options.reading.plain,
        "end": options.end,
        "shard_bytes": options.shard_bytes,
        "piece_bytes": PIECE_BYTES,
    }
    fresh = Manifest(tokenizer=digest_file(options.tokenizer), made_from=made_from, num_shards=len(shards))
    encoding = Encoding(
        tokenizer=options.tokenizer,
        reading=options.reading,
        dtype=dtype_for(encoder.vocab_size),
        end=_end_id(encoder, options),
        skip_bad_rows=options.skip_bad_rows,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(options.output):
        manifest = resume(manifest_path(options.output), fresh)
        if len(manifest.shards) < len(shards):
            _Run(options, encoding, shards, manifest).finish(show)
    return manifest


def _check_output(options: Options) -> None:
    """Refuse to write where the next run would look for text."""
    for path in options.inputs:
        if path.is_dir() and options.output.resolve().is_relative_to(path.resolve()):
            raise JobFailure("BAD_DATA", f"--output {options.output} lies among the inputs in {path}; choose another")


def _encoder(tokenizer: Path) -> Encoder:
    if not tokenizer.is_file():
        raise JobFailure("BAD_DATA", f"{tokenizer} is not there; --tokenizer takes a tokenizer.json")
    try:
        return Encoder(tokenizer)
    except Exception as error:  # the library raises nothing narrower
        raise JobFailure("BAD_DATA", f"{tokenizer} is no tokenizer.json: {error}; name another") from error


def _end_id(encoder: Encoder, options: Options) -> int | None:
    if options.end is None:
        return None
    found = encoder.id_of(options.end)
    if found is None:
        remedy = "name the token with --eos, or write none with --no-append-eos"
        raise JobFailure("BAD_DATA", f"{options.tokenizer} has no token {options.end!r} to end documents; {remedy}")
    return found


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Refuse to write where another run writes."""
    with output.with_name(f"{output.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobFailure("BAD_DATA", f"another run writes {output} now; wait, or choose another --output") from None
        yield


class _Run:
    """What is still to be done of a run."""

    def __init__(self, options: Options, encoding: Encoding, shards: list[list[Pieces]], manifest: Manifest) -> None:
        self._options = options
        self._encoding = encoding
        self._shards = shards
        self._manifest = manifest
        self._rows = _RowNumbers(manifest.shards)
        self._of_bytes = _num_bytes(shards)
        self._read_bytes = _num_bytes(shards[: len(manifest.shards)])
        self._num_tokens = manifest.total("num_tokens")

    def finish(self, show: Callable[[Done], None]) -> None:
        first = len(self._manifest.shards)
        pool = ProcessPoolExecutor(
            self._options.workers, multiprocessing.get_context("spawn"), start_worker, (os.getpid(), self._encoding)
        )
        try:
            encoded = self._in_order(pool, [pieces for shard in self._shards[first:] for pieces in shard])
            for shard in range(first, len(self._shards)):
                self._manifest.shards.append(self._write(shard, encoded, show))
                self._manifest.save(manifest_path(self._options.output))
        except BrokenProcessPool as error:
            remedy = "use fewer --workers; the same command goes on"
            raise JobFailure("OUT_OF_MEMORY", f"a worker was killed, likely for want of memory; {remedy}") from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _in_order(self, pool: ProcessPoolExecutor, work: list[Pieces]) -> Iterator[Encoded]:
        """Encode on all workers, never far ahead of what is written."""
        pending: deque[Future[Encoded]] = deque()
        for pieces in work:
            pending.append(pool.submit(encode, pieces))
            if len(pending) > _AHEAD * self._options.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _write(self, shard: int, encoded: Iterator[Encoded], show: Callable[[Done], None]) -> ShardRecord:
        writer = ShardWriter(shard_prefix(self._options.output, shard, len(self._shards)), self._encoding.dtype)
        counts: Counter[str] = Counter()
        try:
            for pieces in self._shards[shard]:
                part = next(encoded)
                self._note(self._rows.in_file(pieces, part))
                writer.add(part.tokens, part.lengths)
                counts.update(part.counts())
                self._read_bytes += _num_bytes([[pieces]])
                self._num_tokens += len(part.tokens)
                show(self._done(shard))
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return ShardRecord(**counts, last_file=str(self._rows.file), last_row=self._rows.row)

    def _note(self, bad_rows: list[BadRow]) -> None:
        if bad_rows and not self._options.skip_bad_rows:
            raise JobFailure("BAD_DATA", f"{bad_rows[0]}; mend it, or leave such rows out with --skip-bad-rows")
        room = MAX_BAD_ROWS - len(self._manifest.bad_rows)
        self._manifest.bad_rows += [str(row) for row in bad_rows[:room]]

    def _done(self, shard: int) -> Done:
        return Done(
            read_bytes=self._read_bytes,
            of_bytes=self._of_bytes,
            num_tokens=self._num_tokens,
            shard=shard,
            num_shards=len(self._shards),
        )


def _num_bytes(shards: Sequence[Sequence[Pieces]]) -> int:
    return sum(piece.num_bytes for shard in shards for pieces in shard for piece in pieces)


class _RowNumbers:
    """Counts the rows of files while their pieces come by in order: a worker knows a row's place in its piece alone."""

    def __init__(self, written: Sequence[ShardRecord]) -> None:
        self.file = Path(written[-1].last_file) if written else Path()
        self.row = written[-1].last_row if written else 0

    def in_file(self, pieces: Pieces, part: Encoded) -> list[BadRow]:
        """The bad rows of a part, numbered within their files."""
        found = []
        for piece, num_rows, bad_rows in zip(pieces, part.num_rows, part.bad_rows, strict=False):  # stops at a bad row
            if piece.path != self.file:
                self.file, self.row = piece.path, 0
            found += [BadRow(bad.path, self.row + bad.row, bad.reason) for bad in bad_rows]
            self.row += num_rows
        return found
