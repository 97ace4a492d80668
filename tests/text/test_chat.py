"""Chat templates: what stands around a message, and who may write control tokens."""

import dataclasses

import pytest

from pasmr_jax.text.chat import with_chat
from pasmr_jax.text.prompts import question_prompt
from pasmr_jax.text.vocabularies import FastVocabulary

TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}\n"
  "<|eot|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n"
  "{% endfor %}\n"
  "{% if add_generation_prompt %}<|eot|>assistant\n{% endif %}"
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
