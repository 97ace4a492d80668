"""The files of an evaluation in a run's `results/`, and whether they are of what is asked now."""

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pasmr_jax.experiment.items import Item, to_line, write_whole
from pasmr_jax.parallel import processes

DECODINGS = ("greedy", "sampled")  # of a test's answers


class ResultFiles:
  """`NAME.json` (measures), `NAME.settings` (what they are of), `NAME_DECODING.jsonl` (answers).

  Of an interrupted evaluation there is `NAME_DECODING.partial.jsonl` (`items.PartialItems`).
  """

  def __init__(self, workdir: pathlib.Path, name: str):
    self.name = name
    self._folder = workdir / "results"
    self._measures = self._folder / f"{name}.json"
    self._settings = self._folder / f"{name}.settings"

  def partial(self, decoding: str) -> pathlib.Path:
    return self._folder / f"{self.name}_{decoding}.partial.jsonl"

  def _items(self, decoding: str) -> pathlib.Path:
    return self._folder / f"{self.name}_{decoding}.jsonl"

  def write_items(self, decoding: str, items: Sequence[Item]) -> None:
    write_whole(self._items(decoding), "\n".join(map(to_line, items)) + "\n")

  def write(self, measures: Mapping[str, Mapping[str, float]], made_of: Mapping[str, Any]) -> None:
    """Writes measures by decoding, whose items are written before, and what they depend on."""
    self.remove(but=measures)  # never are they beside settings of others
    write_whole(self._settings, json.dumps(made_of, indent=2) + "\n")
    write_whole(self._measures, json.dumps(measures, indent=2) + "\n")
    self.remove_partials()

  def remove(self, but: Collection[str]) -> None:
    """All but the items of the decodings named, and what an interrupted evaluation left."""
    if processes.process_index() == 0:
      self._measures.unlink(missing_ok=True)
      self._settings.unlink(missing_ok=True)
      for decoding in DECODINGS:
        if decoding not in but:
          self._items(decoding).unlink(missing_ok=True)

  def remove_partials(self) -> None:
    if processes.process_index() == 0:
      for decoding in DECODINGS:  # also one that is not asked for any more
        self.partial(decoding).unlink(missing_ok=True)

  def differing(self, made_of: Mapping[str, Any]) -> str | None:
    """Which of the keys the results were made of otherwise; None if there are no results.

    '' if none was, or if that is not known. The first process alone looks, for what others see of
    its files may be late, and tells all.

    Raises:
      ValueError: in every process, what they were made of cannot be read.
    """
    found, broken = None, ""
    if processes.process_index() == 0 and self._measures.exists():
      try:
        found = self._compared(made_of)
      except ValueError as error:
        broken = str(error)
    found, broken = json.loads(processes.gather_text(json.dumps([found, broken]))[0])
    if broken:
      raise ValueError(broken)
    return found

  def _compared(self, made_of: Mapping[str, Any]) -> str:
    if not self._settings.exists():
      return ""
    try:
      before = json.loads(self._settings.read_text("utf-8"))
    except ValueError as error:
      raise ValueError(f"{self._settings}: {error}; remove it to ask again") from error
    now = json.loads(json.dumps(made_of))  # as it comes back from the file
    return ", ".join(sorted(key for key in before.keys() & now.keys() if before[key] != now[key]))

  def expect_free(self, made_of: Mapping[str, Any]) -> None:
    """Raises ValueError, in every process, if there are results of something else."""
    if differing := self.differing(made_of):
      raise ValueError(
        f"{self._measures} is of another evaluation (other {differing}); expected another"
        f" --name, or --name={self.name} to overwrite it"
      )
