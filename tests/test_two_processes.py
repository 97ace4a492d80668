"""Two processes of four devices are one of eight: same metrics, and each other's checkpoints."""

import pathlib
import shutil
import signal

import pytest

from pasmr_jax.experiment.metrics import without_measured
from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.slow, pytest.mark.long]

STEPS = 10


def _command(start: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """Self-feedback from the parameters of `start`."""
  changes = {
    "stages": "('srl',)",
    "init_from": str(start),
    "srl.steps": STEPS,
    "srl.inner_batches": 2,
    "checkpoint.every": 5,
    "evaluation.every": 0,
  }
  return runs.command(workdir, **changes)


def _one_process(command: list[str], compiled: pathlib.Path) -> None:
  finished = runs.run(command, runs.environment(compiled, devices=8))
  assert finished.returncode == 0, finished.stderr[-3000:]


def _two_processes(command: list[str], compiled: pathlib.Path) -> None:
  runs.run_two_processes(command, runs.environment(compiled, devices=4))


def _learned(workdir: pathlib.Path) -> list[dict]:
  """What every step's metrics say, times aside, and the evaluations."""
  lines = runs.read_lines(workdir / "metrics.jsonl")
  assert {line.pop("stage") for line in lines} == {"srl"}
  return [without_measured(line) for line in lines]


def _assert_close(found: list[dict], expected: list[dict]) -> None:
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for one, other in zip(found, expected, strict=True):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def whole(compiled, uninterrupted, tmp_path_factory):
  """Ten steps of one process, and of two."""
  start, _ = uninterrupted
  one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
  _one_process(_command(start, one), compiled)
  _two_processes(_command(start, two), compiled)
  return start, one, two


def test_two_processes_learn_what_one_does(whole):
  _, one, two = whole
  assert len([line for line in _learned(one) if "loss" in line]) == STEPS
  _assert_close(_learned(two), _learned(one))
  assert any(line.get("policy_loss") for line in _learned(one))


@pytest.mark.faults
@pytest.mark.parametrize("number", [0, 1])  # JAX's service, without which all are aborted, is 0's
def test_one_that_is_killed_is_named_by_the_other_and_both_go_on(whole, compiled, tmp_path, number):
  start, _, two = whole
  workdir, environment = tmp_path / "killed", runs.environment(compiled, devices=4)
  command = _command(start, workdir)
  killed = harness.injured(command, environment, workdir, number, signal.SIGKILL, 120, lines=6)
  _, code, said = killed
  assert code != 0
  assert "was killed" in harness.named(said, number)[0]
  assert harness.named(said, 1 - number) == []
  _two_processes(command, compiled)
  assert _learned(workdir) == _learned(two)
  runs.assert_same_checkpoint(workdir, two, "srl")


@pytest.mark.parametrize("go_on", [_one_process, _two_processes])
def test_either_goes_on_from_the_others_checkpoint(whole, compiled, tmp_path, go_on):
  start, one, two = whole
  stopped = tmp_path / "stopped"
  shutil.copytree(two if go_on is _one_process else one, stopped)
  shutil.rmtree(stopped / "checkpoints" / "srl" / str(STEPS))
  shutil.rmtree(stopped / "results")
  go_on(_command(start, stopped), compiled)
  _assert_close(_learned(stopped), _learned(one))
  assert (stopped / "results" / "srl.json").exists()
