"""Reading a run's files: what is there, what is missing, torn or from another version."""

import json
import pathlib

import pytest

from pasmr_jax.experiment.reporting import reading
from pasmr_jax.experiment.reporting.reading import TERMS, read_run, read_runs
from tests.experiment import sample_run


@pytest.fixture
def workdir(tmp_path):
  return sample_run.write_run(tmp_path / "pivot")


def test_curves_by_stage_in_order_of_training(workdir):
  run = read_run(workdir, "pivot")
  assert list(run.curves) == ["pam", "srl"]
  assert run.curves["pam"]["loss"][:2] == [(1, 8.0), (2, 4.0)]
  assert run.curves["srl"]["development/target_accuracy"] == [(100, 0.25), (200, 0.5)]
  assert "step" not in run.curves["srl"]
  assert run.notices == ()


def test_results_stand_in_order_of_training_then_by_name(workdir):
  other = {"greedy": {"accuracy/de": 0.75}}
  for name in ("another", "eval_srl_best"):
    (workdir / "results" / f"{name}.json").write_text(json.dumps(other))
  run = read_run(workdir, "pivot")
  assert list(run.results) == ["pam", "srl", "another", "eval_srl_best"]
  assert run.results["srl"]["sampled"]["accuracy/de"] == 0.5


def test_what_results_hold_besides_numbers_is_left_out(workdir):
  mixed = {
    "greedy": {"accuracy/de": 0.5, "interval/de": [0.4, 0.6], "rule": "boxed", "ok": True},
    "settings": "pasmr",
    "compared": {"nothing": None},
  }
  (workdir / "results" / "srl.json").write_text(json.dumps(mixed))
  assert read_run(workdir, "pivot").results["srl"] == {"greedy": {"accuracy/de": 0.5}}


@pytest.mark.parametrize(
  ("text", "notice"),
  [
    ("{", "results/srl.json: not JSON (Expecting"),
    ("[1]", "results/srl.json: holds no numbers"),
    ("{}", "results/srl.json: holds no numbers"),
    ("\udcff", "results/srl.json: not JSON ('utf-8' codec"),
  ],
)
def test_a_result_that_is_none_leaves_a_notice(workdir, text, notice):
  (workdir / "results" / "srl.json").write_bytes(text.encode("utf-8", "surrogateescape"))
  run = read_run(workdir, "pivot")
  assert list(run.results) == ["pam"]
  (found,) = run.notices
  assert found.startswith(notice)


def test_an_empty_directory_is_an_empty_run(tmp_path):
  run = read_run(tmp_path, "none")
  assert (run.curves, run.results, run.rollouts, run.notices) == ({}, {}, [], ())


def test_a_torn_last_line_is_left_out_and_told(workdir):
  # Cut in the middle of a character of two bytes.
  torn = '{"stage": "srl", "step": 41, "question": "Ä'.encode()[:-1]
  with (workdir / "rollouts.jsonl").open("ab") as file:
    file.write(torn)
  run = read_run(workdir, "pivot")
  assert len(run.rollouts) == 3
  assert run.notices == ("rollouts.jsonl: the last line (4) is incomplete and was left out",)


def test_a_last_line_without_a_newline_that_is_whole_is_read(workdir):
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "srl", "step": 201, "reward": 0.5}')
  run = read_run(workdir, "pivot")
  assert run.curves["srl"]["reward"][-1] == (201, 0.5)
  assert run.notices == ()


def test_broken_lines_are_counted_and_named(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  lines[1], lines[4] = "[]", "nonsense"
  (workdir / "metrics.jsonl").write_text("\n".join([*lines, "", ""]))
  run = read_run(workdir, "pivot")
  assert [step for step, _ in run.curves["pam"]["loss"]] == [1, 3, 4, 6, 7, 8, 9, 10]
  assert run.notices == ("metrics.jsonl: 2 line(s) are not JSON objects: 2, 5",)


def test_numbers_that_are_none_are_left_out_and_told(tmp_path):
  # Python writes NaN and Infinity, which JSON in a page cannot hold; 10**400 no float can.
  (tmp_path / "metrics.jsonl").write_text(
    '{"stage": "srl", "step": 1, "loss": NaN, "kl": Infinity, "reward": 0.5}\n'
    '{"stage": "srl", "step": 2, "loss": true, "kl": "0.1", "reward": 1' + 400 * "0" + "}\n"
    '{"stage": 7, "step": 3, "reward": 1}\n'
    '{"stage": "srl", "step": "4", "reward": 1}\n'
  )
  run = read_run(tmp_path, "x")
  assert run.curves == {"srl": {"reward": [(1, 0.5)]}}
  assert run.notices == ("metrics.jsonl: srl step 1: not finite: loss, kl",)


def test_notices_of_a_run_gone_wrong_stay_few(tmp_path):
  lines = [{"stage": "srl", "step": step, "loss": float("nan")} for step in range(1, 100)]
  sample_run.write_lines(tmp_path / "metrics.jsonl", lines)
  assert len(read_run(tmp_path, "x").notices) == reading.MAX_NOTICES
  alarms = [{"stage": "srl", "step": step, "alarm/kl": 0.5} for step in range(1, 13)]
  sample_run.write_lines(tmp_path / "metrics.jsonl", [*alarms, lines[0]])
  told = read_run(tmp_path, "x").notices
  assert len(told) == 13
  assert "not finite: loss" in told[-1]


def test_a_rollout_as_the_page_shows_it(workdir):
  german, _, hostile = read_run(workdir, "pivot").rollouts
  # Both responses share their translation, whose three solutions are two distinct ones.
  assert german["translations"] == [
    {
      "text": "Sara has 12 apples. How many now?",
      "solutions": [["15", "12 plus 3 is 15.", 2], ["16", "12 and 4 is 16.", 1]],
    }
  ]
  right, wrong = german["responses"]
  assert (right["translation"], right["answer"], right["label"]) == (0, "15", "15")
  assert dict(zip(TERMS, right["terms"], strict=True)) == {
    "reward": 1.0,
    "agreement": 1.0,
    "understanding": 2 / 3,
    "format": 1.0,
    "language": 1.0,
    "length": -0.3125,
    "advantage": 0.5,
    "understanding_advantage": 0.125,
  }
  assert wrong["failures"] == []
  assert hostile["question"] == sample_run.HOSTILE
  unformed = hostile["responses"][1]
  assert (unformed["translation"], unformed["labelled"]) == (None, False)


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, []),
    ({"answer": None}, ["unanswered"]),
    ({"truncated": True, "well_formed": False}, ["malformed", "truncated"]),
    ({"translation_consistent": False}, ["language"]),
    ({"language": 0.5}, ["language"]),  # as older runs wrote it
  ],
)
def test_failures(changes, expected):
  assert reading.failures(sample_run.response("15", 1.0) | changes) == expected


def test_a_rollout_of_another_version_is_shown_as_far_as_it_goes():
  line = {
    "step": 3,
    "question": ["not a text"],
    "responses": [{"answer": 15, "reward": "1", "translation": "x", "pivot_answers": None}, 7],
  }
  found = reading.rollout(line)
  assert (found["step"], found["question"], found["language"]) == (3, "", "")
  (response,) = found["responses"]
  assert response["terms"] == [None] * len(TERMS)
  assert response["answer"] is None
  assert found["translations"] == [{"text": "x", "solutions": []}]
  assert reading.rollout({"responses": "none"})["responses"] == []


def test_runs_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
  paths = [tmp_path / "seed0" / "pivot", tmp_path / "seed1" / "pivot", tmp_path / "gold"]
  for path in paths:
    path.mkdir(parents=True)
  assert [run.name for run in read_runs(paths[:1])] == ["pivot"]
  assert [run.name for run in read_runs(paths[1:])] == ["pivot", "gold"]
  names = reading.short_names(paths)
  assert names == ["seed0/pivot", "seed1/pivot", f"{tmp_path.name}/gold"]


def test_directories_that_cannot_be_read(tmp_path):
  with pytest.raises(
    NotADirectoryError, match=r"nowhere: no such directory; expected the work directory"
  ):
    read_runs([tmp_path / "nowhere"])
  with pytest.raises(ValueError, match="given twice"):
    read_runs([tmp_path, tmp_path / "." / pathlib.Path()])
  with pytest.raises(ValueError, match="at least one"):
    read_runs([])
