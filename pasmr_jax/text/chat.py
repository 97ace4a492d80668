"""Chat templates: the text that instruction-tuned models expect around a user's message.

A template is a Jinja program that comes with the model. It is run once, in Jinja's sandbox, on one
user's message, and what it wrote before and after the message is kept as the tokenizer's `turn`.
The clock that transformers lends to templates is not lent here: Llama's would write today's date,
and a run that is resumed tomorrow would ask otherwise than today. Without it they write the fixed
date that they have.
"""

import dataclasses
from typing import Any

from pasmr_jax.text.tokenizer import Tokenizer

STYLES = ("plain", "chat")  # of prompts

THINKING = "enable_thinking"  # what templates call the switch
_MESSAGE = "\ue000"  # stands for the message; a private character that no template has


def with_chat(tokenizer: Tokenizer, system: str = "", thinking: bool = False) -> Tokenizer:
  """The tokenizer, asking questions as a user's message of a chat.

  Args:
    tokenizer: of a model that comes with a chat template.
    system: system text; '' leaves it to the template.
    thinking: whether the response may begin with a thought. Qwen 3's template has this switch, and
      without it writes a thought that is empty; other templates do not read it.

  Raises:
    ValueError: there is no template, it fails or refuses (a system text, for instance), it has no
      switch for thinking, or it does not show the message once as it is.
  """
  import jinja2
  import jinja2.meta

  template = tokenizer.vocabulary.chat_template
  if not template:
    raise ValueError(
      f"prompt.style is 'chat', but the tokenizer {tokenizer.source} has no chat template"
    )

  environment = _environment()
  messages = [{"role": "system", "content": system}] if system else []
  messages.append({"role": "user", "content": _MESSAGE})
  vocabulary = tokenizer.vocabulary
  named = {
    f"{name}_token": "" if token is None else vocabulary.token_of(token)
    for name, token in (("bos", vocabulary.bos_id), ("eos", vocabulary.eos_id))
  }
  try:
    switches = jinja2.meta.find_undeclared_variables(environment.parse(template))
    text = environment.from_string(template).render(
      messages=messages,
      add_generation_prompt=True,
      tools=None,
      documents=None,
      **{THINKING: thinking},
      **named,
    )
  except jinja2.TemplateError as error:
    raise ValueError(
      f"prompt.style: the chat template of {tokenizer.source} refuses a chat"
      f" {'with' if system else 'without'} system text (prompt.system): {error}"
    ) from error
  except Exception as error:  # a template is a program and may fail in any way
    raise ValueError(
      f"prompt.style: the chat template of {tokenizer.source} fails: {error!r}"
    ) from error
  if thinking and THINKING not in switches:
    raise ValueError(
      f"prompt.thinking is True, but the chat template of {tokenizer.source} has no such switch"
      f" ({THINKING}); expected False"
    )
  before, *after = text.split(_MESSAGE)
  if len(after) != 1:
    raise ValueError(
      f"prompt.style: the chat template of {tokenizer.source} shows a message {len(after)} times,"
      " expected once"
    )
  return dataclasses.replace(tokenizer, turn=(before, after[0]))


def _environment() -> Any:
  """The environment that transformers documents for writers of templates."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """{% generation %} marks what the model says, for training; it writes nothing of its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja2.nodes.Scope(body, lineno=line)

  def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
  )
  environment.globals["raise_exception"] = refuse
  return environment
