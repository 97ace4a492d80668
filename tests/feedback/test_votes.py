"""Votes by hand: ties, missing answers, all missing."""

import math

import pytest

from pasmr_jax.feedback.votes import Vote, count_votes, entropy, settled


@pytest.mark.parametrize(
  ("answers", "label", "confidence"),
  [
    ([12, 12, 7, None], 12, 0.5),  # a missing answer is a vote cast
    ([12, 12, 7, 7], None, 0.5),  # a tie has no label
    ([12, 7, 5], None, 1 / 3),
    ([None, None, None], None, 0.0),  # missing never agrees, not even with missing
    ([None, None, 3], 3, 1 / 3),  # two missing do not outvote one answer
    ([], None, 0.0),
    ([5], 5, 1.0),
  ],
)
def test_label_and_confidence(answers, label, confidence):
  vote = count_votes(answers)
  assert vote.label == label
  assert vote.confidence == pytest.approx(confidence)


def test_share_of_an_answer_and_of_none():
  vote = count_votes([1, 1, 2, None])
  assert [vote.share(x) for x in (1, 2, 3, None)] == [0.5, 0.25, 0.0, 0.0]


def test_settled_is_a_unanimous_vote():
  assert settled(9) == Vote(9, 1.0, {9: 1.0})


def test_entropy():
  assert entropy([1, 1, 1]) == 0
  assert entropy([1, 2]) == pytest.approx(math.log(2))
  assert entropy([1, None]) == pytest.approx(math.log(2))
