"""The questions of a run: which pools it reads, and what of them is told or refused at once."""

from collections.abc import Mapping, Sequence

from pasmr_jax import Config
from pasmr_jax.data import overlap
from pasmr_jax.data.pools import EVALUATED, NAMES, read_pool, unmarked
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.measures import gold_answer
from pasmr_jax.feedback import language_id
from pasmr_jax.parallel.processes import say


def pools_used(config: Config) -> list[str]:
  """The pools that the run's stages and evaluations read."""
  used = {*EVALUATED, *({"srl"} & {*config.stages})}
  for stage in supervised_settings(config):
    used |= {kind for kind, weight in config[stage].mixture.items() if weight > 0}
  return [name for name in NAMES if name in used]


def supervised_settings(config: Config) -> list[str]:
  """Of which supervised stages a run reads the examples: srl may rehearse those of pam."""
  rehearsed = "srl" in config.stages and config.srl.rehearsal_weight > 0
  used = {*config.stages, *({"pam"} if rehearsed else ())}
  return [stage for stage in ("base", "pam") if stage in used]


def expect_told_apart(config: Config) -> None:
  """Raises ValueError if self-feedback could not tell the run's languages apart."""
  try:
    language_id.identify([], (*config.languages, config.pivot))
  except ValueError as error:
    raise ValueError(
      f"languages: {error}; expected other languages, or stages without srl"
    ) from error


def read_pools(config: Config, names: Sequence[str]) -> dict[str, list[Question]]:
  """The questions of these pools.

  Raises:
    ValueError: what `read_pool` raises; no solution of a pool ends in its answer, though answers
      are read from responses that are learned from them; a gold answer that self-feedback is to
      learn from cannot be read.
  """
  pools = {name: read_pool(name, config, say=say) for name in names}
  for name, questions in pools.items():
    _check_solutions(name, questions, config)
  if config.feedback.source == "gold":
    for question in pools.get("srl", ()):
      gold_answer(question)
  return pools


def _check_solutions(name: str, questions: Sequence[Question], config: Config) -> None:
  """Tells how many solutions of a pool do not end in their answer; ValueError if none does."""
  lacking = unmarked(questions)
  if not lacking:
    return
  of = sum(question.solution is not None for question in questions)
  first = lacking[0]
  told = (
    f"data.{name}: {len(lacking)} of {of} solutions do not state their answer (as '#### 7' at the"
    f" end does), the first that of question {first.id!r} ({first.language})"
  )
  if len(lacking) == of and (config.evaluation.ask == "pasmr" or "srl" in config.stages):
    raise ValueError(
      f"{told}; expected it in each: responses learn to end so, and answers are read there"
    )
  say(told)


def tell_overlap(pools: Mapping[str, Sequence[Question]]) -> None:
  """Says which pools that are learned from have questions of those that measure what is learned."""
  for (name, measure), found in overlap.shared(pools, EVALUATED).items():
    say(
      f"WARNING: data.{name}: {len(found)} of {len(pools[name])} questions are in"
      f" data.{measure} too, by their text; the first is {found[0].id!r} ({found[0].language})"
    )
