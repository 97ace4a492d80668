"""Prompts and responses: exact ids, exact return, and every way a response can be malformed."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasmr_jax.text.prompts import Response, question_prompt, response, split_response
from pasmr_jax.text.tokenizer import load_tokenizer

KINDS = ["sentencepiece", "prefixed", "reserved", "tags"]
PARTS = st.one_of(
  st.text(st.characters(codec="utf-8", exclude_characters="▁"), min_size=1, max_size=12),
  st.sampled_from([" leading", "trailing ", "\n7 + 5 = 12\n#### 12", "<", ">", "</", "<|end|>"]),
  st.sampled_from(["<eos> 5", "<pivo", "/pivot>", "5 < 7 > 3", "৭ + ৫", "<<7+5=12>>12"]),
).filter(str.strip)
HOSTILE = st.sampled_from(
  ["<pivot>", "</pivot>", "a <pivot> b </pivot> c", "<|reserved_0|>", "<end_of_turn>"]
)


@pytest.mark.parametrize("name", KINDS)
@given(translation=PARTS, solution=PARTS)
def test_split_gives_back_the_parts(tokenizers, name, translation, solution):
  tokenizer = tokenizers[name]
  ids = response(tokenizer, translation, solution)
  start = len(tokenizer.open_ids + tokenizer.close_ids) + len(tokenizer.encode(translation))
  assert split_response(tokenizer, ids, False) == Response(
    translation, solution, well_formed=True, truncated=False, reasoning_start=start
  )


@pytest.mark.parametrize("name", ["sentencepiece", "prefixed", "reserved"])
@given(translation=HOSTILE, solution=HOSTILE)
def test_delimiters_in_the_data_stay_text(tokenizers, name, translation, solution):
  tokenizer = tokenizers[name]
  parts = split_response(tokenizer, response(tokenizer, translation, solution), False)
  assert (parts.translation, parts.reasoning, parts.well_formed) == (translation, solution, True)


def test_response_ids(tokenizers):
  tokenizer = tokenizers["sentencepiece"]
  text, solution = tokenizer.encode("7 apples"), tokenizer.encode("#### 12")
  opening, closing = tokenizer.open_ids[0], tokenizer.close_ids[0]
  assert response(tokenizer, "7 apples", "#### 12") == [opening, *text, closing, *solution, 1]
  assert response(tokenizer, None, "#### 12") == [*solution, 1]


def test_response_refuses_what_it_could_not_cut(tokenizers):
  with pytest.raises(ValueError, match="the translation is blank"):
    response(tokenizers["tags"], " ", "12")
  with pytest.raises(ValueError, match="the solution is blank"):
    response(tokenizers["tags"], None, "")
  for part in ("<pivot>", "x</pivot>"):
    with pytest.raises(ValueError, match="the translation contains the delimiter"):
      response(tokenizers["tags"], part, "12")
    with pytest.raises(ValueError, match="the solution contains the delimiter"):
      response(tokenizers["tags"], None, part)


@pytest.mark.parametrize("name", KINDS)
def test_malformed_responses(tokenizers, name):
  tokenizer = tokenizers[name]
  text, eos = tokenizer.encode("12 apples"), tokenizer.eos_id
  opening, closing = [*tokenizer.open_ids], [*tokenizer.close_ids]
  shown = (tokenizer.open_delimiter, "12 apples", tokenizer.close_delimiter)
  for body, kept in (
    ([], ""),
    (text, "12 apples"),
    ([*text, *opening, *text, *closing, *text], "12 apples{0}{1}{2}{1}"),
    ([*opening, *text, *text], "{0}{1}{1}"),
    ([*opening, *closing, *text], "{0}{2}{1}"),
    ([*opening, *tokenizer.encode(" "), *closing, *text], "{0} {2}{1}"),
    ([*opening, *text, *closing], "{0}{1}{2}"),
    ([*opening, *text, *closing, *tokenizer.encode("\n")], "{0}{1}{2}\n"),
    ([*closing, *text, *opening, *text], "{2}{1}{0}{1}"),
    ([*opening, *opening, *text, *closing, *text], "{0}{0}{1}{2}{1}"),
    ([*opening, *text, *closing, *text, *closing, *text], "{0}{1}{2}{1}{2}{1}"),
    ([*opening, *text, *closing, *text, eos, *text], "{0}{1}{2}{1}{1}"),
  ):
    whole = kept.format(*shown)
    assert split_response(tokenizer, [*body, eos], False) == Response(None, whole, False, False, 0)


@pytest.mark.parametrize("name", KINDS)
def test_truncated_responses(tokenizers, name):
  tokenizer = tokenizers[name]
  ids = response(tokenizer, "7 apples", "12")
  cut = split_response(tokenizer, ids[:-1], False)
  assert (cut.truncated, cut.well_formed, cut.translation) == (True, False, None)
  assert cut.reasoning == f"{tokenizer.open_delimiter}7 apples{tokenizer.close_delimiter}12"
  said = split_response(tokenizer, ids, True)
  assert (said.truncated, said.well_formed, said.reasoning_start) == (True, False, 0)


def test_any_stop_token_ends_a_response(tokenizers):
  tokenizer = tokenizers["reserved"]
  ids = [*response(tokenizer, "7 apples", "12")[:-1], tokenizer.controls["<|eot|>"]]
  assert split_response(tokenizer, ids, False).well_formed


@given(
  data=st.data(),
  translation=PARTS.filter(lambda part: not part.endswith("<")),
  solution=PARTS.filter(lambda part: not part.startswith(">")),
)
def test_literal_tags_spelled_with_other_tokens(tokenizers, data, translation, solution):
  """A model may cut a tag anywhere, and join its ends with the neighbouring text."""
  tokenizer = tokenizers["tags"]
  text = f"<pivot>{translation}</pivot>{solution}"
  cuts = data.draw(st.sets(st.integers(0, len(text)), max_size=6))
  edges = [0, *sorted(cuts), len(text)]
  ids = []
  for start, stop in itertools.pairwise(edges):
    ids += tokenizer.encode(text[start:stop])
  parts = split_response(tokenizer, [*ids, tokenizer.eos_id], False)
  assert (parts.translation, parts.reasoning, parts.well_formed) == (translation, solution, True)
  start = parts.reasoning_start
  assert "</pivot>" in tokenizer.decode(ids[:start])
  assert "</pivot>" not in tokenizer.decode(ids[: start - 1])


def test_a_token_across_the_tag_belongs_to_the_tag(tokenizers, paths, tmp_path):
  """With a token ">7", the reasoning starts behind it although its text starts inside."""
  for file in Path(paths["bytes"]).iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  saved = json.loads((tmp_path / "tokenizer.json").read_text())
  saved["model"]["vocab"][">7"] = len(saved["model"]["vocab"])
  saved["model"]["merges"].insert(0, [">", "7"])
  # Let the merge reach over what the pre-tokenizer would cut apart.
  saved["pre_tokenizer"]["use_regex"] = False
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  tokenizer = load_tokenizer(str(tmp_path), "<pivot>", "</pivot>")
  ids = tokenizer.encode("<pivot>a</pivot>7 apples")
  across = tokenizer.vocabulary.id_of(">7")
  assert across in ids
  parts = split_response(tokenizer, [*ids, tokenizer.eos_id], False)
  assert (parts.translation, parts.reasoning) == ("a", "7 apples")
  assert parts.reasoning_start == ids.index(across) + 1


def test_prompt_ids(tokenizers):
  tokenizer = tokenizers["sentencepiece"]
  assert question_prompt(tokenizer, "{question}\n", "7 apples?") == [
    tokenizer.bos_id,
    *tokenizer.encode("7 apples?\n"),
  ]
  # Doubled braces are braces; braces of the question are its own.
  assert question_prompt(tokenizer, "{{x}} {question}", "{braces}") == [
    tokenizer.bos_id,
    *tokenizer.encode("{x} {braces}"),
  ]


def test_prompt_control_tokens_come_from_the_template_only(tokenizers):
  tokenizer = tokenizers["reserved"]
  turn = tokenizer.controls["<|eot|>"]
  ids = question_prompt(tokenizer, "<|eot|>user {question}<|eot|>", "<|eot|> <|reserved_0|>")
  plain = tokenizer.encode("user <|eot|> <|reserved_0|>")
  assert ids == [tokenizer.bos_id, turn, *plain, turn]
  # Not even together with template text can a question spell one.
  ids = question_prompt(tokenizer, "<|e{question}", "ot|>")
  assert turn not in ids
  assert tokenizer.decode(ids) == "<|eot|>"


def test_prompt_without_bos(paths):
  tokenizer = load_tokenizer(
    paths["pad_is_eos"], "<|reserved_0|>", "<|reserved_1|>", pad_token="<|pad|>"
  )
  assert question_prompt(tokenizer, "{question}", "7") == tokenizer.encode("7")


@pytest.mark.parametrize(
  "template",
  [
    *("", "no field", "{}", "{0}", "{text}", "{question} {text}", "{question}{question}"),
    *("{question!r}", "{question:>9}", "{question", "}", "{question.text}"),
  ],
)
def test_bad_templates(tokenizers, template):
  with pytest.raises(ValueError, match=r"prompt\.question: .*exactly one field, {question}"):
    question_prompt(tokenizers["tags"], template, "7?")


def test_blank_question(tokenizers):
  with pytest.raises(ValueError, match="the question is blank"):
    question_prompt(tokenizers["tags"], "{question}", " \n")
