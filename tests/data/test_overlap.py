"""Questions of one pool among those of another."""

import unicodedata

from pasmr_jax.data.overlap import normalized, shared
from pasmr_jax.data.questions import Question


def test_a_question_is_found_by_its_text_or_its_original():
  learned = [
    Question("a", "de", "Anna hat 7 Äpfel.", pivot_text="Anna has 7 apples."),
    Question("b", "de", "Anna hat 8 Äpfel."),
    Question("c", "en", "Anna has 9 apples."),
  ]
  asked = [
    Question("x", "en", "ANNA has ７ apples"),  # as another spells it, and wider
    Question("y", "sw", "Anna ana matofaa 9", pivot_text="anna has 9 apples"),
    Question("z", "de", "Anna hat 80 Äpfel."),
  ]
  found = shared({"triplets": learned, "test": asked}, ["test"])
  assert {pools: [one.id for one in some] for pools, some in found.items()} == {
    ("triplets", "test"): ["a", "c"]
  }
  assert not shared({"triplets": learned, "test": asked[2:]}, ["test"])


def test_vowels_that_are_marks_tell_words_apart():
  for one, other in (("তিনি", "তানা"), ("తిను", "తాను"), ("ไก่", "ไก้")):
    assert normalized(one) != normalized(other)
    assert normalized(one) == normalized(unicodedata.normalize("NFD", one))
