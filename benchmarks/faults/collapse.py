"""A run made to collapse, and what the alarm says and does about it, for each action.

Rewards that a policy can raise without being right: agreement of the target answers with
themselves, format and length paid for apart, groups normalised by their deviation, no rehearsal, no
KL, a learning rate several times too high.
"""

import argparse
import pathlib
import shutil
from typing import Any

from benchmarks.faults import runs
from tests import runs as test_runs
from tests.faults import harness

CHANGES = {
  "srl__steps": 120,
  "srl__rehearsal_weight": 0.0,
  "srl__kl_coef": 0.0,
  "srl__advantage": "grpo",
  "srl__credit": "all",
  "srl__optimizer__learning_rate": 3e-3,
  "feedback__source": "target_majority",
  "reward__gate": False,
  "reward__format_weight": 1.0,
  "reward__length_weight": 1.0,
  "evaluation__every": 20,
  "evaluation__development_questions": 50,
  "evaluation__test_questions": 20,
  "checkpoint__every": 20,
  "log__progress": False,
}


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  environment = runs.environment(folder)
  start = folder / "start"
  if not (start / "results" / "pam.json").exists():
    runs.tell("training the model that will collapse")
    runs.completed(_tiny(start, stages="('base','pam')"), environment)
  seen = []
  for action, expected in (("continue", 0), ("stop", 70), ("return", 0)):
    workdir = folder / action
    shutil.rmtree(workdir, ignore_errors=True)
    changes = CHANGES | {"guard__collapse_action": action}
    ended = harness.interrupted(
      _tiny(workdir, stages="('srl',)", init_from=str(start), **changes), environment
    )
    alarms = [line for line in ended.stderr.splitlines() if line.startswith("ALARM")]
    runs.tell(f"{action}: exit code {ended.returncode}: {alarms}")
    assert ended.returncode == expected, ended.stderr[-3000:]
    assert alarms
    lines = test_runs.read_lines(workdir / "metrics.jsonl")
    assert any(name.startswith("alarm/") for line in lines for name in line)
    curve = [
      (line["step"], round(line["development/target_accuracy"], 3))
      for line in lines
      if "development/target_accuracy" in line
    ]
    seen.append({"action": action, "alarms": alarms, "held-out accuracy": curve})
    if action == "continue":
      assert "agreement rose" in (workdir / "report.html").read_text("utf-8")
  return {"runs": seen}


def _tiny(workdir: pathlib.Path, **changes: Any) -> list[str]:
  """The demo's configuration, shortened."""
  settings = {"base.steps": 600, "log.tensorboard": False, "log.progress": False}
  settings |= {key.replace("__", "."): value for key, value in changes.items()}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  interpreter, program, config, *_ = test_runs.command(workdir)
  return [interpreter, program, config, f"--workdir={workdir}", *flags]
