"""Event files as TensorBoard shows them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of each point."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
