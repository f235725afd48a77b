"""What TensorBoard shows of a run, by its own reader."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(run: Path) -> EventAccumulator:
    """All events of a run."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag."""
    events = read(run)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def pictures(run: Path) -> dict[int, np.ndarray]:
    """Pixels of the previews by step."""
    shown = read(run).Images("samples")
    assert len({event.step for event in shown}) == len(shown)
    return {event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in shown}
