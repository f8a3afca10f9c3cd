"""How the operators are built, and what is said where they cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

from bloom.cpu import compile as building
from bloom.cpu import library as loading
from bloom.cpu.compile import CannotBuild, library


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(building, "LIBRARIES", tmp_path / "build")
    return tmp_path / "build"


def test_without_a_compiler_the_remedy_is_named(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(CannotBuild, match=r"no C\+\+ compiler found; install g\+\+"):
        library("generic")


def test_a_compiler_that_fails_leaves_nothing_behind(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CannotBuild, match=r"^false .* failed"):
        library("generic")
    assert [path.name for path in empty.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(building, "LIBRARIES", tmp_path / "file" / "build")
    with pytest.raises(CannotBuild, match=r"cannot write .*build.*`python -m bloom\.cpu`"):
        library("generic")


def test_processes_that_ask_at_once_build_once(empty: Path, tmp_path: Path):
    """A compiler that counts its runs; the second process waits for the first."""
    compiler, runs = tmp_path / "compiler", tmp_path / "runs"
    compiler.write_text(f'#!/bin/sh\necho run >> {runs}\nfor last; do :; done\nsleep 0.5\ntouch "$last"\n')
    compiler.chmod(0o755)
    folder = f"c.LIBRARIES = Path({str(empty)!r})"
    code = f"from bloom.cpu import compile as c; from pathlib import Path; {folder}; c.library('generic')"
    processes = [subprocess.Popen([sys.executable, "-c", code], env={"CXX": str(compiler)}) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert runs.read_text() == "run\n"


def test_old_builds_make_room(empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\ntouch "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    empty.mkdir()
    (empty / "generic-0123456789ab.so").touch()
    (empty / "avx2-0123456789ab.so").touch()
    built = library("generic")
    assert {path.name for path in empty.glob("*.so")} == {built.name, "avx2-0123456789ab.so"}


@pytest.mark.parametrize("granted", [True, False])
def test_tile_registers_are_used_where_the_processor_has_them_and_linux_grants_them(
    granted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags : " + " ".join(building.LEVELS["amx"][1]))
    monkeypatch.setattr(building, "CPU_INFO", flags)
    monkeypatch.setattr(building, "_may_use_tiles", lambda: granted)
    monkeypatch.setattr(building.platform, "machine", lambda: "x86_64")
    assert building.supported_levels.__wrapped__()[0] == ("amx" if granted else "avx512_bf16")


def test_where_the_best_level_cannot_be_built_the_next_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    best, *lower = building.supported_levels()
    if not lower:
        pytest.skip("one level runs here")

    def too_old(level: str) -> Path:
        if level == best:
            raise CannotBuild("no such instruction")
        return library(level)

    monkeypatch.setattr(loading, "library", too_old)
    assert loading.load_library.__wrapped__().level == lower[0]
    assert f"no operators for {best}, trying those for {lower[0]}: no such instruction" in caplog.text
