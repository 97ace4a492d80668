"""Packed rows: nothing is lost, microbatches fill one after the other, and little is padding."""

import jax
import numpy as np
import pytest

from configs import base, pasmr_gemma, study_gemma3_270m, tiny
from pasmr_jax.data import pools, synthetic
from pasmr_jax.learning.losses import PolicyBatch, Sequences
from pasmr_jax.learning.update import _split
from pasmr_jax.stages.packing import lay_out, most_rows, pack
from pasmr_jax.stages.supervised import examples
from pasmr_jax.text.tokenizer import load_tokenizer


def _responses(lengths, length):
  """One response a row; its tokens and numbers name it and their places."""
  rows, places = np.arange(len(lengths))[:, None], np.arange(length)
  inside = places < np.array(lengths)[:, None]
  named = np.where(inside, 1000 * (rows + 1) + places, 0)
  numbers = [(sign * named).astype(np.float32) for sign in (0.5, -1.0, 2.0)]
  sequences = Sequences(
    named.astype(np.int32), np.where(inside, places, 0), inside.astype(np.int32), numbers[0]
  )
  return PolicyBatch(sequences, numbers[1], numbers[2], None, None)


def _srl(limit, **changes):
  """Settings under which prompt and response together have at most `limit` tokens."""
  srl = base.get_config().srl
  srl.max_prompt_length, srl.max_new_tokens = limit // 2, limit - limit // 2
  srl.update(changes)
  return srl


def _share(srl, lengths):
  """The padded share of an update of responses of such lengths, prompts included."""
  return 1 - sum(lengths) / lay_out(lengths, srl, len(lengths)).places


@pytest.mark.parametrize("microbatches", [1, 2, 6])
def test_every_response_is_whole_in_a_segment_of_its_own(microbatches):
  lengths = [5, 9, 12, 3, 7, 12, 4, 1]
  srl = _srl(12, row_bucket=6, microbatches=microbatches)
  packed, layout = pack(_responses(lengths, 12), srl)
  assert len(layout.rows) == 5
  assert packed.advantages.shape == (12, 12)
  found = {}
  for row in range(12):
    for segment in range(1, packed.sequences.segment_ids[row].max() + 1):
      (there,) = np.nonzero(packed.sequences.segment_ids[row] == segment)
      name, first = divmod(int(packed.sequences.tokens[row, there[0]]), 1000)
      named = 1000 * name + np.arange(len(there))
      assert first == 0
      np.testing.assert_array_equal(packed.sequences.tokens[row, there], named)
      np.testing.assert_array_equal(packed.sequences.positions[row, there], np.arange(len(there)))
      np.testing.assert_array_equal(packed.sequences.weights[row, there], 0.5 * named)
      np.testing.assert_array_equal(packed.advantages[row, there], -1.0 * named)
      np.testing.assert_array_equal(packed.sampler_logprobs[row, there], 2.0 * named)
      found[name - 1] = len(there)
  assert found == dict(enumerate(lengths))
  for leaf in jax.tree.leaves(packed):
    assert not leaf[packed.sequences.segment_ids == 0].any()


def test_microbatches_are_filled_one_after_the_other():
  """As the update takes them apart: five rows in microbatches of two, of which there are four."""
  packed, layout = pack(_responses([8] * 5, 8), _srl(8, row_bucket=4, microbatches=2))
  taken = np.asarray(_split(packed, 4).sequences.segment_ids)
  assert taken.any(axis=2).tolist() == [[True, True], [True, True], [True, False], [False, False]]
  assert layout.places == 3 * 2 * 8
  at_once = lay_out([8] * 5, _srl(8, row_bucket=8, microbatches=1), 5)
  assert at_once.places == 8 * 8


@pytest.mark.parametrize("length", [10, 15, 20, 35])
def test_there_is_room_for_responses_at_their_limit(length):
  """And for any others: lengths just above what would let one more into a row."""
  srl = _srl(10, row_bucket=1, row_length=length)
  assert most_rows(srl, length, 7) == -(-7 // (length // 10))
  rng = np.random.default_rng(0)
  for lengths in ([10] * 7, [6] * 7, [10, 6, 6, 6, 4, 4, 4], *rng.integers(1, 11, (200, 7))):
    layout = lay_out([int(one) for one in lengths], srl, 7)
    assert len(layout.rows) <= layout.room


def test_of_several_lengths_the_one_with_least_padding_is_taken():
  srl = _srl(10, row_bucket=1, row_length=12, longer_rows=(14, 16))
  chosen = [lay_out(lengths, srl, 6).length for lengths in ([6] * 6, [7] * 6, [8] * 6, [4] * 6)]
  assert chosen == [12, 14, 16, 12]
  # None is chosen that is not longer.
  shorter = _srl(10, row_bucket=1, row_length=14, longer_rows=(12, 14))
  assert lay_out([6] * 6, shorter, 6).length == 14
  packed, _ = pack(_responses([7] * 6, 10), srl)
  assert packed.sequences.segment_ids.tolist() == [[1] * 7 + [2] * 7] * 3 + [[0] * 14] * 3


def test_a_tenth_of_the_demos_update_is_padding(tmp_path):
  """Responses as long as the built-in corpus' own, which the policy has learned to write."""
  config = tiny.get_config()
  config.data.triplets = ("synthetic:300",)
  synthetic.train_tokenizer(tmp_path / "tokenizer.model")
  tokenizer = load_tokenizer(str(tmp_path / "tokenizer.model"), "<pivot>", "</pivot>")
  taught = examples("triplets", pools.read_pool("triplets", config), tokenizer, config.prompt)
  rng = np.random.default_rng(0)
  shares = [
    _share(config.srl, rng.choice([len(one) for one in taught], config.srl.update_rows).tolist())
    for _ in range(50)
  ]
  assert np.mean(shares) < 0.1


@pytest.mark.parametrize(
  ("config", "mean"),
  [
    (pasmr_gemma.get_config("1b"), 169),  # GSM8K's own, in Gemma's tokens
    (pasmr_gemma.get_config("1b"), 300),
    (study_gemma3_270m.get_config(), 170),
    (study_gemma3_270m.get_config(), 350),
  ],
  ids=["1b, 169", "1b, 300", "study, 170", "study, 350"],
)
@pytest.mark.parametrize("spread", [0.2, 0.35, 0.5])
def test_a_tenth_of_a_large_update_is_padding(config, mean, spread):
  srl = config.srl
  limit = srl.max_prompt_length + srl.max_new_tokens
  rng = np.random.default_rng(0)
  shares = []
  for _ in range(20):
    drawn = rng.lognormal(np.log(mean), spread, srl.questions * srl.group_size)
    shares.append(_share(srl, np.clip(drawn, 60, limit).astype(int).tolist()))
  assert np.mean(shares) < 0.1


def test_responses_that_teach_nothing_take_no_place():
  responses = _responses([8, 5, 8, 3], 8)
  responses.sequences.weights[[0, 2]] = 0
  srl = _srl(8, row_bucket=4, microbatches=2)
  packed, layout = pack(responses, srl)
  assert packed.sequences.tokens[packed.sequences.segment_ids > 0].tolist() == [
    *range(2000, 2005),
    *range(4000, 4003),
  ]
  assert (packed.advantages.shape, layout.places) == ((4, 8), 2 * 8)
  responses.sequences.weights[:] = 0
  packed, _ = pack(responses, srl)
  assert packed.advantages.shape == (4, 8)
  assert not packed.sequences.segment_ids.any()
