"""Self-feedback that teaches nothing is told: at the terminal, in the metrics and in the report."""

import dataclasses
import types

import pytest

from configs import base
from pasmr_jax.experiment.checkpoint import Progress
from pasmr_jax.experiment.metrics import Metrics
from pasmr_jax.experiment.reliability.guard import StageGuard
from pasmr_jax.experiment.reliability.untaught import is_told
from pasmr_jax.experiment.reporting.reading import read_run

NOTHING = {
  "skipped_updates": 0,
  "taught_tokens": 0,
  "trained_tokens": 0,
  "truncation_rate": 0.25,
  "well_formed_rate": 0.5,
  "label_rate": 0.5,
}
SOMETHING = NOTHING | {"taught_tokens": 7, "trained_tokens": 9}


@pytest.fixture
def guarded(tmp_path):
  """Makes the guard of a stage srl from its progress."""
  config = base.get_config()
  config.log.tensorboard = config.log.progress = False
  config.guard.untaught_steps = 3
  metrics = Metrics(tmp_path, ("srl",), config.log)

  def make(progress, limit=3):
    config.guard.untaught_steps = limit
    run = types.SimpleNamespace(config=config, workdir=tmp_path)
    return StageGuard(run, types.SimpleNamespace(name="srl"), progress, metrics)

  return make


@pytest.mark.parametrize(
  ("values", "name", "said"),
  [
    ({"truncation_rate": 1.0, "well_formed_rate": 0.0}, "truncated", "every response met its"),
    ({"well_formed_rate": 0.0, "label_rate": 0.0}, "malformed", "no response is well formed"),
    ({"label_rate": 0.0}, "unlabelled", "no vote has a label"),
    ({"trained_tokens": 9}, "alike", "all responses have the same reward"),
    ({"trained_tokens": 9, "label_rate": 0.0}, "alike", "all responses have the same reward"),
    ({}, "masked", "every response that has a label met its limit"),
  ],
)
def test_it_is_told_with_the_likeliest_cause(guarded, tmp_path, capsys, values, name, said):
  guard = guarded(Progress())
  for step in range(1, 4):
    assert not capsys.readouterr().err
    guard.after_update(step, None, None, NOTHING | values)
  told = capsys.readouterr().err
  assert told.startswith("NOTHING LEARNED srl step 3: self-feedback taught nothing for 3 steps in")
  assert said in told
  run = read_run(tmp_path, "run")
  assert run.curves == {"srl": {f"untaught/{name}": [(3, 3.0)]}}
  (notice,) = run.notices
  assert said in notice
  assert notice.startswith("srl step 3: self-feedback taught nothing for 3 steps in a row")


def test_steps_are_counted_in_a_row_and_over_a_restart(guarded, capsys):
  progress = Progress()
  guard = guarded(progress)
  for step, values in enumerate([NOTHING, NOTHING, SOMETHING, NOTHING, NOTHING], 1):
    guard.after_update(step, None, None, values)
  assert progress.untaught_in_a_row == 2
  assert not capsys.readouterr().err
  again = Progress(**dataclasses.asdict(progress))
  guarded(again).after_update(6, None, None, NOTHING)
  assert "3 steps in a row" in capsys.readouterr().err


def test_a_checkpoint_older_than_the_count_is_read():
  older = dataclasses.asdict(Progress(best=0.5))
  del older["untaught_in_a_row"]
  assert Progress(**older) == Progress(best=0.5)


def test_zero_tells_nothing_and_supervised_stages_are_not_meant(guarded, capsys):
  for progress, limit, values in (
    (Progress(), 0, NOTHING),
    (Progress(), 1, {"skipped_updates": 0, "trained_tokens": 0}),
  ):
    for step in range(1, 5):
      guarded(progress, limit).after_update(step, None, None, values)
  assert not capsys.readouterr().err


def test_a_long_run_is_told_of_seldom():
  assert [steps for steps in range(1, 400) if is_told(steps, 20)] == [20, 40, 80, 160, 320]
