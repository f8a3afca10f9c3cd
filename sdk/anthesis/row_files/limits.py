"""How long a file's rows may be: a few bytes can stand for terabytes (a zip bomb)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    max_bytes: int = 64 << 30  # of the rows as JSONL
    max_ratio: int = 200  # to the file's size; text that people write packs to a tenth, rows of templates to a fiftieth
    min_bytes: int = 64 << 20  # so much comes out of any file, however small

    def of(self, path: Path) -> "Allowed":
        size = path.stat().st_size
        by_ratio = max(self.min_bytes, self.max_ratio * size)
        if by_ratio < self.max_bytes:
            return Allowed(path.name, by_ratio, f"{self.max_ratio} times its {size} bytes, and than {self.min_bytes}")
        return Allowed(path.name, self.max_bytes, f"the most that is taken, {self.max_bytes} bytes")


@dataclass(frozen=True, slots=True)
class Allowed:
    name: str
    max_bytes: int
    why: str

    def check(self, num_bytes: int) -> None:
        """Raise ValueError when the rows are longer than allowed."""
        if num_bytes > self.max_bytes:
            remedy = "if this is no mistake, unpack or divide it and upload JSONL"
            raise ValueError(f"the rows of {self.name} are longer than {self.why}; {remedy}")
