"""Questions of one pool among those of another, by their text."""

import unicodedata
from collections.abc import Iterable, Sequence

from pasmr_jax.data.questions import Question


def normalized(text: str) -> str:
  """Letters and digits only, without case, accents' spelling or width."""
  folded = unicodedata.normalize("NFKC", text).casefold()
  return "".join(character for character in folded if character.isalnum())


def texts(question: Question) -> Iterable[str]:
  """What it says in its own language and, where that is known, in the pivot."""
  return (text for text in (question.text, question.pivot_text) if text is not None)


def shared(questions: Sequence[Question], others: Iterable[Question]) -> list[Question]:
  """Those of `questions` of which a text is one of the others', in their order."""
  known = {normalized(text) for question in others for text in texts(question)}
  return [
    question for question in questions if any(normalized(text) in known for text in texts(question))
  ]
