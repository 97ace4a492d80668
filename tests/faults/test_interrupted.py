"""One run that everything happens to, against one that nothing happens to."""

import json
import os
import pathlib
import re
import signal
import socket

import numpy as np
import pytest

from pasmr_jax.experiment.reliability.lock import WorkLock
from pasmr_jax.experiment.reliability.recovery import steps_in
from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def _written(workdir: pathlib.Path) -> dict[str, int]:
  """When each checkpoint, and each result but that of SRL, was written."""
  paths = [*(workdir / "checkpoints").rglob("*"), *(workdir / "results").glob("[bp]*")]
  return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_killed_stopped_and_damaged_it_ends_as_if_nothing_had_been(
  environment, uninterrupted, tmp_path
):
  """kill -9 while logging, saving and evaluating, a SIGTERM, a flipped byte."""
  whole, _ = uninterrupted
  workdir = tmp_path / "run"
  command = runs.command(workdir, log__tensorboard=True)
  secrets = {"HF_TOKEN": "hf_" + "s3cret" * 5, "WANDB_API_KEY": "0123456789abcdef" * 2}
  environment = environment | secrets

  def end(count, **moment):
    return harness.interrupted(harness.doomed(command, workdir, count, **moment), environment)

  # In the base stage, with a checkpoint half-written.
  ended = end(70, pattern="checkpoints/", delay=0.02)
  assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
  # No step is lost of those that were made: the second checkpoint, half-written, is of step 6.
  assert [line["step"] for line in runs.read_lines(workdir / "metrics.jsonl")][:6] == [*range(1, 7)]
  # Between two steps of PAM; the run saves and says how it ended.
  ended = end(70, pattern="metrics.jsonl", number=signal.SIGTERM)
  assert ended.returncode == 75, ended.stderr[-3000:]
  assert "going on from step" in ended.stderr
  assert "SIGTERM received: a checkpoint follows at the next step boundary" in ended.stderr
  last = runs.read_lines(workdir / "metrics.jsonl")[-1]
  assert last["stage"] == "pam"
  assert steps_in(workdir / "checkpoints" / "pam")[-1] == last["step"]
  saved = f"saved pam step {last['step']}; the same command goes on"
  assert ended.stderr.splitlines()[-1] == saved
  # A byte of that checkpoint flips on the disk.
  newest = workdir / "checkpoints" / "pam" / str(last["step"])
  victim = max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size)
  data = bytearray(victim.read_bytes())
  data[len(data) // 2] ^= 4
  victim.write_bytes(data)
  # And the run is killed while it answers the test questions after PAM.
  ended = end(5, pattern="results/pam")
  assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
  assert f"checkpoint {newest} is damaged" in ended.stderr
  assert "another checksum than was written" in ended.stderr
  assert (workdir / "damaged" / "pam" / str(last["step"])).is_dir()

  finished = runs.run(command, environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  harness.assert_same_run(workdir, whole)
  # What the run was is on record, and nobody's secrets are.
  history = runs.read_lines(workdir / "run_history.jsonl")
  assert len(history) == 4
  record = json.loads((workdir / "run.json").read_text())
  assert record["config"]["pam.steps"] == 160
  assert record["packages"]["jax"] == record["code"]["jax"]
  assert record["code"]["commit"]
  assert set(record["data"]) >= {"pivot", "translation", "target", "triplets", "srl", "test"}
  assert all(re.fullmatch("[0-9a-f]{64}", one) for one in record["data"].values())
  assert len(record["devices"]) == 2
  for path in workdir.rglob("*"):
    if path.is_file():
      data = path.read_bytes()
      assert not any(secret.encode() in data for secret in secrets.values()), path

  # A finished run that is started again trains nothing and evaluates nothing but what is missing.
  (workdir / "results" / "srl.json").unlink()
  before = _written(workdir)
  finished = runs.run(command, environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  assert _written(workdir) == before
  harness.assert_same_run(workdir, whole)

  # Nobody else may train there, and nobody with another configuration.
  lock = WorkLock(workdir)
  lock.acquire()
  refused = runs.run(command, environment)
  lock.release()
  assert refused.returncode == 1
  assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in refused.stderr
  refused = runs.run(runs.command(workdir, srl__kl_coef=0.5), environment)
  assert refused.returncode == 1
  assert "srl: srl.kl_coef was 0.02, is 0.5" in refused.stderr
  assert _written(workdir) == before


def test_a_run_that_is_not_finite_stops_with_what_it_was_given(environment, tmp_path):
  changes = {
    "stages": "('base',)",
    "base__optimizer__learning_rate": 1e38,
    "base__optimizer__clip_norm": 0.0,
    "base__optimizer__warmup_steps": 0,
    "checkpoint__every": 50,
    "guard__skipped_in_a_row": 3,
  }
  stopped = runs.run(runs.command(tmp_path, **changes), environment)
  assert stopped.returncode == 70, stopped.stderr[-3000:]
  assert "3 updates in a row were skipped: loss" in stopped.stderr
  (folder,) = (tmp_path / "inspection").iterdir()
  assert str(folder) in stopped.stderr
  batch = np.load(folder / "batch.0.npz")
  assert batch["tokens"].shape == (8, 128)
  assert (folder / "state" / "_METADATA").is_file()
  lines = runs.read_lines(tmp_path / "metrics.jsonl")
  skipped = [line["step"] for line in lines if line["skipped_updates"]]
  assert skipped == list(range(skipped[0], skipped[0] + 3))
  assert json.loads((folder / "metrics.json").read_text())["skipped_updates"] == 1
  assert not (tmp_path / "checkpoints" / "base" / str(lines[-1]["step"])).exists()


def test_parameters_that_are_not_finite_never_become_a_checkpoint(environment, tmp_path):
  # The loss before the update is finite, what so long a step makes of the parameters is not.
  changes = {
    "stages": "('base',)",
    "base__optimizer__learning_rate": 3e38,
    "base__optimizer__epsilon": 1e-30,
    "base__optimizer__weight_decay": 10.0,
    "base__optimizer__clip_norm": 0.0,
    "base__optimizer__warmup_steps": 0,
    "checkpoint__every": 1,
  }
  stopped = runs.run(runs.command(tmp_path, **changes), environment)
  assert stopped.returncode == 70, stopped.stderr[-3000:]
  assert "base step 1: a parameter is not finite, though the loss was" in stopped.stderr
  assert not list((tmp_path / "checkpoints" / "base").iterdir())
