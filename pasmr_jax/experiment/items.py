"""What an evaluation writes: one line for each answer, and how it goes on after an interruption.

While an evaluation runs, answered questions are appended to `NAME.partial.jsonl`, whose first line
says what was evaluated and how. Started again in the same way, it reads them back and asks the
rest; a last line that was cut off is asked again. When all is done the items are written whole, in
the order of the questions, and the partial file goes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pasmr_jax.experiment.reliability import storage
from pasmr_jax.experiment.reliability.storage import json_line
from pasmr_jax.parallel.processes import process_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
  """What the model gave to one question: all that takes a model to find out."""

  id: str
  language: str
  sample: int = 0  # of `evaluation.samples`
  well_formed: bool  # the PASMR format; asked in another way, that it ended
  truncated: bool  # it met the limit before it ended
  tokens: int
  translation: str | None  # its own, if it is well formed
  reasoning: str  # what the final answer is read from
  pivot_solution: str | None = None  # its answer to its own translation, if that was asked

  @property
  def key(self) -> tuple[str, str, int]:
    return self.language, self.id, self.sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item(Response):
  """One answer, judged; a line of the items file."""

  gold: str  # as the data set writes it
  answer: str | None  # as the scoring rule read it
  correct: bool  # by the scoring rule
  rule: str | None  # which rule of text/answers.py found an answer
  scores: dict[str, bool]  # correct by each of `scoring.SCORINGS`
  reasoning_consistent: bool | None  # in the language asked for, or too short; None: not judged
  translation_consistent: bool | None  # in the pivot language
  number_recall: float | None  # share of the question's numbers that its translation keeps
  pivot_answer: str | None
  agrees: bool | None  # with its own pivot answer; None: that was not asked
  cut_off: bool  # the data set's question breaks off in the middle


_RESPONSE_FIELDS = {field.name for field in dataclasses.fields(Response)}


def to_line(item: Response) -> str:
  return json_line(dataclasses.asdict(item))


def to_response(values: Mapping[str, Any]) -> Response:
  """The response of a line, whatever else the line holds."""
  return Response(**{name: values[name] for name in _RESPONSE_FIELDS})


class PartialItems:
  """The items file of an evaluation that still runs; one process reads and writes it."""

  def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]):
    """`settings` say what the answers depend on; answers found by others are not taken over."""
    self._path = path
    self._settings = json.loads(json.dumps(settings))  # as they come back from the file

  def read(self) -> tuple[list[Response], str]:
    """The answers there are, and why those in the file do not count ("" if they do)."""
    if process_index() != 0 or not self._path.exists():
      return [], ""
    # Split at line feeds only: model text may hold other line ends.
    whole = self._path.read_bytes().split(b"\n")[:-1]
    if not whole:
      return [], ""
    head = _object(whole[0]) or {}
    differing = sorted(
      key for key in self._settings.keys() | head.keys() if head.get(key) != self._settings.get(key)
    )
    if differing:
      return [], f"{self._path.name} is of another evaluation (other {', '.join(differing)})"
    found = []
    for line in whole[1:]:
      values = _object(line)
      if values is None or not values.keys() >= _RESPONSE_FIELDS:
        break  # a crash of the machine may leave a hole; what follows it is asked again
      found.append(to_response(values))
    return found, ""

  def start(self, items: Iterable[Response]) -> None:
    """Begins the file with what is kept."""
    lines = [json_line(self._settings), *map(to_line, items)]
    write_whole(self._path, "\n".join(lines) + "\n")

  def append(self, items: Sequence[Response]) -> None:
    if process_index() == 0 and items:
      storage.append(self._path, "".join(f"{to_line(item)}\n" for item in items))


def _object(line: bytes) -> dict[str, Any] | None:
  try:
    values = json.loads(line)
  except ValueError:
    return None
  return values if isinstance(values, dict) else None


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all; from one process."""
  if process_index() == 0:
    storage.write_whole(path, text)
