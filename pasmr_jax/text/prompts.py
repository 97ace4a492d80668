"""What the model reads and writes, as token ids.

    prompt      bos + the question inside the template (or in the turn of a chat)
    response    open + translation + close + reasoning + eos      a target-language question
                reasoning + eos                                   a pivot-language question

Each part is encoded on its own, so the ids of a response are known before they are joined and
`split_response(response(a, b))` gives back `a` and `b` to the character. A sampled response is cut
by the same rules; what breaks the format is kept whole, marked as not well formed.
"""

import dataclasses
import itertools
import string
from collections.abc import Sequence

from pasmr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
  """A response cut at its delimiters."""

  translation: str | None  # the question in the pivot language; None unless well formed
  reasoning: str  # what follows the close delimiter; the whole text unless well formed
  well_formed: bool  # open, translation, close, reasoning, stop token: each once and in order
  truncated: bool  # it ran into a limit: no stop token ends it
  reasoning_start: int  # index of the first reasoning token in the ids; 0 unless well formed


def question_prompt(tokenizer: Tokenizer, template: str, question_text: str) -> list[int]:
  """Token ids of bos and the question inside the template, or of a chat that asks it.

  Control tokens named by the template (`"<start_of_turn>user\\n{question}..."`) are set as such;
  the same names inside the question are plain text. With a tokenizer that has a `turn` (chat.py)
  the template's text, without outer spaces, is the user's message, and bos is where the chat
  template has it.

  Args:
    template: text with the one field `{question}`; literal braces are doubled.

  Raises ValueError if the template is not of that form or the question is blank.
  """
  before, after = _template_parts(template)
  if not question_text.strip():
    raise ValueError("question_prompt: the question is blank, expected text")
  ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  if tokenizer.turn is not None:
    opening, closing = tokenizer.turn
    before, after = opening + before.lstrip(), after.rstrip() + closing
    question_text, ids = question_text.strip(), []
  head, tail = tokenizer.split_controls(before), tokenizer.split_controls(after)
  # Question and neighbouring template text are encoded as one text: tokens may span the seam.
  parts = [*head[:-1], f"{head[-1]}{question_text}{tail[0]}", *tail[1:]]
  for part in parts:
    ids += [part] if isinstance(part, int) else tokenizer.encode(part)
  return ids


def _template_parts(template: str) -> tuple[str, str]:
  """Text before and after `{question}`."""
  expected = "expected text with exactly one field, {question}"
  try:
    parsed = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f"prompt.question: {template!r}: {error}; {expected}") from error
  texts, found = [""], 0
  for literal, field, form, conversion in parsed:
    texts[-1] += literal
    if field is None:
      continue
    if field != "question" or form or conversion or found:
      raise ValueError(f"prompt.question: {template!r} has a field {{{field}}}; {expected}")
    found += 1
    texts.append("")
  if not found:
    raise ValueError(f"prompt.question: {template!r} has no field; {expected}")
  return texts[0], texts[1]


def response(tokenizer: Tokenizer, translation: str | None, solution: str) -> list[int]:
  """Token ids of a whole response, end-of-sequence included.

  Args:
    translation: the question in the pivot language; None where the question already is.
    solution: reasoning that ends in its final answer.

  Raises ValueError if a part is blank, or contains a delimiter that is a literal tag: the response
  could not be cut again. (A delimiter that is a token of its own cannot come from text.)
  """
  for name, part in (("translation", translation), ("solution", solution)):
    if part is None:
      continue
    if not part.strip():
      raise ValueError(f"response: the {name} is blank, expected text")
    for delimiter in (tokenizer.open_delimiter, tokenizer.close_delimiter):
      if not tokenizer.single_token_delimiters and delimiter in part:
        raise ValueError(f"response: the {name} contains the delimiter {delimiter!r}: {part!r}")
  reasoning = [*tokenizer.encode(solution), tokenizer.eos_id]
  if translation is None:
    return reasoning
  return [*tokenizer.open_ids, *tokenizer.encode(translation), *tokenizer.close_ids, *reasoning]


def split_response(tokenizer: Tokenizer, ids: Sequence[int], truncated: bool) -> Response:
  """Cuts sampled token ids into translation and reasoning.

  Well formed is: the open delimiter first, a translation that is not blank, the close delimiter,
  reasoning that is not blank, a stop token last; each delimiter once, no other stop token.

  Args:
    ids: tokens of one response, with its final stop token if it has one, without padding.
    truncated: whether sampling stopped at a limit. A response without a final stop token counts as
      truncated whatever is said here.
  """
  ids = [int(token) for token in ids]
  ended = bool(ids) and ids[-1] in tokenizer.stop_ids
  body = ids[:-1] if ended else ids
  truncated = truncated or not ended

  if not truncated and not any(token in tokenizer.stop_ids for token in body):
    cut = _cut_tokens if tokenizer.single_token_delimiters else _cut_text
    parts = cut(tokenizer, body)
    if parts is not None:
      translation, reasoning, reasoning_start = parts
      if translation.strip() and reasoning.strip():
        return Response(translation, reasoning, True, False, reasoning_start)
  return Response(None, tokenizer.decode(body), False, truncated, 0)


def finished_translation(tokenizer: Tokenizer, ids: Sequence[int]) -> str | None:
  """The translation of a response that is still being written, once it is closed.

  It is what `split_response` will find if what follows is well formed; None if it is not closed
  yet, or cannot be well formed any more.
  """
  cut = _cut_tokens if tokenizer.single_token_delimiters else _cut_text
  parts = cut(tokenizer, list(ids))
  return parts[0] if parts is not None and parts[0].strip() else None


def _cut_tokens(tokenizer: Tokenizer, body: list[int]) -> tuple[str, str, int] | None:
  opening, closing = tokenizer.open_ids[0], tokenizer.close_ids[0]
  if body[:1] != [opening] or body.count(opening) != 1 or body.count(closing) != 1:
    return None
  close = body.index(closing)
  return tokenizer.decode(body[1:close]), tokenizer.decode(body[close + 1 :]), close + 1


def _cut_text(tokenizer: Tokenizer, body: list[int]) -> tuple[str, str, int] | None:
  """Cuts at literal tags, which a sampled response may spell with other tokens than ours."""
  text, opening, closing = (
    tokenizer.decode(body),
    tokenizer.open_delimiter,
    tokenizer.close_delimiter,
  )
  if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
    return None
  translation, reasoning = text[len(opening) :].split(closing)
  # The tokens up to the one with the tag's end. If it holds the first characters of the reasoning
  # too, it belongs to the tag.
  ends = itertools.accumulate(len(piece) for piece in tokenizer.pieces(body))
  tag = len(text) - len(reasoning)
  start = next(number for number, end in enumerate(ends, 1) if end >= tag)
  return translation, reasoning, start
