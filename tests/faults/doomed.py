"""Runs a program that a signal ends at a file operation one can name.

    python doomed.py FOLDER PATTERN COUNT DELAY SIGNAL PROGRAM ARGUMENTS...

Counts the program's own changes to files below FOLDER (opening for writing, renaming, removing,
making a folder) whose description contains PATTERN, and DELAY seconds after the COUNT-th sends
itself SIGNAL: before that operation is carried out if DELAY is 0. The operation is added to
FOLDER.doom. With COUNT 0 it lives, and writes all operations to FOLDER.operations.
"""

import os
import runpy
import sys
import threading

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def main() -> None:
  folder, pattern, program = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[6]
  count, delay, number = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
  sys.argv = sys.argv[6:]
  sys.path[0] = os.path.dirname(os.path.abspath(program))
  seen: list[str] = []

  def doom() -> None:
    with open(folder + ".doom", "a", encoding="utf-8") as file:
      file.write(f"{seen[count - 1]} +{delay} s\n")
    os.kill(os.getpid(), number)

  def hook(event: str, arguments: tuple) -> None:
    if event == "open":
      flags = arguments[2]
      if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
        return
    elif event not in _CHANGES:
      return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike) or not os.fspath(path):
      return
    path = os.path.abspath(os.fsdecode(path))
    if not path.startswith(folder + os.sep):
      return
    operation = f"{event} {path[len(folder) + 1 :]}"
    if pattern not in operation:
      return
    seen.append(operation)
    if len(seen) == count:
      if delay:
        threading.Timer(delay, doom).start()
      else:
        doom()

  sys.addaudithook(hook)
  try:
    runpy.run_path(program, run_name="__main__")
  finally:
    if count == 0:
      with open(folder + ".operations", "w", encoding="utf-8") as file:
        file.write("\n".join(seen))


if __name__ == "__main__":
  main()
