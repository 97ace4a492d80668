"""Campaigns of injected faults: longer than what runs with the tests, and seeded.

    python -m benchmarks.faults kills --kills=25 --output=faults.json
    python -m benchmarks.faults signals | disk | processes | collapse | hub
    python -m benchmarks.faults fuzz --seconds=600      # atheris where it is installed
    python -m benchmarks.faults soak --steps=2000       # also the time to save

Each prints what it saw as JSON and ends with an error if a promise of docs/reliability.md was not
kept. A campaign works in a folder of its own (--workdir) and shares compiled programs between runs.
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time

CAMPAIGNS = ("kills", "signals", "disk", "processes", "collapse", "hub", "fuzz", "soak")


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("campaign", choices=CAMPAIGNS)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kills", type=int, default=25, help="of the campaign 'kills'")
  parser.add_argument("--steps", type=int, default=2000, help="of the campaign 'soak'")
  parser.add_argument("--seconds", type=float, default=300, help="of the campaign 'fuzz'")
  parser.add_argument("--workdir", type=pathlib.Path, help="default: a temporary folder")
  parser.add_argument("--output", type=pathlib.Path, help="the JSON, beside standard output")
  options = parser.parse_args()
  if options.output is not None:
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before hours of faults
  if options.workdir is None:
    with tempfile.TemporaryDirectory() as folder:
      run(options, pathlib.Path(folder))
  else:
    options.workdir.mkdir(parents=True, exist_ok=True)
    run(options, options.workdir.absolute())


def run(options: argparse.Namespace, folder: pathlib.Path) -> None:
  campaign = importlib.import_module(f"benchmarks.faults.{options.campaign}")
  start = time.monotonic()
  seen = campaign.run(folder, options)
  seen = {
    "campaign": options.campaign,
    "command": f"python -m benchmarks.faults {' '.join(sys.argv[1:])}",
    "seconds": round(time.monotonic() - start, 1),
    **seen,
  }
  text = json.dumps(seen, indent=2)
  print(text)
  if options.output is not None:
    options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
  main()
