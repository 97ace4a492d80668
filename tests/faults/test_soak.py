"""The judgement of a long run: what grows, compiles late or slows down is told from noise."""

import argparse
import random

import pytest

from benchmarks.faults import soak

pytestmark = pytest.mark.faults

STEPS = 400


def _seen(host_kb=0.0, device=0.0, handles=0.0, slower=0.0, blocks=0.01, compiled=()):
  """Metrics and samples of a run in which something grows by so much a step."""
  rng = random.Random(1)
  lines, observed, spent = [], [], 0.0
  for step in range(1, STEPS + 1):
    seconds = 0.2 * (1 + slower * step)
    spent += seconds
    line = {"time/step": seconds * rng.uniform(0.9, 1.3), "response_length": 40}
    if step > 1 and step % soak.EVERY == 1:
      line["time/checkpoint"] = blocks
    lines.append(line)
    place = {"stage": "srl", "step": step}
    if step in compiled:
      observed.append(place | {"event": "compiled", "name": "jit(f)"})
    host = 700_000 + rng.choice([0, 0, 15_000]) + int(host_kb * step)
    observed.append(
      place
      | {
        "cpu_seconds": spent,
        "host_kb": host,
        "resident_kb": host + 240_000,
        "python_blocks": 1_800_000 + step,
        "device_bytes": 500_000 + rng.choice([0, 700_000]) + int(device * step),
        "handles": 8 + rng.choice([0, 0, 9]) + int(handles * step),
        "threads": 6,
      }
    )
  return lines, observed, STEPS


def test_a_run_that_stays_as_it_is_passes_in_spite_of_noise():
  assert all(soak.judged(*_seen(compiled=(1, 30)))["kept"].values())


@pytest.mark.parametrize(
  ("changes", "broken"),
  [
    ({"host_kb": 20}, "host memory is flat"),  # a step's texts
    ({"device": 4000}, "device memory is flat"),  # the smallest of a step's arrays
    ({"handles": 0.02}, "handles are flat"),  # one a checkpoint
    ({"slower": 0.002}, "a step stays as long"),
    ({"blocks": 0.5}, "saving is hidden"),
    ({"compiled": (1, 350)}, "nothing is traced or compiled after the warm-up"),
  ],
)
def test_what_is_broken_is_named(changes, broken):
  with pytest.raises(AssertionError) as raised:
    soak.judged(*_seen(**changes))
  (seen,) = raised.value.args
  assert [name for name, kept in seen["kept"].items() if not kept] == [broken]


def test_a_run_that_ended_early_is_told():
  lines, observed, steps = _seen()
  with pytest.raises(AssertionError) as raised:
    soak.judged(lines[:-1], observed, steps)
  assert not raised.value.args[0]["kept"]["all steps were made"]


def test_what_could_not_be_judged_is_not_begun(tmp_path):
  with pytest.raises(ValueError, match="--steps=60: expected 400 or more"):
    soak.run(tmp_path, argparse.Namespace(steps=60))
  (tmp_path / "soak.samples.jsonl").touch()  # of an earlier one
  with pytest.raises(FileExistsError, match="--workdir"):
    soak.run(tmp_path, argparse.Namespace(steps=400))
