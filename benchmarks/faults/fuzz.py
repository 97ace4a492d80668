"""Hostile model text, made at random: by atheris, guided by coverage, if it is installed, else by
the generator of the tests.

Each text goes the whole way of a response: decoded answer, format, language, reward's number
recall, a line of a file, the report. Nothing may raise, and none may take more than a second.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

from tests.faults import hostile


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  seen = {"generated": _generated(options.seed, options.seconds / 2)}
  command = [sys.executable, "-m", "benchmarks.faults.fuzz", str(options.seconds / 2)]
  if _has_atheris():
    guided = subprocess.run(command, capture_output=True, text=True, check=False)
    summary = [line for line in guided.stderr.splitlines() if line.startswith(("#", "Done"))]
    assert guided.returncode == 0, guided.stderr[-3000:]
    seen["atheris"] = {"said": summary[-1] if summary else "nothing"}
  else:
    seen["atheris"] = {"said": "not installed"}
  return seen


def _has_atheris() -> bool:
  import importlib.util

  return importlib.util.find_spec("atheris") is not None


def _generated(seed: int, seconds: float) -> dict[str, Any]:
  rng = random.Random(seed)
  end = time.monotonic() + seconds
  cases, slowest = 0, 0.0
  while time.monotonic() < end:
    text = hostile.text(rng)
    start = time.monotonic()
    hostile.whole_way(text, rng.choice(hostile.LANGUAGES))
    slowest = max(slowest, time.monotonic() - start)
    assert slowest < 1.0, text[:1000]
    cases += 1
  return {"cases": cases, "seconds": round(seconds, 1), "slowest, seconds": round(slowest, 4)}


def _guided(seconds: float) -> None:
  import atheris

  with atheris.instrument_imports(include=["pasmr_jax.text", "pasmr_jax.feedback"]):
    from tests.faults import hostile as instrumented

  def one(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    language = instrumented.LANGUAGES[
      provider.ConsumeIntInRange(0, len(instrumented.LANGUAGES) - 1)
    ]
    text = provider.ConsumeUnicode(4000)
    start = time.monotonic()
    instrumented.whole_way(text, language)
    if time.monotonic() - start > 1.0:
      raise TimeoutError(f"more than a second: {text[:500]!r}")

  atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-print_final_stats=1"], one)
  atheris.Fuzz()


if __name__ == "__main__":
  _guided(float(sys.argv[1]))
