"""Which gaps between two evaluations are called significant, and what is said of broken files."""

import json

import pytest

from pasmr_jax.experiment import comparison


def _file(path, right):
  """An items file: (language, id) -> whether each sample is right."""
  lines = [
    {"language": language, "id": name, "correct": correct, "scores": {"lm_eval": not correct}}
    for (language, name), samples in right.items()
    for correct in samples
  ]
  path.write_text("\n".join(map(json.dumps, lines)) + "\n")
  return path


def _scores(language, *right):
  return {(language, f"q{number}"): float(value) for number, value in enumerate(right)}


def _by_name(differences):
  return {one.name: one for one in differences}


def test_samples_of_a_question_are_averaged(tmp_path):
  path = _file(tmp_path / "a.jsonl", {("de", "q1"): [True, False], ("de", "q2"): [True, True]})
  assert comparison.read_scores(path, None) == {("de", "q1"): 0.5, ("de", "q2"): 1.0}
  assert comparison.read_scores(path, "lm_eval") == {("de", "q1"): 0.5, ("de", "q2"): 0.0}


def test_a_clear_gap_is_significant_and_a_small_one_is_not():
  first = _scores("de", *[0] * 60, *[1] * 40) | _scores("sw", *[0] * 50, *[1] * 50)
  second = _scores("de", *[0] * 30, *[1] * 70) | _scores("sw", *[0] * 49, *[1] * 50, 0)
  found = _by_name(comparison.compare(first, second, "en"))
  assert found["de"].significant
  assert found["de"].second - found["de"].first == pytest.approx(0.3)
  assert 0.2 < found["de"].interval.low < 0.3 < found["de"].interval.high < 0.4
  assert not found["sw"].significant
  assert found["target"].questions == 200
  assert found["target"].second - found["target"].first == pytest.approx(0.15)
  assert found["target"].significant
  assert found["high_resource"].interval == found["de"].interval


def test_pairs_make_a_gap_visible_that_two_intervals_hide():
  """8 gains and no loss among 100 questions: each accuracy alone is known to within 10 points."""
  first = _scores("de", *[0] * 50, *[1] * 50)
  second = _scores("de", *[0] * 42, *[1] * 58)
  found = _by_name(comparison.compare(first, second, "en"))
  assert found["de"].differing == 8
  assert found["de"].significant


@pytest.mark.parametrize(("gains", "significant"), [(5, False), (6, True)])
def test_a_handful_of_gains_may_be_chance(gains, significant):
  first = _scores("de", *[0] * 250)
  second = _scores("de", *[1] * gains, *[0] * (250 - gains))
  (difference, *_) = comparison.compare(first, second, "en")
  assert difference.interval.low > 0  # the bootstrap alone would say so
  assert difference.significant is significant


def test_a_worse_run_is_significantly_lower():
  first, second = _scores("de", *[1] * 40), _scores("de", *[0] * 20, *[1] * 20)
  (difference, *_) = comparison.compare(first, second, "en")
  assert difference.interval.high < 0
  assert difference.significant


def test_only_shared_questions_are_compared():
  first = _scores("de", 0, 1) | _scores("sw", 1, 1)
  found = _by_name(comparison.compare(first, _scores("de", 1, 1, 1), "en"))
  assert set(found) == {"de", "target", "high_resource", "all"}
  assert found["de"].questions == 2
  assert (found["de"].first, found["de"].second) == (0.5, 1.0)
  with pytest.raises(ValueError, match="no question in common"):
    comparison.compare(_scores("de", 1), _scores("sw", 1), "en")


def test_the_command_prints_a_table_and_writes_it(tmp_path, capsys):
  before = {("de", f"q{n}"): [n < 10] for n in range(40)} | {("en", "q0"): [True]}
  after = {("de", f"q{n}"): [n < 30] for n in range(40)} | {("en", "q1"): [True]}
  first, second = _file(tmp_path / "pam.jsonl", before), _file(tmp_path / "srl.jsonl", after)
  written = tmp_path / "difference.json"
  comparison.main([str(first), str(second), "--json", str(written)])
  said = capsys.readouterr().out
  assert "srl against pam" in said
  assert "+50.0" in said
  assert "higher" in said
  assert "2 questions that only one of them has are left out" in said
  (german, *_) = json.loads(written.read_text())
  assert german["name"] == "de"
  assert german["significant"] is True


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("", "no items; expected a line for each answer"),
    ('{"language": "de"}', "a.jsonl:1: expected an evaluated item"),
    ("{}\nnonsense", "a.jsonl:1: expected an evaluated item"),
    ("[1]", "a.jsonl:1: expected an evaluated item"),
  ],
)
def test_broken_files_are_named(tmp_path, text, said):
  path = tmp_path / "a.jsonl"
  path.write_text(text)
  with pytest.raises(SystemExit, match=said):
    comparison.main([str(path), str(path)])
  with pytest.raises(SystemExit, match="No such file"):
    comparison.main([str(tmp_path / "b.jsonl"), str(path)])
