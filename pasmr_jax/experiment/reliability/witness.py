"""Which process of several is gone, told also for one that could not tell it itself.

    python -I witness.py FOLDER NUMBER COUNT TICK

Every process keeps its state in `FOLDER/NUMBER.json` (watchdog.py). When another one is lost JAX's
own service may abort a process, wherever it is in compiled code, and no Python runs any more. So a
process of several starts this program beside itself. It reads its standard input until the process
has ended: `GOODBYE` if it ended in order, what faulthandler writes if it was aborted, nothing if it
was killed. It then notes which of these it was, and after an abort says who was lost.
"""

import json
import os
import pathlib
import sys
import time
from typing import Any

GOODBYE = b"goodbye\n"
KILLED = "was killed"
ABORTED = "was aborted"
_TICKS = 3  # in which a process that lives counts at least once


def read(folder: pathlib.Path, number: int) -> dict[str, Any]:
  """The state of a process; nothing if there is none."""
  try:
    found = json.loads((folder / f"{number}.json").read_text("utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def note(folder: pathlib.Path, number: int, ended: str) -> None:
  """Adds to a process's state how it ended."""
  path = folder / f"{number}.json"
  partial = path.with_name(f"{path.name}.ended")
  partial.write_text(json.dumps(read(folder, number) | {"ended": ended}), "utf-8")
  partial.replace(path)


def lost(folder: pathlib.Path, number: int, count: int, tick: float) -> list[str]:
  """A sentence on each other process that was killed or no longer counts.

  If there is none, on those that ended with an error of their own. Takes a few ticks.
  """
  others = [other for other in range(count) if other != number]
  first = {other: read(folder, other) for other in others}
  time.sleep(_TICKS * tick)
  second = {other: read(folder, other) for other in others}
  own = read(folder, number).get("ended")
  how: dict[int, str] = {other: second[other].get("ended", "") for other in others}
  gone = [
    other
    for other in others
    if how[other] == KILLED
    or (not how[other] and first[other].get("beats") == second[other].get("beats"))
  ]
  if not gone:
    gone = [other for other in others if how[other] not in ("", ABORTED, own)]
  return [
    f"process {other} ({who(second[other])}) {how[other] or 'does not answer'}" for other in gone
  ]


def behind(folder: pathlib.Path, number: int, count: int) -> list[str]:
  """A sentence on each other process that has made no progress for the longest."""
  states = {other: read(folder, other) for other in range(count) if other != number}
  longest = max((state.get("idle", 0.0) for state in states.values()), default=0.0)
  return [
    f"process {other} ({who(state)}) has made no progress for {longest:.0f} s"
    for other, state in states.items()
    if state.get("idle", 0.0) == longest
  ]


def who(state: dict[str, Any]) -> str:
  if not state:
    return "of which nothing is known"
  return f"{state.get('pid')} on {state.get('host')}, last at {state.get('place')}"


def main() -> None:
  folder, number, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
  tick, said = float(sys.argv[4]), b""
  while part := os.read(0, 1 << 16):
    said += part
  if said.endswith(GOODBYE):
    return
  note(folder, number, ABORTED if said else KILLED)
  if said:
    os.write(2, said)
    os.write(2, "".join(f"{line}\n" for line in lost(folder, number, count, tick)).encode())


if __name__ == "__main__":
  main()
