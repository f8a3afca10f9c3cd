"""Fetches the texts of the licences that the registry knows from the start: `python -m infra.licences [WHEEL]`.

They are taken word for word from a wheel of AboutCode's licence data, which pip downloads (27 MB) unless it is given.
Run again, it changes nothing.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from services.registry.licences.builtin import BUILTIN, TEXTS, BuiltinLicence, read_text

SHA256 = "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96"
REQUIREMENT = f"licensedcode-data==32.1.0 --hash=sha256:{SHA256}\n"
FOLDER = "licensedcode/data/licenses"


def fetch(wheel: Path | None = None, texts: Path = TEXTS) -> None:
    """Write the texts into `texts`, from `wheel` or the one that is downloaded. Raises ValueError for another wheel."""
    if all(_is_there(licence, texts) for licence in BUILTIN):
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = wheel or download(Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            remedy = "name the wheel of licensedcode-data 32.1.0, or none"
            raise ValueError(f"{wheel} has sha256 {found}, not {SHA256}; {remedy}")
        texts.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for licence in BUILTIN:
                text = without_header(archive.read(f"{FOLDER}/{licence.id}.LICENSE").decode())
                (texts / f"{licence.id}.txt").write_bytes(text.encode())
                read_text(licence, texts)


def download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(folder)]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def without_header(content: str) -> str:
    """The text after the lines between two of "---", without white space around it."""
    _, _, text = content.split("---\n", 2)
    return text.strip()


def _is_there(licence: BuiltinLicence, texts: Path) -> bool:
    try:
        read_text(licence, texts)
    except (FileNotFoundError, ValueError):
        return False
    return True


if __name__ == "__main__":
    fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
