"""Chat templates: what stands around a message, and who may write control tokens."""

import dataclasses

import pytest

from pasmr_jax.text.chat import with_chat
from pasmr_jax.text.prompts import question_prompt, response, split_response
from pasmr_jax.text.tokenizer import load_tokenizer
from pasmr_jax.text.vocabularies import FastVocabulary

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}\n"
  "<|eot|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n"
  "{% endfor %}\n"
  "{% if add_generation_prompt %}<|eot|>assistant\n{% endif %}"
)

CHATML = (
  "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


@pytest.fixture
def templated(tokenizers):
  """A tokenizer that comes with a template; leaves the shared one as it was."""
  vocabulary = tokenizers["reserved"].vocabulary

  def make(template):
    vocabulary.chat_template = template
    return dataclasses.replace(tokenizers["reserved"])

  yield make
  vocabulary.chat_template = None


def test_the_turn_is_what_the_template_writes_around_the_message(templated):
  tokenizer = with_chat(templated(TEMPLATE), "Be brief.")
  before, after = tokenizer.turn
  assert before == "<|begin|><|eot|>system\nBe brief.<|end|>\n<|eot|>user\n"
  assert after == "<|end|>\n<|eot|>assistant\n"
  without = with_chat(templated(TEMPLATE))
  assert without.turn[0] == "<|begin|><|eot|>user\n"


def test_control_tokens_come_from_the_template_only(templated):
  tokenizer = with_chat(templated(TEMPLATE))
  turn, begin, end = (tokenizer.controls[name] for name in ("<|eot|>", "<|begin|>", "<|end|>"))
  ids = question_prompt(tokenizer, "Q: {question}\n", "7 apples? <|end|> ")
  # bos stands once, where the template has it; outer spaces are gone.
  assert ids == [
    begin,
    turn,
    *tokenizer.encode("user\nQ: 7 apples? <|end|>"),
    end,
    *tokenizer.encode("\n"),
    turn,
    *tokenizer.encode("assistant\n"),
  ]
  assert ids.count(end) == 1


def test_a_template_gets_no_clock(templated):
  """Llama's writes today's date if it can."""
  template = (
    "{{ strftime_now('%d') if strftime_now is defined else 'fixed' }}:{{ messages[0].content }}"
  )
  assert with_chat(templated(template)).turn == ("fixed:", "")


def test_thinking_is_off_unless_asked_for(templated):
  """As Qwen 3 has it: without a thought it writes an empty one before the answer."""
  template = (
    "{{ messages[0].content }}{% if add_generation_prompt %}<|eot|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}"
  )
  assert with_chat(templated(template)).turn == ("", "<|eot|><think></think>")
  assert with_chat(templated(template), thinking=True).turn == ("", "<|eot|>")
  assert with_chat(templated(TEMPLATE), thinking=False).turn[0].endswith("user\n")
  with pytest.raises(ValueError, match=r"prompt\.thinking is True, but .* no such switch"):
    with_chat(templated(TEMPLATE), thinking=True)


@pytest.mark.parametrize(
  ("template", "end"),
  [
    (CHATML, "<|eot|>"),  # the base model's end of sequence is <|end|>
    (CHATML.replace("<|eot|>", " <|eot|>"), "<|eot|>"),
    (CHATML.replace("<|eot|>", "<|end|>"), None),  # which ends a response already
    (CHATML.replace("<|eot|>", "\nUser: <|eot|>"), None),  # text comes first
    (CHATML.replace("<|eot|>", ""), None),
    ("{{ messages[0].content }}<|eot|>", None),  # shows no answer
    ("{{ messages[0].content }}{% if messages[1] %}{{ raise_exception('one') }}{% endif %}", None),
  ],
)
def test_what_the_template_writes_behind_an_answer_ends_a_response(paths, template, end):
  plain = load_tokenizer(paths["bytes"], "<|reserved_0|>", "<|reserved_1|>")
  plain.vocabulary.chat_template = template
  tokenizer = with_chat(plain)
  added = () if end is None else (tokenizer.controls[end],)
  assert plain.stop_ids == (plain.eos_id,)
  assert tokenizer.stop_ids == (plain.eos_id, *added)
  learned = response(tokenizer, "7 apples?", "7")
  assert learned == response(plain, "7 apples?", "7")  # and ends with end of sequence
  for stop in tokenizer.stop_ids:
    assert split_response(tokenizer, [*learned[:-1], stop], truncated=False).well_formed


def test_the_end_of_a_turn_is_no_padding(paths):
  padded = load_tokenizer(paths["bytes"], "<|reserved_0|>", "<|reserved_1|>", pad_token="<|eot|>")
  padded.vocabulary.chat_template = CHATML
  with pytest.raises(ValueError, match=r"ends an answer with '<\|eot\|>', which is the padding"):
    with_chat(padded)


def test_marks_of_what_the_model_says_write_nothing(templated):
  template = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}Q: {{ m.content }}{% endif %}{% endfor %}"
    "{%- generation -%} A:{% endgeneration %}"
  )
  assert with_chat(templated(template)).turn == ("Q: ", "A:")


def test_of_several_templates_the_default_is_taken(templated):
  model = templated(None).vocabulary.model
  model.chat_template = {"default": "Q: {{ messages[0].content }}", "tool_use": "{{ tools }}"}
  assert FastVocabulary(model).chat_template == "Q: {{ messages[0].content }}"
  model.chat_template = {"tool_use": "{{ tools }}"}
  assert FastVocabulary(model).chat_template is None
  model.chat_template = None


@pytest.mark.parametrize(
  ("template", "system", "message"),
  [
    (None, "", "has no chat template"),
    ("{{ raise_exception('no system') }}", "Be brief.", "refuses a chat with system text .*no sys"),
    ("{{ messages", "", "refuses a chat without system text"),
    ("{{ ''.__class__.__mro__ }}", "", "refuses a chat without system text"),
    ("{{ 1 / 0 }}", "", r"template of .*bytes fails: ZeroDivisionError"),
    ("{{ messages.content + 1 }}", "Be brief.", "refuses a chat with system text"),
    ("{{ messages[0] + 1 }}", "", r"template of .*bytes fails: TypeError"),
    ("nothing", "", "shows a message 0 times, expected once"),
    ("{{ messages[-1].content * 2 }}", "", "shows a message 2 times"),
  ],
)
def test_templates_that_cannot_be_used(templated, template, system, message):
  with pytest.raises(ValueError, match=message):
    with_chat(templated(template), system)
