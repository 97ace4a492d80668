"""train.py as a user runs it: all stages, killed and started again, with garbage for gold."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pasmr_jax.experiment.metrics import without_measured

ROOT = pathlib.Path(__file__).resolve().parent.parent

SMALL = {
  "languages": "('de','bn')",
  "model.embed_dim": 32,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_dim": 16,
  "model.mlp_dim": 32,
  "model.scan_unroll": 1,
  "data.pivot": "('synthetic:200',)",
  "data.translation": "('synthetic:60',)",
  "data.target": "('synthetic:20',)",
  "data.triplets": "('synthetic:40',)",
  "data.srl": "('synthetic:40',)",
  "data.development": "('synthetic:4',)",
  "data.test": "('synthetic:4',)",
  # Enough for the format, so that there are translations to solve and votes to learn from.
  "base.steps": 20,
  "pam.steps": 160,
  "srl.steps": 8,
  "base.batch_size": 8,
  "pam.batch_size": 8,
  "base.max_length": 128,
  "base.optimizer.warmup_steps": 2,
  "pam.max_length": 128,
  "srl.questions": 8,
  "srl.group_size": 4,
  "srl.update_rows": 16,
  "srl.rehearsal_rows": 8,
  "srl.max_new_tokens": 72,
  "srl.max_pivot_tokens": 40,
  "srl.credit": "all",
  "reward.gate": False,
  "reward.format_weight": 1.0,
  "reward.language_weight": 0.5,
  "reward.length_weight": 0.2,
  "feedback.pivot_samples": 2,
  "pam.optimizer.learning_rate": 1e-2,
  "pam.mixture.pivot": 0.3,
  "evaluation.every": 40,
  "evaluation.development_questions": 4,
  "evaluation.sampled": False,
  "checkpoint.every": 3,
  "log.rollouts_every": 2,
  "log.progress": False,
  "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Two CPU devices, and one compilation cache for all runs of this file."""
  cache = tmp_path_factory.mktemp("compiled")
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def _command(workdir: pathlib.Path, program="train.py", extra=(), **changes) -> list[str]:
  settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  config = f"--config={ROOT / 'configs' / 'tiny.py'}"
  return [sys.executable, str(ROOT / program), config, f"--workdir={workdir}", *flags, *extra]


def _run(command: list[str], environment: dict) -> subprocess.CompletedProcess:
  return subprocess.run(
    command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
  )


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _params(workdir: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
  """Everything in a stage's newest checkpoint, by path."""
  folder = workdir / "checkpoints" / stage
  step = max(int(child.name) for child in folder.iterdir() if child.name.isdecimal())
  arrays = {}
  for item in ("params", "rest"):
    path = folder / str(step) / item
    with ocp.PyTreeCheckpointer() as checkpointer:
      stored = checkpointer.metadata(path).item_metadata.tree
      arrays_only = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
      tree = checkpointer.restore(path, restore_args=arrays_only)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return arrays


def _assert_same_checkpoint(one: pathlib.Path, other: pathlib.Path, stage: str) -> None:
  left, right = _params(one, stage), _params(other, stage)
  assert left.keys() == right.keys()
  assert len(left) > 10
  for name, array in left.items():
    np.testing.assert_array_equal(array, right[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  finished = _run(_command(workdir), environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  return workdir, finished


@pytest.mark.slow
def test_a_run_leaves_metrics_rollouts_results_and_a_table(uninterrupted):
  workdir, finished = uninterrupted
  lines = _lines(workdir / "metrics.jsonl")
  steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
  ends = {"base": 20, "pam": 160, "srl": 8}
  assert steps == [(stage, n) for stage, last in ends.items() for n in range(1, last + 1)]
  evaluated = [(line["stage"], line["step"]) for line in lines if "loss" not in line]
  assert evaluated == [("base", 20), *(("pam", n) for n in (40, 80, 120, 160)), ("srl", 8)]
  base = [line["loss"] for line in lines if line["stage"] == "base" and "loss" in line]
  assert base[-1] < base[0] - 0.5  # it learns
  srl = [line for line in lines if line["stage"] == "srl" and "loss" in line]
  assert {line["ratio_max"] for line in srl} == {1}
  assert all(line["mismatch_max"] == pytest.approx(1, abs=1e-3) for line in srl)
  # There is something to learn from: translations that are solved, and votes with a winner.
  assert max(line["well_formed_rate"] for line in srl) > 0.3
  assert sum(line["label_rate"] for line in srl) > 0.3
  rollouts = _lines(workdir / "rollouts.jsonl")
  assert {line["step"] for line in rollouts} == {1, 3, 5, 7}
  assert len(rollouts[0]["responses"]) == 4
  for stage in ("base", "pam", "srl"):
    result = json.loads((workdir / "results" / f"{stage}.json").read_text())
    assert set(result) == {"greedy"}
    assert len(_lines(workdir / "results" / f"{stage}_greedy.jsonl")) == 12
  assert "test accuracy, greedy" in finished.stdout
  for said in ("model", "devices", "2 fsdp x 1 tensor", "8 questions x 4 = 32 responses"):
    assert said in finished.stderr


@pytest.mark.slow
def test_killed_at_any_step_of_any_stage_it_goes_on_exactly(environment, uninterrupted, tmp_path):
  """kill -9 in the middle of each stage; the files end up as if nothing had happened."""
  whole, _ = uninterrupted
  for stage, step in (("base", 5), ("pam", 70), ("srl", 5)):
    process = subprocess.Popen(
      _command(tmp_path), env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
      path = tmp_path / "metrics.jsonl"
      text = path.read_text("utf-8") if path.exists() else ""
      written = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
      if any(line["stage"] == stage and line["step"] >= step for line in written):
        break
      assert process.poll() is None, "the run ended before it could be killed"
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not (tmp_path / "results" / "srl.json").exists()

  finished = _run(_command(tmp_path), environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  assert "going on from step" in finished.stderr
  expected = [without_measured(line) for line in _lines(whole / "metrics.jsonl")]
  assert [without_measured(line) for line in _lines(tmp_path / "metrics.jsonl")] == expected
  assert _lines(tmp_path / "rollouts.jsonl") == _lines(whole / "rollouts.jsonl")
  for stage in ("base", "pam", "srl"):
    _assert_same_checkpoint(tmp_path, whole, stage)
    name = f"results/{stage}_greedy.jsonl"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def _questions(path: pathlib.Path, garbage: bool) -> None:
  """Self-feedback questions in a file, with their gold answers or with garbage in their place."""
  from pasmr_jax.data import synthetic

  lines = []
  for language in ("de", "bn"):
    pool = synthetic.problems("train", 5, f"file/{language}", 30)
    for question in synthetic.questions(pool, language, prefix="file"):
      lines.append(
        {
          "id": question.id,
          "language": question.language,
          "question": question.text,
          "pivot_question": question.pivot_text,
          "pivot_solution": "!" if garbage else question.solution,
          "answer": "nonsense" if garbage else question.answer,
        }
      )
  path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


@pytest.mark.slow
def test_garbage_for_gold_changes_nothing(environment, uninterrupted, tmp_path):
  whole, _ = uninterrupted
  for kind in ("gold", "garbage"):
    _questions(tmp_path / f"{kind}.jsonl", garbage=kind == "garbage")
    changes = {
      "stages": "('srl',)",
      "init_from": str(whole),
      "srl__steps": 4,
      "data__srl": f"('parallel:{tmp_path}/{kind}.jsonl',)",
    }
    finished = _run(_command(tmp_path / kind, **changes), environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
  _assert_same_checkpoint(tmp_path / "gold", tmp_path / "garbage", "srl")
  # The questions do matter, and so would the answers, if they were asked for.
  changes["feedback__source"] = "gold"
  refused = _run(_command(tmp_path / "refused", **changes), environment)
  assert refused.returncode != 0
  assert "nonsense" in refused.stderr or "no readable answer" in refused.stderr


@pytest.mark.slow
def test_eval_evaluates_any_checkpoint(environment, uninterrupted):
  whole, _ = uninterrupted
  extra = ["--stage=pam", "--step=last"]
  finished = _run(_command(whole, "eval.py", extra), environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  again = (whole / "results" / "eval_pam_160_greedy.jsonl").read_bytes()
  assert again == (whole / "results" / "pam_greedy.jsonl").read_bytes()
  missing = _run(_command(whole, "eval.py", ["--step=7777"]), environment)
  assert missing.returncode != 0
  assert "expected a checkpoint '7777'" in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"srl__grup_size": 8}, "grup_size"),
    ({"srl__group_size": "'many'"}, "many"),
    ({"data__triplets": "('parallel:/nowhere/de.jsonl',)"}, "/nowhere/de.jsonl: no such file"),
  ],
)
def test_bad_input_is_named_before_compilation(environment, tmp_path, changes, said):
  stopped = _run(_command(tmp_path, **changes), environment)
  assert stopped.returncode != 0
  assert said in stopped.stderr
  assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_checkpoint_of_another_model_is_refused(environment, uninterrupted):
  whole, _ = uninterrupted
  changes = {"model.mlp_dim": 64, "srl.steps": 9}
  stopped = _run(_command(whole, "eval.py", **changes), environment)
  assert stopped.returncode != 0
  assert "mlp_dim is 32, expected 64" in stopped.stderr
