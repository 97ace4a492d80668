"""Chat templates: the text that instruction-tuned models expect around a user's message.

A template is a Jinja program that comes with the model. It is run once, in Jinja's sandbox, on one
user's message, and what it wrote before and after the message is kept as the tokenizer's `turn`.
A second run, with an answer to that message, shows which token ends the model's own turn: many
models have another one for it than the end of a sequence (Gemma's "<end_of_turn>", ChatML's
"<|im_end|>"), and it ends a sampled response too. Trained responses end with end of sequence.
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
_ANSWER = "\ue001"  # for the model's answer


def with_chat(tokenizer: Tokenizer, system: str = "", thinking: bool = False) -> Tokenizer:
  """The tokenizer, asking questions as a user's message of a chat.

  The control token that the template writes behind an answer becomes a stop token.

  Args:
    tokenizer: of a model that comes with a chat template.
    system: system text; '' leaves it to the template.
    thinking: whether the response may begin with a thought. Qwen 3's template has this switch, and
      without it writes a thought that is empty; other templates do not read it.

  Raises:
    ValueError: there is no template, it fails or refuses (a system text, for instance), it has no
      switch for thinking, it does not show the message once as it is, or what it writes behind an
      answer is the padding token.
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

  def written(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    return environment.from_string(template).render(
      messages=messages,
      add_generation_prompt=add_generation_prompt,
      tools=None,
      documents=None,
      **{THINKING: thinking},
      **named,
    )

  try:
    switches = jinja2.meta.find_undeclared_variables(environment.parse(template))
    text = written(messages, add_generation_prompt=True)
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
  try:
    answered = written([*messages, {"role": "assistant", "content": _ANSWER}], False)
  except Exception:  # a program that may fail in any way; it then says nothing of an answer's end
    answered = ""
  return dataclasses.replace(
    tokenizer, turn=(before, after[0]), stop_ids=_stop_ids(tokenizer, answered)
  )


def _stop_ids(tokenizer: Tokenizer, answered: str) -> tuple[int, ...]:
  """The tokenizer's own, and the control token that follows the answer in a chat, if one does."""
  _, shown, after = answered.partition(_ANSWER)
  parts = tokenizer.split_controls(after)
  # ["", 106, "\n"]: text, control token, text, and so on
  if not shown or len(parts) == 1 or str(parts[0]).strip() or parts[1] in tokenizer.stop_ids:
    return tokenizer.stop_ids
  end = int(parts[1])
  if end == tokenizer.pad_id:
    name = tokenizer.vocabulary.token_of(end)
    raise ValueError(
      f"prompt.style: the chat template of {tokenizer.source} ends an answer with {name!r}, which"
      f" is the padding token; expected tokenizer.stop=({name!r},), so that another one is, and no"
      " such tokenizer.pad"
    )
  return (*tokenizer.stop_ids, end)


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
