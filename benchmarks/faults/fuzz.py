"""Hostile model text, made at random for a given time of a processor, a third of it each by

- the generator of the tests: pieces of `hostile.FRAGMENTS`, repetitions, any characters,
- hypothesis, from the strategy of the tests, a new seed every thousand examples,
- atheris (guided.py), guided by coverage: where it is installed.

Each text goes the whole way of a response (tests/faults/hostile.py). Nothing may raise, none may
take a second of processor time, and memory may not grow.
"""

import argparse
import importlib.util
import pathlib
import random
import resource
import subprocess
import sys
import time
from typing import Any

import hypothesis

from tests.faults import hostile

LONGEST = 1.0  # seconds of processor time that one text may take
GROWTH = 100  # MB that all may add after the first second of them
GUIDED = pathlib.Path(__file__).with_name("guided.py")


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  share = options.seconds / 3
  seen = {
    "generator": _generated(options.seed, share),
    "hypothesis": _hypothesized(options.seed, share),
  }
  if importlib.util.find_spec("atheris") is None:
    return seen | {"atheris": "not installed"}
  return seen | {"atheris": _guided(folder / "corpus", share)}


class _Cases:
  """Counts texts, their time and what memory they added. Time is a processor's."""

  def __init__(self, seconds: float):
    self._end = time.process_time() + seconds
    self._seconds = seconds
    self._count, self._slowest = 0, 0.0
    self._slowest_text = ""
    self._settled = time.process_time() + 1
    self._memory = _peak_mb()

  @property
  def over(self) -> bool:
    return time.process_time() > self._end

  def try_one(self, text: str, language: str) -> None:
    start = time.process_time()
    hostile.whole_way(text, language)
    took = time.process_time() - start
    assert took < LONGEST, f"{took} s, {language}: {text[:1000]!r}"
    self._count += 1
    if took > self._slowest:
      self._slowest, self._slowest_text = took, f"{language}, {len(text)} characters: {text[:60]!r}"
    if time.process_time() < self._settled:
      self._memory = _peak_mb()

  def seen(self) -> dict[str, Any]:
    growth = _peak_mb() - self._memory
    assert growth < GROWTH, f"{growth} MB"
    return {
      "cases": self._count,
      "processor seconds": round(self._seconds, 1),
      "slowest, processor seconds": round(self._slowest, 4),
      "slowest": self._slowest_text,
      "memory added, MB": round(growth, 1),
    }


def _peak_mb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _generated(seed: int, seconds: float) -> dict[str, Any]:
  hostile.warm_up()
  rng, cases = random.Random(seed), _Cases(seconds)
  while not cases.over:
    cases.try_one(hostile.text(rng), rng.choice(hostile.LANGUAGES))
  return cases.seen()


def _hypothesized(seed: int, seconds: float) -> dict[str, Any]:
  cases = _Cases(seconds)
  settings = hypothesis.settings(
    max_examples=1000,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )

  def one(text: str, language: str) -> None:
    if not cases.over:
      cases.try_one(text, language)

  given = hypothesis.given(hostile.texts(), hypothesis.strategies.sampled_from(hostile.LANGUAGES))
  while not cases.over:
    hypothesis.seed(seed)(settings(given(one)))()
    seed += 1
  return cases.seen()


def _guided(corpus: pathlib.Path, seconds: float) -> dict[str, Any]:
  command = [sys.executable, str(GUIDED), str(corpus), str(int(seconds)), str(LONGEST)]
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
  assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
  stats = dict(
    line.removeprefix("stat::").split(":", 1)
    for line in ended.stderr.splitlines()
    if line.startswith("stat::")
  )
  covered = [line for line in ended.stderr.splitlines() if " cov: " in line]
  return {
    "cases": int(stats["number_of_executed_units"]),
    "seconds by the clock": round(seconds, 1),
    "processor seconds": round(spent, 1),
    "peak memory, MB": int(stats["peak_rss_mb"]),
    "branches covered, first and last": [
      int(line.partition(" cov: ")[2].split()[0]) for line in (covered[0], covered[-1])
    ],
    "texts that covered something new": int(stats["new_units_added"]),
  }
