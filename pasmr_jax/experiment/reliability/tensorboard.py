"""TensorBoard's event file, written in the run's own thread.

tensorboardX's SummaryWriter hands events to a thread. When that thread meets a full disk it ends,
and the run waits for it for ever. Here an event is in the file when `write` returns, or the error
is the run's.
"""

import math
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from pasmr_jax.experiment.reliability.storage import writing


class TensorBoard:
  """The event file of a run."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._file: EventsWriter | None = None

  @property
  def begun(self) -> bool:
    """Whether anything has been written by this object."""
    return self._file is not None

  def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
    """Adds a step's numbers as STAGE/NAME; those that are not finite are left out.

    Raises:
      StorageError: the disk is full.
    """
    with writing(self._folder, 64 * len(numbers)):
      file = self._opened()
      _add(file, stage, step, numbers)
      file.flush()

  def rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Begins anew with the lines of metrics.jsonl: what a crash lost or wrote twice is mended."""
    self.close()
    if self._folder.is_dir():
      for old in self._folder.glob("events.out.tfevents.*"):
        old.unlink()
    with writing(self._folder):
      file = self._opened()
      for line in lines:
        numbers = {
          name: value
          for name, value in line.items()
          if isinstance(value, int | float) and name != "step"
        }
        _add(file, line["stage"], line["step"], numbers)
      file.flush()

  def close(self) -> None:
    if self._file is not None:
      with writing(self._folder):
        self._file.close()
      self._file = None

  def _opened(self) -> EventsWriter:
    if self._file is None:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._file = EventsWriter(str(self._folder / "events"))
    return self._file


def _add(file: EventsWriter, stage: str, step: int, numbers: Mapping[str, float]) -> None:
  values = [
    Summary.Value(tag=f"{stage}/{name}", simple_value=value)
    for name, value in numbers.items()
    if math.isfinite(value)
  ]
  file.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
