"""What a run is: its configuration, questions, tokenizer and code; and what may change on resuming.

Each checkpoint carries the `Identity` it was made under. Before anything is trained `check_changes`
compares it with the run's own, stage by stage. What cannot change the result, or only in the last
bits, may change: logging, saving, evaluation, devices, where files and the run of `init_from` lie.
A stage may have another number of steps, more than it has made, until it has ended before all were
made or a later one has begun; checkpoint.metric may change only from then on, because a stage's
numbers are compared with each other. Anything else would make a run of which nobody could say what
it is, and is refused with the difference, unless --force says that this is wanted.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pasmr_jax import Config
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.reliability.record import code_versions
from pasmr_jax.experiment.reliability.recovery import read_record, steps_in
from pasmr_jax.stages import STAGES
from pasmr_jax.text.tokenizer import Tokenizer

LAYOUT = 1  # of checkpoints; grows when older code could not read newer ones rightly

# Sections and keys that may differ between a checkpoint and the run that goes on from it.
FREE = (
  "log.",
  *("checkpoint.every", "checkpoint.keep", "checkpoint.compiled", "checkpoint.notice"),
  "evaluation.",
  "guard.",
  "mesh.",
  "rollout.prompt_bucket",
  "rollout.slots",
  "rollout.prefill_prompts",
  "rollout.refill_steps",
  "model.remat",
  "model.scan_unroll",
  "tokenizer.path",  # its content is compared
)
FREE_OF_A_STAGE = ("patience", "microbatches", "row_bucket")
_SRL_ONLY = ("feedback.", "reward.", "rollout.")


class ChangedError(ValueError):
  """A checkpoint was made under another configuration, data or code than it would go on with."""


@dataclasses.dataclass(frozen=True)
class Identity:
  """All that the parameters of a checkpoint depend on; goes into its record."""

  config: dict[str, Any]  # every key by its path
  pools: dict[str, str]  # pool -> checksum of its questions as read
  tokenizer: str  # checksum
  code: dict[str, str]  # versions of this package and of what it computes with
  weights: str = ""  # checksum of those the run begins with; '' if it has none, or they are gone
  layout: int = LAYOUT
  ids: str = ""  # checksum of what the tokenizer's ids mean, whatever ends or pads a response


def make_identity(
  config: Config,
  pools: Mapping[str, Sequence[Question]],
  tokenizer: Tokenizer,
  weights: str,
) -> Identity:
  return Identity(
    config=flatten(config),
    pools={name: questions_checksum(questions) for name, questions in pools.items()},
    tokenizer=tokenizer_checksum(tokenizer),
    code=code_versions(),
    weights=weights,
    ids=ids_checksum(tokenizer),
  )


def flatten(config: Config) -> dict[str, Any]:
  """Every key of a configuration by its path, as JSON has it."""

  def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
      for key, inner in value.items():
        yield from walk(f"{prefix}.{key}" if prefix else key, inner)
    else:
      yield prefix, value

  return dict(walk("", json.loads(config.to_json_best_effort())))


def published(name: str) -> str:
  """A hub id as it is, a file or folder without where it lies."""
  path = pathlib.Path(name)
  return path.name if path.is_absolute() or path.exists() else name


def questions_checksum(questions: Sequence[Question]) -> str:
  """SHA-256 of all that was read of the questions, in their order."""
  digest = hashlib.sha256()
  for question in questions:
    digest.update(json.dumps(dataclasses.astuple(question)).encode())
  return digest.hexdigest()


def tokenizer_checksum(tokenizer: Tokenizer) -> str:
  """SHA-256 of every token and of the ids that have a part to play."""
  roles = (
    tokenizer.pad_id,
    tokenizer.bos_id,
    tokenizer.stop_ids,
    tokenizer.open_ids,
    tokenizer.close_ids,
  )
  return _checksum(tokenizer, roles)


def ids_checksum(tokenizer: Tokenizer) -> str:
  """SHA-256 of what parameters have learned ids to mean: stop tokens and padding may be others."""
  return _checksum(tokenizer, (tokenizer.bos_id, tokenizer.open_ids, tokenizer.close_ids))


def _checksum(tokenizer: Tokenizer, roles: tuple[Any, ...]) -> str:
  vocabulary = tokenizer.vocabulary
  digest = hashlib.sha256()
  for token in range(vocabulary.size):
    digest.update(str(vocabulary.token_of(token)).encode("utf-8", "backslashreplace") + b"\0")
  digest.update(repr(roles).encode())
  return digest.hexdigest()


def check_changes(workdir: pathlib.Path, now: Identity, force: bool) -> list[str]:
  """Compares every stage's newest checkpoint with what the run is now.

  Args:
    workdir: of the run.
    now: the run's identity.
    force: go on in spite of differences.

  Returns:
    A sentence for each difference that is gone on with.

  Raises:
    ChangedError: there are differences that matter, naming each with both values.
  """
  refused: list[str] = []
  notes: list[str] = []
  stages = now.config["stages"]
  begun = [stage for stage in stages if steps_in(workdir / "checkpoints" / stage)]
  for place, stage in enumerate(stages):
    if stage not in begun:
      continue
    folder = workdir / "checkpoints" / stage
    record = read_record(folder / str(steps_in(folder)[-1]))
    if "identity" not in record:  # older than identities
      continue
    # A field that is newer than the checkpoint has its default.
    known = [field.name for field in dataclasses.fields(Identity)]
    stored = record["identity"]
    before = Identity(**{name: stored[name] for name in known if name in stored})
    closed = any(later in begun for later in stages[place + 1 :])
    steps_matter = (
      closed
      or now.config[f"{stage}.steps"] <= steps_in(folder)[-1]
      or _ended_early(record.get("progress", {}))
    )
    for difference, matters in differences(stage, before, now, steps_matter, closed):
      text = f"{stage}: {difference}"
      if matters:
        refused.append(text)
      elif text not in notes:
        notes.append(text)
  if refused and not force:
    told = "\n  ".join(refused)
    raise ChangedError(
      f"{workdir} has checkpoints that were made otherwise:\n  {told}\n"
      "Put it back as it was, name another --workdir, or go on all the same with --force."
    )
  return [f"--force: {text}" for text in refused] + notes


def differences(
  stage: str, before: Identity, now: Identity, steps_matter: bool, closed: bool = False
) -> Iterator[tuple[str, bool]]:
  """Each difference that concerns a stage, and whether it matters.

  Args:
    stage: one of base, pam, srl.
    before: of its checkpoint.
    now: of the run.
    steps_matter: whether it cannot have another number of steps any more.
    closed: whether a later stage has begun, so that its checkpoints are compared no more.
  """
  if before.layout > now.layout:
    yield f"its checkpoints have layout {before.layout}, this code knows {now.layout}", True
  for key in sorted(before.config.keys() | now.config.keys()):
    if not _concerns(key, stage, now.config):
      continue
    if key not in before.config or key not in now.config:
      where = "is new in this version" if key in now.config else "is no longer a key"
      yield f"{key} {where}", False
      continue
    was, value = before.config[key], now.config[key]
    if key == "stages":
      # What follows a stage does not concern it.
      was, value = (list(one)[: list(one).index(stage) + 1] for one in (was, value))
    if was != value:
      moved = key == "init_from" and before.weights != "" and before.weights == now.weights
      matters = not moved and _matters(key, stage, steps_matter, closed)
      yield f"{key} was {was!r}, is {value!r}", matters
  for pool in sorted(before.pools.keys() & now.pools.keys()):
    if pool in _pools(stage, now.config) and before.pools[pool] != now.pools[pool]:
      yield f"data.{pool} holds other questions", True
  measured = [one.pools.get("development") for one in (before, now)]
  if not closed and None not in measured and measured[0] != measured[1]:
    yield "data.development holds other questions; the best so far was the best by others", False
  if before.tokenizer != now.tokenizer:
    yield "the tokenizer is another", True
  if before.weights and now.weights and before.weights != now.weights and _begins(stage, now):
    yield "the weights that the run began with are no longer the same", True
  for name in sorted(before.code.keys() | now.code.keys()):
    was, value = before.code.get(name, "none"), now.code.get(name, "none")
    if was != value:
      yield f"{name} was {was}, is {value}; results may differ in the last bits", False


def _ended_early(progress: Mapping[str, Any]) -> bool:
  """Whether a stage had patience enough, or collapsed: it makes no more steps."""
  return progress.get("finished", False) and progress.get("ending") != "steps"


def _concerns(key: str, stage: str, config: Mapping[str, Any]) -> bool:
  section = key.partition(".")[0]
  if section == "data":  # the questions read are compared, wherever they lie
    return False
  if section == "init_from":
    return config["stages"][0] == stage
  if section == "lora":  # base trains all weights
    return stage != "base"
  if stage == "srl" and section == "pam":
    # The rehearsal's examples are those of PAM.
    return config["srl.rehearsal_weight"] > 0 and key.startswith(("pam.mixture", "pam.max_length"))
  if section in STAGES and section != stage:
    return False
  return stage == "srl" or not key.startswith(_SRL_ONLY)


def _matters(key: str, stage: str, steps_matter: bool, closed: bool) -> bool:
  if key.startswith(FREE) or (closed and key == "checkpoint.metric"):
    return False
  if key == f"{stage}.steps":
    return steps_matter
  return key not in [f"{stage}.{name}" for name in FREE_OF_A_STAGE]


def _begins(stage: str, now: Identity) -> bool:
  """Whether a stage takes something of the weights that the run begins with."""
  adapted = now.config["lora.rank"] > 0 and stage != "base"
  return stage == now.config["stages"][0] or adapted


def _pools(stage: str, config: Mapping[str, Any]) -> set[str]:
  """The pools that a stage learns from."""
  mixture = "pam" if stage == "srl" else stage
  kinds = {
    key.rpartition(".")[2]
    for key, weight in config.items()
    if key.startswith(f"{mixture}.mixture.") and weight > 0
  }
  if stage != "srl":
    return kinds
  return {"srl"} | (kinds if config["srl.rehearsal_weight"] > 0 else set())
