"""The alarm of self-feedback, on numbers made up for it, and what a run does about one."""

import json
import sys

import numpy as np
import pytest

from configs import base as base_config
from pasmr_jax.experiment.reliability.collapse import CollapseWatch
from pasmr_jax.experiment.reliability.recovery import read_metric, steps_in
from tests import runs

pytestmark = pytest.mark.faults

WINDOW = 4


def _watch(state=None, **changes):
  config = base_config.guard()
  config.update({"collapse_window": WINDOW} | changes)
  return CollapseWatch(config, state)


def _step(agreement, numbers=1.0, entropy=1.0, reasoning=1.0, translation=1.0):
  return {
    "reward/agreement": agreement,
    "translation_number_recall": numbers,
    "answer_entropy": entropy,
    "language/reasoning": reasoning,
    "language/translation": translation,
  }


def _run(watch, steps):
  return [(number, alarm) for number, values in enumerate(steps, 1) for alarm in watch.see(values)]


def _falling(name, to):
  steady = [_step(0.4) for _ in range(WINDOW)]
  return steady + [_step(0.6, **{name: to}) for _ in range(2 * WINDOW)]


@pytest.mark.parametrize(
  ("name", "to", "metric"),
  [
    ("numbers", 0.8, "translation_number_recall"),
    ("entropy", 0.1, "answer_entropy"),
    ("reasoning", 0.8, "language/reasoning"),
    ("translation", 0.8, "language/translation"),
  ],
)
def test_agreement_that_rises_while_a_quantity_falls_alarms_once(name, to, metric):
  ((step, alarm),) = _run(_watch(), _falling(name, to))
  assert alarm.quantity.metric == metric
  assert WINDOW < step <= 2 * WINDOW
  assert alarm.metrics == {f"alarm/{metric}": pytest.approx(1 - alarm.now / alarm.best)}
  assert "agreement rose from 0.40 to 0.5" in str(alarm) or "to 0.60" in str(alarm)


def test_held_out_accuracy_is_taken_as_it_is_measured():
  watch = _watch()
  assert _run(watch, [_step(0.4)] * WINDOW) == []
  assert watch.see({"development/target_accuracy": 0.5}) == []
  assert _run(watch, [_step(0.7)] * WINDOW) == []
  (alarm,) = watch.see({"development/target_accuracy": 0.39})
  assert (alarm.best, alarm.now) == (0.5, 0.39)
  assert watch.see({"development/target_accuracy": 0.3}) == []  # told already
  assert watch.see({"development/target_accuracy": 0.45}) == []  # it came back
  assert len(watch.see({"development/target_accuracy": 0.3})) == 1


def test_learning_is_no_collapse():
  # Agreement rises with accuracy, and answers become more alike.
  steps = [_step(0.3 + 0.005 * n, entropy=1.2 - 0.008 * n) for n in range(100)]
  for place, step in enumerate(steps):
    if place % 20 == 19:
      step["development/target_accuracy"] = 0.4 + 0.003 * place
  assert _run(_watch(), steps) == []


def test_a_quantity_that_falls_alone_is_no_collapse():
  assert _run(_watch(), [_step(0.5 - 0.002 * n, numbers=1 - 0.01 * n) for n in range(50)]) == []


def test_a_slow_collapse_is_found():
  steps = [_step(0.4 + 0.001 * n, numbers=1 - 0.001 * n) for n in range(300)]
  ((step, _),) = _run(_watch(), steps)
  assert 90 < step < 120


@pytest.mark.parametrize("cut", [1, 5, 7, 9])
def test_a_watch_goes_on_from_its_state_as_if_nothing_had_been(cut):
  steps = _falling("numbers", 0.8)
  first = _watch()
  told = _run(first, steps[:cut])
  second = _watch(json.loads(json.dumps(first.state())))
  told += [(cut + number, alarm) for number, alarm in _run(second, steps[cut:])]
  assert told == _run(_watch(), steps)


@pytest.mark.parametrize("changes", [{"collapse_window": 0}, {"collapse_numbers": 0.0}])
def test_it_can_be_turned_off(changes):
  assert _run(_watch(**changes), _falling("numbers", 0.1)) == []


def _alarmed(uninterrupted, environment, workdir, action):
  """A run of four steps that takes whatever falls at all for a collapse."""
  changes = {
    "stages": "('srl',)",
    "init_from": str(uninterrupted[0]),
    "srl.steps": 4,
    "evaluation.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 8,
    "guard.collapse_action": action,
    "guard.collapse_window": 1,
    "guard.collapse_rise": 0.0,
    "guard.collapse_numbers": 1e-6,
    "guard.collapse_entropy": 1e-6,
    "guard.collapse_language": 1e-6,
  }
  ended = runs.run(runs.command(workdir, **changes), environment)
  assert "ALARM srl step" in ended.stderr, ended.stderr[-3000:]
  (step,) = {
    line["step"]
    for line in runs.read_lines(workdir / "metrics.jsonl")
    if any(name.startswith("alarm/") for name in line)
  }
  return ended, step, workdir / "checkpoints" / "srl"


@pytest.mark.slow
def test_a_run_stops_at_an_alarm_with_a_checkpoint(uninterrupted, environment, tmp_path):
  ended, step, folder = _alarmed(uninterrupted, environment, tmp_path, "stop")
  assert ended.returncode == 70
  assert f"srl step {step}: self-feedback collapses" in ended.stderr
  assert 1 < step < 4
  assert steps_in(folder)[-1] == step
  assert not (tmp_path / "results" / "srl.json").exists()


@pytest.mark.slow
def test_a_run_returns_to_the_best_checkpoint_and_ends_the_stage(
  uninterrupted, environment, tmp_path
):
  ended, step, folder = _alarmed(uninterrupted, environment, tmp_path, "return")
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert steps_in(folder)[-1] == step
  best = int(ended.stderr.partition("returning to the checkpoint of step ")[2].partition(",")[0])
  assert best < step
  last = runs.params(tmp_path, "srl")
  for later in steps_in(folder):
    if later > best:
      (folder / str(later)).rename(tmp_path / f"later{later}")
  expected = runs.params(tmp_path, "srl")
  assert last.keys() == expected.keys()
  for name in last:
    if name.startswith("params"):
      np.testing.assert_array_equal(last[name], expected[name], err_msg=name)
  assert (tmp_path / "results" / "srl.json").exists()
  assert "agreement rose" in (tmp_path / "report.html").read_text("utf-8")


# train.py with an accuracy of 1, 1/2, 1/3, ... and an alarm at step 7; or as OTHERWISE says.
COLLAPSING = """
import runpy, sys
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.reliability.guard import StageGuard
measure = Evaluator.development
def development(self, state, stage):
  return measure(self, state, stage) | {"development/target_accuracy": 1 / int(state.step)}
Evaluator.development = development
StageGuard.alarms = lambda self, step, values: "return" if step == 7 else ""
OTHERWISE
sys.argv, sys.path[0] = sys.argv[1:], ROOT
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _collapsed(workdir, environment, otherwise="", **changes):
  program = COLLAPSING.replace("ROOT", repr(str(runs.ROOT))).replace("OTHERWISE", otherwise)
  _, *command = runs.command(
    workdir, stages="('base',)", base__steps=9, checkpoint__every=3, log__every=3, **changes
  )
  return runs.run([sys.executable, "-c", program, *command], environment)


@pytest.mark.slow
def test_the_best_is_the_best_that_was_measured_and_keeps_its_metric(environment, tmp_path):
  ended = _collapsed(tmp_path, environment, evaluation__every=2)
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert "returning to the checkpoint of step 2," in ended.stderr
  folder = tmp_path / "checkpoints" / "base"
  # Step 7 is step 2 now, and as good.
  assert {step: read_metric(folder / str(step)) for step in steps_in(folder)} == {6: 1 / 6, 7: 0.5}


@pytest.mark.slow
def test_without_a_checkpoint_to_return_to_the_run_stops(environment, tmp_path):
  ended = _collapsed(tmp_path, environment, evaluation__every=0)
  assert ended.returncode == 70, ended.stderr[-3000:]
  assert "no checkpoint to return to" in ended.stderr
  folder = tmp_path / "checkpoints" / "base"
  assert steps_in(folder)[-1] == 7
  assert read_metric(folder / "7") is None
  assert not (tmp_path / "results" / "base.json").exists()
  # What a save took stands on the next line that is written, however many steps later.
  lines = runs.read_lines(tmp_path / "metrics.jsonl")
  assert [(line["step"], "time/checkpoint" in line) for line in lines] == [(3, False), (6, True)]


RISING = """
Evaluator.development = lambda self, state, stage: measure(self, state, stage) | {
  "development/target_accuracy": int(state.step) / 10
}
"""


@pytest.mark.slow
def test_the_best_may_be_the_step_of_the_alarm(environment, tmp_path):
  ended = _collapsed(tmp_path, environment, RISING, evaluation__every=7)
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert "returning" not in ended.stderr
  folder = tmp_path / "checkpoints" / "base"
  assert {step: read_metric(folder / str(step)) for step in steps_in(folder)} == {6: None, 7: 0.7}
  assert (tmp_path / "results" / "base.json").exists()


STOPPING = """
from pasmr_jax.experiment.reliability.stopping import Stopping
alarmed = []
StageGuard.alarms = lambda self, step, values: alarmed.append(step) or ("stop" if step == 3 else "")
Stopping.check = lambda self: bool(alarmed)  # in the first step, not before it
"""


@pytest.mark.slow
def test_an_alarm_counts_more_than_a_signal_in_its_step(environment, tmp_path):
  """Of the two exit codes 75 would have the run started again, and the alarm is told once."""
  ended = _collapsed(tmp_path, environment, STOPPING.replace("bool(alarmed)", "False"))
  assert ended.returncode == 70, ended.stderr[-3000:]
  ended = _collapsed(tmp_path / "asked", environment, STOPPING.replace("step == 3", "True"))
  assert ended.returncode == 70, ended.stderr[-3000:]
  assert steps_in(tmp_path / "asked" / "checkpoints" / "base") == [1]
