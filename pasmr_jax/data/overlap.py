"""Questions of one pool among those of another, by their text."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence

from pasmr_jax.data.questions import Question


def normalized(text: str) -> str:
  """Letters with their marks and digits only, without case, accents' spelling or width."""
  folded = unicodedata.normalize("NFKC", text).casefold()
  # Vowels of Bengali, Telugu and Thai are marks.
  return "".join(c for c in folded if c.isalnum() or unicodedata.category(c)[0] == "M")


def keys(question: Question) -> set[str]:
  """What it says in its own language and, where that is known, in the pivot, to be compared."""
  texts = (question.text, question.pivot_text)
  return {normalized(text) for text in texts if text is not None}


def shared(
  pools: Mapping[str, Sequence[Question]], measures: Collection[str]
) -> dict[tuple[str, str], list[Question]]:
  """(pool, measure) -> questions of the pool that the measure has too, where there are any."""
  found = {name: [keys(question) for question in pool] for name, pool in pools.items()}
  both = {}
  for measure in measures:
    known = set[str]().union(*found[measure])
    for name in (name for name in pools if name not in measures):
      told = [one for one, own in zip(pools[name], found[name], strict=True) if own & known]
      if told:
        both[name, measure] = told
  return both
