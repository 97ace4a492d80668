"""The report of one or several runs: one page, `report.html`, that needs nothing but itself.

    python -m pasmr_jax.experiment.report DIR [DIR2 ...] [--output=PATH]

Reads what the runs left in their work directories (reporting/reading.py), lays it out
(reporting/page.py) and writes it whole or not at all. Several directories are shown side by side:
arms of an experiment, each called by its folder. The page of one run is written into its directory,
that of several into the folder that holds them all.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from pasmr_jax.experiment.reliability.storage import writing
from pasmr_jax.experiment.reporting.page import page
from pasmr_jax.experiment.reporting.reading import read_runs
from pasmr_jax.parallel.processes import process_index

NAME = "report.html"


def write_report(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> None:
  """Writes the report of a run's directories; of several processes the first one does.

  Args:
    workdirs: work directories of runs; files they lack leave a section that says so.
    path: of the page.

  Raises:
    NotADirectoryError: a directory that is none.
    ValueError: none is given, or one twice.
  """
  if process_index() == 0:
    build(workdirs, path)


def build(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> None:
  """`write_report` for a program of its own: it does not touch the accelerator, which a run that
  still goes on holds."""
  text = page(read_runs(workdirs))
  with writing(path, len(text)):
    _write(path, text)


def _write(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, partial = tempfile.mkstemp(".partial", f".{path.name}.", path.parent)
  try:
    # A folder's name may hold bytes that are no text: they are shown as question marks.
    with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
      file.write(text)
    os.chmod(partial, 0o644)  # mkstemp's files are for their owner alone
    os.replace(partial, path)
  except BaseException:
    pathlib.Path(partial).unlink(missing_ok=True)
    raise


def default_path(workdirs: Sequence[pathlib.Path]) -> pathlib.Path:
  """`report.html` in the one directory, or in the folder that holds all of several."""
  folder = os.path.commonpath([workdir.resolve() for workdir in workdirs])
  return pathlib.Path(folder) / NAME


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("workdirs", type=pathlib.Path, nargs="+", metavar="DIR")
  parser.add_argument("--output", type=pathlib.Path, help=f"default: {NAME} in DIR")
  options = parser.parse_args(arguments)
  path = options.output or default_path(options.workdirs)
  try:
    build(options.workdirs, path)
  except (OSError, ValueError) as error:
    sys.exit(f"report: {error}")
  print(path)


if __name__ == "__main__":
  main()
