"""Batches: every example intact, exact resumption, independence of pools and of process count."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasmr_jax.data.batches import (
  Example,
  best_fit,
  fit_examples,
  padding_share,
  question_iterator,
  supervised_iterator,
)
from pasmr_jax.data.questions import Question

QUESTIONS = [Question(f"q{number}", "de", f"Frage {number}?") for number in range(7)]


def make_examples(count, tag, seed=0, longest=9):
  """Examples whose tokens name their pool, number and place: tag * 10**6 + number * 100 + place."""
  rng = np.random.default_rng(seed)
  examples = []
  for number in range(count):
    prompt, response = rng.integers(1, longest, 2)
    ids = tuple(tag * 10**6 + number * 100 + place for place in range(prompt + response))
    examples.append(Example(ids[:prompt], ids[prompt:]))
  return examples


def unpack(batch):
  """The examples of a batch in the order of rows and segments, as (prompt, response) ids."""
  found = []
  for row in range(len(batch.tokens)):
    for segment in range(1, batch.segment_ids[row].max() + 1):
      (places,) = np.nonzero(batch.segment_ids[row] == segment)
      assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
      assert np.array_equal(batch.positions[row, places], np.arange(len(places)))
      tokens, mask = batch.tokens[row, places], batch.loss_mask[row, places]
      found.append(Example(tuple(tokens[mask == 0].tolist()), tuple(tokens[mask == 1].tolist())))
  return found


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def ids(batches):
  return [[question.id for question in batch] for batch in batches]


def join(batches):
  return list(itertools.chain.from_iterable(batches))


# ---- Questions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_each_question_once_an_epoch_in_a_new_order(size):
  flat = join(ids(take(question_iterator(QUESTIONS, size, seed=3), 28 // size)))
  epochs = [flat[start : start + 7] for start in range(0, 28, 7)]
  assert all(sorted(epoch) == [q.id for q in QUESTIONS] for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_question_seeds():
  first, again, other = (
    ids(take(question_iterator(QUESTIONS, 7, seed=seed), 5)) for seed in (0, 0, 1)
  )
  assert first == again
  # Neighbouring seeds do not share epochs, shifted or not.
  assert not {tuple(epoch) for epoch in first} & {tuple(epoch) for epoch in other}


def test_batch_larger_than_the_pool():
  (batch,) = take(question_iterator(QUESTIONS, 16, seed=0), 1)
  assert len(batch) == 16
  assert {question.text for question in batch} == {question.text for question in QUESTIONS}
  # What is there again has an id of its own, as its samples are drawn by it.
  names = [question.id for question in batch]
  assert len(set(names)) == 16
  assert sum(name.endswith("/2") for name in names) == 7
  assert sum(name.endswith("/3") for name in names) == 2
  shares = [take(question_iterator(QUESTIONS, 16, 0, index, 4), 1)[0] for index in range(4)]
  assert join(shares) == batch


def test_two_questions_of_one_id_are_told_apart():
  """As of two files that count their questions: a sample is drawn by its question's id."""
  pool = [Question("000001", "de", "Wie viele?"), Question("000001", "de", "Wie lange?")]
  (batch,) = take(question_iterator(pool, 2, seed=0), 1)
  assert {question.text for question in batch} == {question.text for question in pool}
  assert ids([batch]) == [["000001", "000001/2"]]


def test_processes_share_a_question_batch():
  whole = ids(take(question_iterator(QUESTIONS, 4, seed=5), 6))
  for count in (1, 2, 4):
    shares = [
      ids(take(question_iterator(QUESTIONS, 4, 5, index, count), 6)) for index in range(count)
    ]
    assert all(len(batch) == 4 // count for share in shares for batch in share)
    assert [join(parts) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 11])
def test_questions_resume(cut):
  expected = ids(take(question_iterator(QUESTIONS, 3, seed=1), 16))[cut:]
  stopped = question_iterator(QUESTIONS, 3, seed=1)
  take(stopped, cut)
  state = json.loads(json.dumps(stopped.get_state()))
  resumed = question_iterator(QUESTIONS, 3, seed=1)
  resumed.set_state(state)
  assert ids(take(resumed, 16 - cut)) == expected
  # Taking the state changed nothing.
  assert ids(take(stopped, 16 - cut)) == expected
  # An iterator in the middle of another place goes where the state says, too.
  resumed.set_state(state)
  assert ids(take(resumed, 16 - cut)) == expected


def test_question_errors():
  with pytest.raises(ValueError, match="batch_size is 6, expected a positive multiple of the 4"):
    question_iterator(QUESTIONS, 6, 0, 0, 4)
  with pytest.raises(ValueError, match=r"^srl.questions is 6, expected a positive multiple"):
    question_iterator(QUESTIONS, 6, 0, 0, 4, key="srl.questions")
  with pytest.raises(ValueError, match="batch_size is 0"):
    question_iterator(QUESTIONS, 0, 0)
  with pytest.raises(ValueError, match="process_index is 2, expected 0 to 1"):
    question_iterator(QUESTIONS, 4, 0, 2, 2)
  with pytest.raises(ValueError, match="found no question"):
    question_iterator([], 4, 0)


# ---- Packed examples ---------------------------------------------------------------------------


def test_packing_by_hand():
  """One pool of one example, so that the stream is known: two fit a row of 7."""
  example = Example((5, 6), (7, 1))
  batch = next(supervised_iterator([([Example((5,), (7, 1))], 1.0)], 2, 7, seed=0))
  assert batch.tokens.tolist() == [[5, 7, 1, 5, 7, 1, 0]] * 2
  assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2
  assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 0]] * 2
  assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 1, 1, 0]] * 2
  assert padding_share(batch) == 1 / 7
  dtypes = [batch.tokens.dtype, batch.positions.dtype, batch.segment_ids.dtype]
  assert dtypes == [np.int32] * 3
  assert batch.loss_mask.dtype == np.float32
  batch = next(supervised_iterator([([example], 1.0)], 1, 4, seed=0))
  assert (batch.tokens.tolist(), batch.loss_mask.tolist()) == ([[5, 6, 7, 1]], [[0, 0, 1, 1]])
  assert padding_share(batch) == 0


def test_first_token_is_never_learned():
  batch = next(supervised_iterator([([Example((), (7, 8, 1))], 1.0)], 1, 6, seed=0))
  assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 1, 1]]


@given(
  count=st.integers(1, 30),
  batch_size=st.integers(1, 5),
  max_length=st.integers(16, 40),
  seed=st.integers(0, 2**32),
)
def test_every_example_appears_intact(count, batch_size, max_length, seed):
  """What the batches hold is the stream, each example whole; all but the waiting few in order."""
  examples = make_examples(count, tag=1)
  iterator = supervised_iterator([(examples, 1.0)], batch_size, max_length, seed)
  packed = [example for batch in take(iterator, 12) for example in unpack(batch)]
  state = iterator.get_state()
  assert state["position"] == len(packed) + len(state["waiting"])
  assert len(state["waiting"]) <= batch_size
  # Every whole epoch but for those that wait: each example as often as any other.
  counts = dict.fromkeys(examples, 0)
  for example in packed:
    counts[example] += 1  # a KeyError is an example that was changed
  epochs = state["position"] // count
  assert sum(counts.values()) == len(packed)
  assert min(counts.values()) >= epochs - len(state["waiting"])
  assert max(counts.values()) <= epochs + 1


def test_padding_is_small_and_padded_places_are_zero():
  examples = make_examples(200, tag=1, longest=30)
  batches = take(supervised_iterator([(examples, 1.0)], 8, 128, seed=0), 20)
  assert np.mean([padding_share(batch) for batch in batches]) < 0.06
  for batch in batches:
    empty = batch.segment_ids == 0
    assert padding_share(batch) == np.count_nonzero(empty) / empty.size
    for values in (batch.tokens, batch.positions, batch.loss_mask):
      assert not values[empty].any()


def test_pools_mix_by_weight():
  small, large = make_examples(10, tag=1), make_examples(300, tag=2)
  iterator = supervised_iterator([(small, 3.0), (large, 2.0)], 4, 64, seed=0)
  packed = [example for batch in take(iterator, 40) for example in unpack(batch)]
  share = np.mean([example in small for example in packed])
  assert share == pytest.approx(0.6, abs=0.01)


def test_a_pool_keeps_its_order_when_another_changes():
  rehearsal = make_examples(25, tag=2)

  def order(other):
    iterator = supervised_iterator([(other, 0.5), (rehearsal, 0.5)], 1, 16, seed=4)
    packed = [example for batch in take(iterator, 120) for example in unpack(batch)]
    return [example for example in packed if example in rehearsal][:50]

  # Rows of one example and one that waits: neighbours may swap, so compare by epoch.
  first, second = order(make_examples(5, tag=1)), order(make_examples(40, tag=1, seed=9))
  displaced = [abs(first.index(example) - second.index(example)) for example in rehearsal]
  assert max(displaced) <= 2
  assert first[:25] != rehearsal


def test_pools_of_equal_size_are_shuffled_differently():
  pools = [(make_examples(20, tag, longest=2), 1.0) for tag in (1, 2)]
  packed = unpack(next(supervised_iterator(pools, 1, 80, seed=0)))
  numbers = [
    [example.prompt_ids[0] % 10**6 for example in packed if example.prompt_ids[0] // 10**6 == tag]
    for tag in (1, 2)
  ]
  assert sorted(numbers[0]) == sorted(numbers[1])
  assert numbers[0] != numbers[1]


def test_processes_share_a_supervised_batch():
  pools = [(make_examples(30, tag=1), 1.0)]
  whole = take(supervised_iterator(pools, 4, 32, seed=2), 5)
  shares = [take(supervised_iterator(pools, 4, 32, 2, index, 2), 5) for index in range(2)]
  for name in ("tokens", "positions", "segment_ids", "loss_mask"):
    for step, batch in enumerate(whole):
      parts = [getattr(share[step], name) for share in shares]
      assert [part.shape for part in parts] == [(2, 32)] * 2
      assert np.array_equal(np.concatenate(parts), getattr(batch, name))


POOLS = [(make_examples(11, tag=1, longest=14), 0.6), (make_examples(8, tag=2, longest=14), 0.4)]


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 13])
def test_supervised_resume(cut):
  expected = take(supervised_iterator(POOLS, 3, 29, seed=1), 18)[cut:]
  stopped = supervised_iterator(POOLS, 3, 29, seed=1)
  take(stopped, cut)
  state = json.loads(json.dumps(stopped.get_state()))
  resumed = supervised_iterator(POOLS, 3, 29, seed=1)
  resumed.set_state(state)
  assert take(resumed, 18 - cut) == expected
  assert take(stopped, 18 - cut) == expected
  resumed.set_state(state)
  assert take(resumed, 18 - cut) == expected


def test_some_state_has_examples_that_wait():
  """Else the test above would not show that they are kept."""
  iterator = supervised_iterator(POOLS, 3, 29, seed=1)
  waiting = [next(iterator) and iterator.get_state()["waiting"] for _ in range(6)]
  assert any(waiting)


RESUME_IN_A_FRESH_PROCESS = """
import json, sys
import numpy as np
from pasmr_jax.data.batches import Example, question_iterator, supervised_iterator
from pasmr_jax.data.questions import Question
given = json.load(sys.stdin)
questions = question_iterator([Question(*fields) for fields in given["questions"]], 3, 1)
questions.set_state(given["question_state"])
pools = [([Example(*map(tuple, e)) for e in pool], weight) for pool, weight in given["pools"]]
packed = supervised_iterator(pools, 3, 29, 1)
packed.set_state(given["packed_state"])
print(json.dumps({
  "questions": [[q.id for q in next(questions)] for _ in range(4)],
  "tokens": [next(packed).tokens.tolist() for _ in range(4)],
}))
"""


def test_resume_in_a_fresh_process():
  questions, packed = question_iterator(QUESTIONS, 3, 1), supervised_iterator(POOLS, 3, 29, 1)
  take(questions, 5)
  take(packed, 5)
  given = {
    "questions": [[q.id, q.language, q.text] for q in QUESTIONS],
    "question_state": questions.get_state(),
    "pools": [[[[e.prompt_ids, e.response_ids] for e in pool], weight] for pool, weight in POOLS],
    "packed_state": packed.get_state(),
  }
  finished = subprocess.run(
    [sys.executable, "-c", RESUME_IN_A_FRESH_PROCESS],
    input=json.dumps(given),
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(finished.stdout) == {
    "questions": ids(take(questions, 4)),
    "tokens": [batch.tokens.tolist() for batch in take(packed, 4)],
  }


def test_fit_examples():
  examples = [Example((1,) * 3, (2,) * 2), Example((1,) * 3, (2,) * 3), Example((), (2,))]
  assert fit_examples(examples, 5) == ([examples[0], examples[2]], 1)
  assert fit_examples(examples, 6) == (examples, 0)


def test_supervised_errors():
  pool = make_examples(3, tag=1)
  with pytest.raises(ValueError, match="found no pool"):
    supervised_iterator([], 2, 32, 0)
  with pytest.raises(ValueError, match="pool 1 is empty"):
    supervised_iterator([(pool, 1.0), ([], 1.0)], 2, 32, 0)
  for weight in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match=f"pool 0 has weight {weight}, expected above 0"):
      supervised_iterator([(pool, weight)], 2, 32, 0)
  with pytest.raises(ValueError, match="example of 33 tokens, expected at most max_length 32"):
    supervised_iterator([([Example((1,), (2,) * 32)], 1.0)], 2, 32, 0)
  with pytest.raises(ValueError, match="batch_size is 3, expected a positive multiple of the 2"):
    supervised_iterator([(pool, 1.0)], 3, 32, 0, 0, 2)
  with pytest.raises(ValueError, match=r"^pam.batch_size is 3, expected a positive multiple"):
    supervised_iterator([(pool, 1.0)], 3, 32, 0, 0, 2, key="pam.batch_size")
  with pytest.raises(ValueError, match="its response is empty"):
    Example((1, 2), ())


def test_best_fit_takes_the_longest_first_and_the_fullest_row_with_room():
  # 8, then 5, then 4 in a new row, 3 beside 5, 2 and 1 beside 4.
  assert best_fit([5, 4, 3, 2, 8, 1], 8) == [[0, 2], [1, 3, 5], [4]]
  # In order 4 and 4 would share the first row, and 6, 6, 6 would leave two places each.
  assert best_fit([4, 4, 6, 6, 2, 2], 8) == [[0, 1], [2, 4], [3, 5]]
  assert best_fit([], 8) == []
  with pytest.raises(ValueError, match="item 1 has 9 tokens, expected at most 8"):
    best_fit([3, 9], 8)


@given(
  lengths=st.lists(st.integers(1, 20), max_size=60),
  room=st.integers(20, 90),
)
def test_best_fit_places_every_item_once_and_leaves_few_rows_half_empty(lengths, room):
  rows = best_fit(lengths, room)
  assert sorted(join(rows)) == list(range(len(lengths)))
  assert all(sum(lengths[item] for item in row) <= room for row in rows)
  # All rows but one have more than would leave room for another of the longest.
  assert sum(sum(lengths[item] for item in row) <= room - 20 for row in rows) <= 1
  assert len(rows) <= -(-len(lengths) // (room // 20))
