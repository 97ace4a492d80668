"""train.py as a user runs it: all stages, with garbage for gold; tests/faults interrupts it."""

import json
import pathlib
import shutil

import pytest

from tests.runs import assert_same_checkpoint, command, read_lines, run


@pytest.mark.slow
def test_a_run_leaves_metrics_rollouts_results_and_a_table(uninterrupted):
  workdir, finished = uninterrupted
  lines = read_lines(workdir / "metrics.jsonl")
  steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
  ends = {"base": 20, "pam": 160, "srl": 8}
  assert steps == [(stage, n) for stage, last in ends.items() for n in range(1, last + 1)]
  evaluated = [(line["stage"], line["step"]) for line in lines if "loss" not in line]
  assert evaluated == [("base", 20), *(("pam", n) for n in (40, 80, 120, 160)), ("srl", 8)]
  base = [line["loss"] for line in lines if line["stage"] == "base" and "loss" in line]
  assert base[-1] < base[0] - 0.5  # it learns
  srl = [line for line in lines if line["stage"] == "srl" and "loss" in line]
  # 1 where a response taught, and 0 in a step of which none had a label.
  assert all(line["policy_updates"] == (line["trained_tokens"] > 0) for line in srl)
  assert all(line["ratio_max"] == line["policy_updates"] for line in srl)
  mismatches = [line["mismatch_max"] for line in srl]
  assert mismatches == pytest.approx([line["policy_updates"] for line in srl], abs=1e-3)
  # There is something to learn from: translations that are solved, and votes with a winner.
  assert max(line["well_formed_rate"] for line in srl) > 0.3
  assert sum(line["label_rate"] for line in srl) > 0.3
  rollouts = read_lines(workdir / "rollouts.jsonl")
  assert {line["step"] for line in rollouts} == {1, 3, 5, 7}
  assert len(rollouts[0]["responses"]) == 4
  for stage in ("base", "pam", "srl"):
    result = json.loads((workdir / "results" / f"{stage}.json").read_text())
    assert set(result) == {"greedy"}
    assert len(read_lines(workdir / "results" / f"{stage}_greedy.jsonl")) == 12
  assert not (workdir / "compiled").exists()  # the environment names another folder
  assert "test accuracy, greedy" in finished.stdout
  for said in ("model", "devices", "2 fsdp x 1 tensor", "8 questions x 4 = 32 responses"):
    assert said in finished.stderr


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
    finished = run(command(tmp_path / kind, **changes), environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
  assert_same_checkpoint(tmp_path / "gold", tmp_path / "garbage", "srl")
  # The questions do matter, and so would the answers, if they were asked for.
  changes["feedback__source"] = "gold"
  refused = run(command(tmp_path / "refused", **changes), environment)
  assert refused.returncode != 0
  assert "nonsense" in refused.stderr or "no readable answer" in refused.stderr


@pytest.mark.slow
def test_eval_evaluates_any_checkpoint(environment, uninterrupted, tmp_path):
  whole = tmp_path / "run"
  shutil.copytree(uninterrupted[0], whole)
  extra = ["--stage=pam", "--step=last"]
  finished = run(command(whole, "eval.py", extra), environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  again = (whole / "results" / "eval_pam_160_greedy.jsonl").read_bytes()
  assert again == (whole / "results" / "pam_greedy.jsonl").read_bytes()
  missing = run(command(whole, "eval.py", ["--step=7777"]), environment)
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
  stopped = run(command(tmp_path, **changes), environment)
  assert stopped.returncode != 0
  assert said in stopped.stderr
  assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_checkpoint_of_another_model_is_refused(environment, uninterrupted):
  whole, _ = uninterrupted
  changes = {"model.mlp_dim": 64, "srl.steps": 9}
  stopped = run(command(whole, "eval.py", **changes), environment)
  assert stopped.returncode != 0
  assert "mlp_dim is 32, expected 64" in stopped.stderr


@pytest.mark.slow
def test_a_restart_takes_compiled_programs_from_the_work_directory(environment, tmp_path):
  elsewhere = "JAX_COMPILATION_CACHE_DIR"
  here = {name: value for name, value in environment.items() if name != elsewhere}

  def programs() -> dict[str, int]:
    """Those that a short run leaves in its work directory, and when they were written."""
    for made in ("checkpoints", "results"):  # so that all is computed once more
      shutil.rmtree(tmp_path / made, ignore_errors=True)
    finished = run(command(tmp_path, stages="('base',)", base__steps=2), here)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("compiled/*-cache")}

  first = programs()
  names = {name.split("-")[0] for name in first}
  assert {"jit_update_supervised", "jit_prefill", "jit_decode"} <= names
  assert programs() == first
