"""The built-in benchmark's table, its command line and what it does when a run fails."""

import json
import os
import threading
import time

import pytest

from benchmarks import effect
from benchmarks.effects import arms


def finished_run(workdir, seed, name, stage, accuracy):
  folder = workdir / f"seed{seed}" / name / "results"
  folder.mkdir(parents=True, exist_ok=True)
  values = {"target_accuracy": accuracy, "pivot_accuracy": 0.9, "accuracy/de": accuracy}
  (folder / f"{stage}.json").write_text(json.dumps({"greedy": values, "sampled": values}))


def finished_start(workdir, seed):
  finished_run(workdir, seed, "start", "base", 0.2)
  finished_run(workdir, seed, "start", "pam", 0.3)


def test_differences_are_paired_by_seed(tmp_path):
  for seed, accuracy in ((0, 0.5), (1, 0.7)):
    finished_start(tmp_path, seed)
    finished_run(tmp_path, seed, "pivot", "srl", accuracy)
  lines = effect.results_table(effect.collect(tmp_path, 2)).splitlines()
  assert lines[3] == (
    "| pam | 30.0 ± 0.0 | 30.0 ± 0.0 | 90.0 ± 0.0 | +30.0 ± 10.0 | +30.0 ± 10.0 | 2 |"
  )
  assert lines[4] == "| pivot | 60.0 ± 10.0 | 60.0 ± 10.0 | 90.0 ± 0.0 |  |  | 2 |"


def test_without_the_pivot_there_are_no_differences(tmp_path, capsys):
  finished_start(tmp_path, 0)
  assert effect.main([f"--workdir={tmp_path}", "--report"]) == 0
  assert "| pam | 30.0 ± nan | 30.0 ± nan | 90.0 ± nan |  |  | 1 |" in capsys.readouterr().out


def test_a_report_of_nothing_says_so(tmp_path, capsys):
  assert effect.main([f"--workdir={tmp_path / 'none'}", "--report"]) == 1
  assert "has no finished run" in capsys.readouterr().err
  for flag in ("--seeds", "--jobs"):
    with pytest.raises(SystemExit):
      effect.main([f"--workdir={tmp_path}", f"{flag}=0"])
    assert f"argument {flag}: 0; expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["gild", "continued_pam_tokens"])
def test_an_arm_that_is_none_is_told_before_anything_runs(tmp_path, capsys, monkeypatch, wrong):
  monkeypatch.setattr(arms, "run", lambda *_: pytest.fail("nothing should run"))
  assert effect.main([f"--workdir={tmp_path}", f"--arms=gold,{wrong}"]) == 1
  said = capsys.readouterr().err
  assert f"--arms: unknown '{wrong}'; expected some of pivot, gold" in said


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_runs_have_cores_that_there_are(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
  used = []
  monkeypatch.setattr(arms, "run", lambda program, leg, environment, core: used.append(core))
  effect.train(tmp_path, 3, [], 3, arms.Leg())
  assert set(used) <= {3, 5}


def test_a_run_that_fails_stops_the_others(tmp_path, capsys, monkeypatch):
  running, ran = threading.Event(), []

  def run(program, leg, environment, core):
    ran.append(program.folder)
    if program.folder.parent.name == "seed0":
      running.set()
      while not leg.over:
        time.sleep(0.01)
      raise arms.Stopped
    assert running.wait(30)
    raise RuntimeError("it broke here")

  monkeypatch.setattr(arms, "run", run)
  assert effect.main([f"--workdir={tmp_path}", "--seeds=2", "--jobs=2", "--arms=gold"]) == 1
  assert "effect: it broke here" in capsys.readouterr().err
  assert sorted(ran) == [tmp_path / f"seed{seed}" / "start" for seed in (0, 1)]
