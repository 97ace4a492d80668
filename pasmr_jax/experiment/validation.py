"""Checks a configuration before anything is read or compiled.

`check` lists every problem at once, each with its key, what was found and what was expected; where
keys are not those of configs/base.py, or have values of other types, these problems alone. A key
that is set on the command line ml_collections compares with the configuration file.
"""

import difflib
import pathlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

from configs import base
from pasmr_jax import Config
from pasmr_jax.data.pools import EVALUATED, NAMES, set_name
from pasmr_jax.data.sets import SETS
from pasmr_jax.experiment.asking import WAYS
from pasmr_jax.experiment.reliability import collapse
from pasmr_jax.experiment.reliability.identity import flatten
from pasmr_jax.experiment.scoring import SCORINGS
from pasmr_jax.feedback import rewards
from pasmr_jax.learning import advantages, losses, optim
from pasmr_jax.models.config import ATTENTIONS
from pasmr_jax.models.lora import TARGETS
from pasmr_jax.parallel.processes import process_count
from pasmr_jax.rollout.sampling import MAX_STOP_IDS
from pasmr_jax.stages import STAGES
from pasmr_jax.text.chat import STYLES
from pasmr_jax.text.exemplars import MAX_EXEMPLARS
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.tokenizer import DELIMITERS

_TEACHERS = ("policy", "reference", "ema")
_METRICS = tuple(
  f"development/{way}{name}"
  for way in ("", "sampled/")
  for name in ("target_accuracy", "pivot_accuracy")
)
_DTYPES = ("float32", "bfloat16")
# What a number may be, and for which keys: the first that matches counts. NaN is none of it.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
  "a number": (lambda value: value == value, "mesh.* reward.*"),  # the mesh has checks of its own
  "more than 0": (
    lambda value: value > 0,
    "model.* lora.alpha *.steps *.batch_size *.microbatches *.max_length *.max_prompt_length"
    " *.max_new_tokens *.temperature *.optimizer.learning_rate *.optimizer.epsilon srl.questions"
    " srl.group_size srl.max_pivot_tokens srl.inner_batches srl.inner_epochs srl.row_bucket"
    " srl.importance_cap srl.rehearsal_rows feedback.pivot_samples rollout.prompt_bucket"
    " rollout.prefill_prompts rollout.refill_steps evaluation.samples checkpoint.every"
    " checkpoint.keep log.every",
  ),
  "more than 0 and at most 1": (lambda value: 0 < value <= 1, "srl.top_p"),
  "0 or more and less than 1": (
    lambda value: 0 <= value < 1,
    "srl.min_p *.optimizer.b1 *.optimizer.b2 *.optimizer.momentum",
  ),
  "0 to 1": (
    lambda value: 0 <= value <= 1,
    "*.optimizer.final_fraction srl.clip_low feedback.ema_decay feedback.confidence"
    " guard.collapse_rise guard.collapse_accuracy guard.collapse_entropy guard.collapse_numbers"
    " guard.collapse_language",
  ),
  "0 or more": (lambda value: value >= 0, "*"),
}


def check(
  config: Config,
  devices: int = 1,
  pools: Collection[str] | None = None,
  workdir: pathlib.Path | None = None,
) -> None:
  """Raises ValueError with every problem of the configuration.

  Args:
    config: the whole configuration.
    devices: over which a batch is split (the mesh's axes replica and fsdp).
    pools: those that are read where nothing is trained; None is a training run.
    workdir: where it is to be trained.
  """
  _raise(list(_keys(config)))  # the other checks read the keys
  numbers = list(_numbers(config))
  problems = [
    *_general(config),
    *_pools(config, NAMES if pools is None else pools),
    *_beginning(config, workdir),
    *_choices(config),
    *numbers,
    *_lora(config),
    *_evaluation(config),
  ]
  if pools is None:
    problems += _training(config)
    problems += [] if numbers else _batches(config, devices)  # which divides by them
  _raise(problems)


def row_devices(config: Config, devices: int) -> int:
  """Over how many devices of so many a batch is split: a `mesh.tensor` group shares its rows."""
  return max(1, devices // max(config.mesh.tensor, 1))


def _raise(problems: list[str]) -> None:
  if problems:
    raise ValueError("the configuration cannot be run:\n  " + "\n  ".join(problems))


def _keys(config: Config) -> Iterator[str]:
  """What a configuration file has other than configs/base.py, which it may not add keys to."""
  known, found = flatten(base.get_config()), flatten(config)
  for key in sorted(found.keys() - known.keys()):
    near = "".join(f", such as {name}" for name in difflib.get_close_matches(key, known, 1))
    yield f"{key} is no key; expected one of configs/base.py{near}"
  for key in sorted(found.keys() & known.keys()):
    if not _same_type(found[key], known[key]):
      yield f"{key} is {found[key]!r}; expected a value like {known[key]!r}"
  lacking = defaultdict(list)
  for key in sorted(known.keys() - found.keys()):
    section, _, name = key.rpartition(".")
    if not section.endswith(".mixture"):  # a pool without a share is left out
      lacking[section].append(name)
  for section, names in lacking.items():
    yield (
      f"{section or 'the configuration'} lacks {', '.join(names)}; expected all keys of"
      " configs/base.py: set them one by one instead of replacing a section"
    )


def _same_type(value: Any, default: Any) -> bool:
  return type(value) is type(default) or (type(default) is float and type(value) is int)


def _general(config: Config) -> Iterator[str]:
  stages = tuple(config.stages)
  in_order = tuple(stage for stage in STAGES if stage in stages)
  if not stages or stages != in_order:
    yield f"stages is {stages!r}; expected some of {STAGES}, in this order"
  for key, codes in (("pivot", (config.pivot,)), ("languages", tuple(config.languages))):
    for code in codes:
      if code not in LANGUAGES:
        near = difflib.get_close_matches(code, LANGUAGES, 3) or sorted(LANGUAGES)
        yield f"{key}: unknown language {code!r}; expected one of {', '.join(near)}"
  if not config.languages or len(set(config.languages)) != len(config.languages):
    yield f"languages is {tuple(config.languages)!r}; expected at least one, each once"
  if config.pivot in config.languages:
    yield f"languages holds the pivot {config.pivot!r}; expected target languages only"
  if not (config.tokenizer.path or config.model.pretrained):
    yield "tokenizer.path is '' and so is model.pretrained; expected a path or 'synthetic'"
  if config.prompt.system and config.prompt.style != "chat":
    yield f"prompt.system is {config.prompt.system!r}; expected '' unless prompt.style is 'chat'"
  if config.prompt.thinking and config.prompt.style != "chat":
    yield "prompt.thinking is True; expected False unless prompt.style is 'chat'"
  if bool(config.tokenizer.open) != bool(config.tokenizer.close):
    found = {key: config.tokenizer[key] for key in ("open", "close")}
    yield f"tokenizer.open and tokenizer.close are {found}; expected both or neither to be ''"
  # The end of sequence is one too, and what ends an answer in a chat.
  stops, most = len(config.tokenizer.stop), MAX_STOP_IDS - 1 - (config.prompt.style == "chat")
  if stops > most:
    yield f"tokenizer.stop has {stops} tokens; expected at most {most}"
  for key in ("question", "translation"):
    template = config.prompt[key]
    if template.count("{question}") != 1:
      yield f"prompt.{key} is {template!r}; expected {{question}} once"


def _pools(config: Config, pools: Collection[str]) -> Iterator[str]:
  for name in pools:
    for source in config.data[name]:
      evaluated = name in EVALUATED
      if ":" in source or (evaluated and set_name(source) is not None):
        continue
      if set_name(source) is not None:
        yield f"data.{name} has the evaluation set {source!r}; expected it in data.test"
      elif evaluated:
        yield (
          f"data.{name} has source {source!r}; expected FORMAT:LOCATION or one of {', '.join(SETS)}"
        )
      else:
        yield f"data.{name} has source {source!r}; expected FORMAT:LOCATION"
  for name in EVALUATED:
    if name in pools and not config.data[name]:
      yield f"data.{name} is empty; expected questions with answers"


def _training(config: Config) -> Iterator[str]:
  stages = tuple(config.stages)
  rehearsed = "srl" in stages and config.srl.rehearsal_weight > 0  # by PAM's mixture
  for stage in ("base", "pam"):
    if stage not in stages and not (stage == "pam" and rehearsed):
      continue
    mixture = config[stage].mixture
    for kind, weight in mixture.items():
      if weight > 0 and not config.data[kind]:
        yield f"{stage}.mixture.{kind} is {weight} but data.{kind} is empty; expected a source"
    if not any(mixture.values()):
      yield f"{stage}.mixture is all zero; expected a positive share"
  if "srl" in stages and not config.data.srl:
    yield "data.srl is empty; expected a source of target-language questions"
  fewest = 2 * process_count()
  if "srl" in stages and config.feedback.source == "shuffled" and config.srl.questions < fewest:
    yield (
      f"srl.questions is {config.srl.questions}; expected at least {fewest}, two a process, with"
      " feedback.source=shuffled: votes are those of the next question"
    )
  checked = config.evaluation.label_questions
  if "srl" in stages and config.feedback.source == "shuffled" and checked == 1:
    yield (
      "evaluation.label_questions is 1; expected two or more, or 0, with feedback.source=shuffled:"
      " labels are those of the next question"
    )
  for name in EVALUATED:
    shared = set(config.data[name]) & set(config.data.srl)
    if any(not source.startswith("synthetic:") for source in shared):
      yield f"data.srl and data.{name} share {sorted(shared)}; expected disjoint sources"
  for stage in STAGES:
    patience = config[stage].patience
    if stage in stages and patience > 0 and config.evaluation.every == 0:
      yield (
        f"{stage}.patience is {patience} but evaluation.every is 0; expected more than 0, or"
        " patience 0"
      )


def _beginning(config: Config, workdir: pathlib.Path | None) -> Iterator[str]:
  if not config.init_from or workdir is None:
    return
  if pathlib.Path(config.init_from).resolve() == workdir.resolve():
    # The newest stage there would soon be one of this run itself.
    yield (
      f"init_from is {config.init_from!r}, which is --workdir; expected another run's, or '' with"
      " the stages that are there already in stages too: what has ended is not trained again"
    )


def _choices(config: Config) -> Iterator[str]:
  choices = {
    "model.dtype": _DTYPES,
    "model.attention": ATTENTIONS,
    "tokenizer.delimiters": DELIMITERS,
    "prompt.style": STYLES,
    "model.param_dtype": _DTYPES,
    "rollout.cache_dtype": ("", *_DTYPES, "int8"),
    "srl.advantage": advantages.ESTIMATORS,
    "srl.credit": advantages.CREDITS,
    "srl.aggregation": losses.AGGREGATIONS,
    "srl.kl_estimator": losses.KL_ESTIMATORS,
    "feedback.source": rewards.SOURCES,
    "feedback.scope": rewards.SCOPES,
    "feedback.teacher": _TEACHERS,
    "reward.kind": rewards.KINDS,
    "checkpoint.metric": _METRICS,
    "guard.collapse_action": collapse.ACTIONS,
    "evaluation.ask": WAYS,
    "evaluation.scoring": SCORINGS,
  }
  for stage in STAGES:
    choices[f"{stage}.optimizer.name"] = optim.NAMES
    choices[f"{stage}.optimizer.schedule"] = optim.SCHEDULES
    choices[f"{stage}.optimizer.decayed"] = optim.DECAYED
    choices[f"{stage}.optimizer.moment_dtype"] = optim.MOMENT_DTYPES
  flat = flatten(config)
  for key, allowed in choices.items():
    value = flat[key]
    if value not in allowed:
      yield f"{key} is {value!r}; expected one of {', '.join(allowed)}"


def _numbers(config: Config) -> Iterator[str]:
  for key, value in flatten(config).items():
    if isinstance(value, bool) or not isinstance(value, int | float):
      continue
    for expected, (allows, keys) in _RANGES.items():
      if any(fnmatchcase(key, pattern) for pattern in keys.split()):
        if not allows(value):
          yield f"{key} is {value}; expected {expected}"
        break
  if config.srl.group_size == 1:
    yield "srl.group_size is 1; expected at least 2, or no response has another to compare with"


def _lora(config: Config) -> Iterator[str]:
  targets = tuple(config.lora.targets)
  if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
    yield f"lora.targets is {targets!r}; expected some of {', '.join(TARGETS)}, each once"


def _evaluation(config: Config) -> Iterator[str]:
  evaluation = config.evaluation
  ask, exemplars = evaluation.ask, evaluation.exemplars
  if exemplars > MAX_EXEMPLARS:
    yield f"evaluation.exemplars is {exemplars}; expected 0 to {MAX_EXEMPLARS}"
  elif exemplars > 0 and ask == "pasmr":
    yield f"evaluation.exemplars is {exemplars}; expected 0 with evaluation.ask=pasmr"
  elif exemplars > 0 and not evaluation.exemplar_file:
    yield f"evaluation.exemplar_file is '' but evaluation.exemplars is {exemplars}; expected a file"
  if evaluation.template.count("{question}") != 1:
    yield f"evaluation.template is {evaluation.template!r}; expected {{question}} once"
  if evaluation.samples > 1 and not evaluation.sampled:
    yield f"evaluation.samples is {evaluation.samples} but evaluation.sampled is False; expected 1"
  if evaluation.pivot_agreement and ask != "pasmr":
    yield f"evaluation.pivot_agreement is True; expected False with evaluation.ask={ask}"
  if any(not text for text in evaluation.stop):
    yield f"evaluation.stop is {tuple(evaluation.stop)!r}; expected texts that are not empty"


def _batches(config: Config, devices: int) -> Iterator[str]:
  for stage in STAGES:
    if stage not in config.stages:
      continue
    if stage == "srl":
      yield from _self_feedback_batches(config, devices)
    else:
      settings, name = config[stage], f"{stage}.batch_size"
      yield from _shared(name, settings.batch_size)
      yield from _divides(
        name, settings.batch_size, f"{stage}.microbatches", settings.microbatches, devices
      )


def _self_feedback_batches(config: Config, devices: int) -> Iterator[str]:
  srl = config.srl
  yield from _shared("srl.questions", srl.questions)
  if srl.rehearsal_weight > 0:
    yield from _shared("srl.rehearsal_rows", srl.rehearsal_rows)
    yield from _divides(
      "srl.rehearsal_rows", srl.rehearsal_rows, "srl.microbatches", srl.microbatches, devices
    )
  rows = srl.questions * srl.group_size
  if srl.update_rows > rows:
    yield f"srl.update_rows is {srl.update_rows}; expected at most questions * group_size = {rows}"
    return
  rows = srl.update_rows or rows
  name = "srl.update_rows" if srl.update_rows else "srl.questions * srl.group_size"
  if rows % srl.inner_batches:
    yield f"{name} is {rows}; expected a multiple of srl.inner_batches={srl.inner_batches}"
    return
  yield from _divides(
    "srl.row_bucket", srl.row_bucket, "srl.microbatches", srl.microbatches, devices
  )
  longest = srl.max_prompt_length + srl.max_new_tokens
  if srl.row_length and srl.row_length < longest:
    yield (
      f"srl.row_length is {srl.row_length}; expected 0 or at least max_prompt_length +"
      f" max_new_tokens = {longest}"
    )


def _shared(name: str, rows: int) -> Iterator[str]:
  if rows % process_count():
    yield f"{name} is {rows}; expected a multiple of the {process_count()} processes"


def _divides(name: str, rows: int, key: str, microbatches: int, devices: int) -> Iterator[str]:
  if rows % (microbatches * devices):
    fewer = (n for n in range(microbatches, 0, -1) if rows % (n * devices) == 0)
    helps = next((f"{key}={n}" for n in fewer), f"a multiple of {devices} rows")
    yield (
      f"{name} is {rows}; expected a multiple of {key} * devices that share rows"
      f" = {microbatches} * {devices}: set {helps}"
    )
