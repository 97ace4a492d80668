"""Rewards by hand: each source, scope, kind, the gate, the small terms."""

import dataclasses

import numpy as np
import pytest

from pasmr_jax.feedback import rewards
from pasmr_jax.feedback.rewards import RewardSettings, Scored

SETTINGS = RewardSettings(
  source="pivot",
  scope="pooled",
  confidence=0.0,
  kind="majority",
  gate=False,
  format_weight=0.0,
  language_weight=0.0,
  length_weight=0.0,
  length_scale=100,
)
# Four responses; pooled votes: 5 five times, 7 twice, one missing.
GROUP = [
  Scored(5, (5, 5), True, True, True, 10),
  Scored(7, (7, 7), True, True, True, 20),
  Scored(None, (5, None), True, True, True, 30),
  Scored(5, (5, 5), True, False, True, 40),
]


def _score(groups, golds=None, seed=0, ids=None, **changes):
  settings = dataclasses.replace(SETTINGS, **changes)
  golds = golds or [None] * len(groups)
  return rewards.score_questions(groups, settings, golds, np.random.default_rng(seed), ids)


def test_pooled_majority():
  [found] = _score([GROUP])
  assert found.pooled.label == 5
  assert found.pooled.confidence == 5 / 8
  assert found.reward.tolist() == [1, 0, 0, 1]
  assert found.valid.all()
  assert found.understanding.tolist() == [1, 0, 0.5, 1]


def test_own_scope_asks_each_translation():
  [found] = _score([GROUP], scope="own")
  # The third has one vote for 5 and one missing: label 5, confidence one half, answer missing.
  assert [vote.label for vote in found.votes] == [5, 7, 5, 5]
  assert found.reward.tolist() == [1, 1, 0, 1]
  [strict] = _score([GROUP], scope="own", confidence=0.6)
  assert strict.valid.tolist() == [True, True, False, True]


def test_soft_reward_is_the_share_of_votes():
  [found] = _score([GROUP], kind="soft")
  assert found.reward.tolist() == [0.625, 0.25, 0.0, 0.625]


def test_confidence_gate_and_missing_label_teach_nothing():
  [found] = _score([GROUP], confidence=0.7)
  assert not found.valid.any()
  assert not found.agreement.any()
  tied = [Scored(5, (5,), True, True, True, 1), Scored(7, (7,), True, True, True, 1)]
  missing = [Scored(5, (None,), True, True, True, 1)] * 2
  assert not any(one.valid.any() for one in _score([tied, missing]))


def test_gate_multiplies_by_format_and_language():
  [found] = _score([GROUP], gate=True)
  assert found.reward.tolist() == [1, 0, 0, 0]  # the last one reasons in another language
  broken = [dataclasses.replace(GROUP[0], well_formed=False), *GROUP[1:]]
  [found] = _score([broken], gate=True)
  assert found.reward.tolist() == [0, 0, 0, 0]


def test_a_translation_is_not_gated_by_its_reasoning():
  silent = dataclasses.replace(GROUP[0], answer=None, reasoning_consistent=False)
  foreign = dataclasses.replace(GROUP[0], translation_consistent=False)
  [found] = _score([[GROUP[0], silent, foreign, GROUP[1]]], gate=True)
  assert found.reward.tolist() == [1, 0, 0, 0]
  assert found.understanding.tolist() == [1, 1, 0, 0]
  assert found.translation_valid.all()


def test_what_has_no_translation_is_worse_than_what_agrees_by_its_own_vote():
  malformed = Scored(5, (), False, True, False, 1)
  tied = Scored(5, (5, 7), True, True, True, 1)
  [found] = _score([[GROUP[0], malformed, tied]], scope="own", gate=True)
  assert found.labelled.tolist() == [True, False, False]
  assert found.valid.tolist() == [True, True, False]
  assert found.translation_valid.tolist() == [True, False, False]  # it has none
  assert found.reward.tolist()[:2] == [1, 0]
  [found] = _score([[malformed, tied]], scope="own", gate=True)
  assert not found.valid.any()


def test_translations_are_taught_by_a_confident_pooled_vote_alone():
  """Each own vote is unanimous; together they are half and half."""
  group = [Scored(n, (n, n), True, True, True, 1) for n in (5, 5, 7, 9)]
  [found] = _score([group], scope="own", confidence=0.9)
  assert found.valid.all()
  assert not found.translation_valid.any()
  assert _score([group], scope="own", confidence=0.5)[0].translation_valid.all()


def test_small_terms_add_up():
  [found] = _score([GROUP], format_weight=0.5, language_weight=0.2, length_weight=0.1)
  expected = [1 + 0.5 + 0.2 - 0.01, 0.5 + 0.2 - 0.02, 0.2 - 0.03, 1 + 0.5 + 0.1 - 0.04]
  np.testing.assert_allclose(found.reward, expected, rtol=1e-6)


def test_gold_reads_the_gold_answer_and_nothing_else():
  [found] = _score([GROUP], golds=[7], source="gold")
  assert found.reward.tolist() == [0, 1, 0, 0]
  assert found.understanding.tolist() == [0, 1, 0, 0]
  with pytest.raises(ValueError, match="no readable answer"):
    _score([GROUP], source="gold")


def test_target_majority_ignores_pivot_answers():
  group = [dataclasses.replace(one, pivot_answers=(7, 7)) for one in GROUP]
  [found] = _score([group], source="target_majority")
  assert found.votes[0].label == 5
  assert found.votes[0].confidence == 0.5
  assert found.reward.tolist() == [1, 0, 0, 1]


def test_shuffled_uses_the_next_questions_votes():
  other = [Scored(7, (7, 7), True, True, True, 1)] * 4
  first, second = _score([GROUP, other], source="shuffled")
  assert first.reward.tolist() == [0, 1, 0, 0]
  assert second.reward.tolist() == [0, 0, 0, 0]
  assert first.pooled.label == 5  # what is reported stays its own


def test_shuffled_passes_over_the_same_problem_in_another_language():
  groups = [[Scored(n, (n, n), True, True, True, 1)] * 4 for n in (5, 5, 7, 9)]
  found = _score(groups, ids=["a", "a", "b", "c"], source="shuffled")
  assert [one.votes[0].label for one in found] == [7, 7, 9, 5]
  assert not np.concatenate([one.reward for one in found]).any()
  found = _score(groups[:2], ids=["a", "a"], source="shuffled")  # there is no other
  assert [one.votes[0].label for one in found] == [5, 5]


def test_shuffled_needs_another_question():
  with pytest.raises(ValueError, match="'shuffled'; expected two questions or more, found one"):
    _score([GROUP], source="shuffled")


def test_random_depends_on_the_seed_only():
  once, again = _score([GROUP] * 4, source="random"), _score([GROUP] * 4, source="random")
  other = _score([GROUP] * 4, source="random", seed=1)
  same = [(a.reward == b.reward).all() for a, b in zip(once, again, strict=True)]
  assert all(same)
  assert any((a.reward != b.reward).any() for a, b in zip(once, other, strict=True))
  assert all(one.valid.all() and not one.labelled.any() for one in once)


def test_pivot_answers_are_needed_only_by_what_reads_them():
  def needed_by(credit, weight):
    return {
      source for source in rewards.SOURCES if rewards.needs_pivot_answers(source, credit, weight)
    }

  assert needed_by("all", 1.0) == {"pivot", "shuffled"}
  # Translations are taught by how many of their answers are the label; a coin asks for none.
  assert needed_by("split", 1.0) == {"pivot", "shuffled", "gold", "target_majority"}
  assert needed_by("split", 0.0) == {"pivot", "shuffled"}


@pytest.mark.parametrize(
  ("question", "translation", "recall"),
  [
    ("Anna hat 12 und 7", "Anna has 12 and 7", 1.0),
    ("Anna hat 12 und 7", "Anna has 12", 0.5),
    ("১২টি ৭টি", "12 and 7", 1.0),
    ("7 und 7", "7", 0.5),
    ("keine Zahl", "", 1.0),
    ("12", "", 0.0),
  ],
)
def test_number_recall(question, translation, recall):
  assert rewards.number_recall(question, translation) == recall
