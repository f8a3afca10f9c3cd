"""The kernel's powercap files, in a folder of ours."""

from pathlib import Path


class Powercap:
    def __init__(self, root: Path) -> None:
        self.root = root

    def zone(self, folder: str, name: str, *, counted: float = 0.0, most: float = 262_143.0) -> Path:
        """A counter at `counted` joules, which begins again at `most`."""
        zone = self.root / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{round(most * 1e6)}\n")
        self._write(zone, round(counted * 1e6))
        return zone

    def use(self, zone: Path, joules: float) -> None:
        most = int((zone / "max_energy_range_uj").read_text())
        now = int((zone / "energy_uj").read_text()) + round(joules * 1e6)
        self._write(zone, now % most)

    def _write(self, zone: Path, microjoules: int) -> None:
        whole = zone / "new"  # whoever reads meanwhile finds a number
        whole.write_text(f"{microjoules}\n")
        whole.replace(zone / "energy_uj")
