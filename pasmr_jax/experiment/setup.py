"""From a configuration to what a run works with.

`Run` holds what lasts (mesh, model, tokenizer, questions); `Run.make_stage` builds a stage;
`Run.start` gives its state: the newest checkpoint's, or a new one from the parameters the stage
begins with (`Run.origins`).
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pasmr_jax import Config
from pasmr_jax.data import synthetic
from pasmr_jax.data.batches import fit_examples, question_iterator, supervised_iterator
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.checkpoint import Checkpoints, Progress
from pasmr_jax.experiment.origins import Origins, source
from pasmr_jax.experiment.questions import (
  expect_told_apart,
  pools_used,
  read_pools,
  supervised_settings,
  tell_overlap,
)
from pasmr_jax.learning.optim import make_optimizer
from pasmr_jax.learning.update import Learner, TrainState
from pasmr_jax.models import pretrained
from pasmr_jax.models.config import COMPUTED, TransformerConfig
from pasmr_jax.models.transformer import as_computed
from pasmr_jax.parallel.mesh import make_mesh
from pasmr_jax.parallel.processes import process_count, process_index, say
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.requests import stable_id
from pasmr_jax.stages.self_feedback import SelfFeedbackStage
from pasmr_jax.stages.supervised import SupervisedStage, examples
from pasmr_jax.text import prompts
from pasmr_jax.text.chat import with_chat
from pasmr_jax.text.tokenizer import Tokenizer, load_tokenizer

Stage = SupervisedStage | SelfFeedbackStage


@dataclasses.dataclass
class Run:
  """What lasts through all stages of a run."""

  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  model: TransformerConfig
  pools: dict[str, list[Question]]  # every pool that a stage or an evaluation uses

  @functools.cached_property
  def origins(self) -> Origins:
    """Where the parameters of stages and checkpoints come from."""
    return Origins(self.config, self.workdir, self.mesh, self.tokenizer, self.model)

  def engine(self, slots: int) -> Engine:
    return make_engine(self.config, self.model, self.mesh, self.tokenizer.vocab_size, slots)

  # Stages.

  def start(self, stage: Stage, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """The stage's newest checkpoint, its data put back in place; or step 0."""
    average = isinstance(stage, SelfFeedbackStage) and self.config.feedback.teacher == "ema"
    frozen = self.origins.frozen() if self.origins.has_adapters(stage.name) else None
    if checkpoints.latest_step() is None:
      return stage.learner.init(self.origins.start_trained(stage.name), average, frozen), Progress()
    # Nothing but shapes: a second state beside the restored one may be too much.
    shapes = stage.learner.abstract(self.origins.abstract_trained(stage.name), average, frozen)
    state, data, progress = checkpoints.restore(shapes, self.model)
    stage.restore_data(data)
    say(f"{stage.name}: going on from step {int(state.step)} in {checkpoints.directory}")
    return state, progress

  def make_stage(self, name: str) -> Stage:
    """Reads the stage's questions and builds it."""
    return self._self_feedback() if name == "srl" else self._supervised(name)

  def _supervised(self, name: str) -> SupervisedStage:
    settings = self.config[name]
    # The parameters may have learned from these examples in another run, in the order of `name`.
    continued = bool(self.config.init_from) and self.config.stages[0] == name
    use = f"{name} continued" if continued else name
    return SupervisedStage(
      name=name,
      steps=settings.steps,
      learner=self._learner(name),
      mesh=self.mesh,
      batches=self._supervised_batches(name, settings, settings.batch_size, use),
    )

  def _supervised_batches(self, name: str, settings: Config, batch_size: int, use: str) -> Any:
    pools = []
    for kind, weight in settings.mixture.items():
      if weight == 0:
        continue
      questions = self.pools[kind]
      made = examples(kind, questions, self.tokenizer, self.config.prompt)
      kept, dropped = fit_examples(made, settings.max_length)
      say(
        f"{use}: {len(kept)} examples of data.{kind} ({_languages(questions)})"
        + (
          f"; {dropped} longer than {name}.max_length={settings.max_length} left out"
          * (dropped > 0)
        )
      )
      pools.append((kept, weight))
    return supervised_iterator(
      pools,
      batch_size,
      settings.max_length,
      self._seed(use),
      process_index(),
      process_count(),
      key="srl.rehearsal_rows" if use == "srl rehearsal" else f"{name}.batch_size",
    )

  def expect_examples(self, name: str) -> None:
    """Raises ValueError if a pool of a supervised stage has no example that fits a row.

    It looks no further than the first that does.
    """
    settings = self.config[name]
    for kind, weight in settings.mixture.items():
      if weight > 0 and not any(
        len(example) <= settings.max_length
        for question in self.pools[kind]
        for example in examples(kind, [question], self.tokenizer, self.config.prompt)
      ):
        raise ValueError(
          f"data.{kind} has no example of at most {name}.max_length={settings.max_length} tokens,"
          f" though {name}.mixture.{kind} is {weight}"
        )

  def _self_feedback(self) -> SelfFeedbackStage:
    config, srl = self.config, self.config.srl
    questions = self.fitting(self.pools["srl"], srl.max_prompt_length, "srl")
    rehearsal = None
    if srl.rehearsal_weight > 0:
      rehearsal = self._supervised_batches("pam", config.pam, srl.rehearsal_rows, "srl rehearsal")
    return SelfFeedbackStage(
      config=config,
      learner=self._learner("srl"),
      engine=self.engine(config.rollout.slots),
      tokenizer=self.tokenizer,
      mesh=self.mesh,
      reference=self._reference() if needs_reference(config) else None,
      questions=question_iterator(
        questions,
        srl.questions,
        self._seed("srl questions"),
        process_index(),
        process_count(),
        key="srl.questions",
      ),
      rehearsal=rehearsal,
    )

  def _reference(self) -> Any:
    """What self-feedback began with: its adapters, or all weights in the compute dtype."""
    params = self.origins.start_trained("srl")
    return params if self.origins.has_adapters("srl") else as_computed(params, self.model)

  def _learner(self, stage: str) -> Learner:
    return make_learner(self.config, stage, self.model, self.tokenizer.vocab_size)

  def _seed(self, use: str) -> int:
    return stable_id(f"{self.config.seed}/{use}")

  def fitting(
    self,
    questions: Sequence[Question],
    limit: int,
    use: str,
    prompt: Callable[[Question], Sequence[int]] | None = None,
  ) -> list[Question]:
    """Questions whose prompt has at most `limit` tokens; the others are counted, never cut.

    `prompt` gives a question's prompt if it is not asked by `prompt.question`.

    Raises:
      ValueError: none is left.
    """
    self.expect_fitting(questions, limit, use, prompt)
    asked = prompt or self._question_prompt
    kept = [question for question in questions if len(asked(question)) <= limit]
    left_out = len(questions) - len(kept)
    say(
      f"{use}: {len(kept)} questions ({_languages(kept)})"
      + (f"; {left_out} with a prompt of more than {limit} tokens left out" * (left_out > 0))
    )
    return kept

  def expect_fitting(
    self,
    questions: Sequence[Question],
    limit: int,
    use: str,
    prompt: Callable[[Question], Sequence[int]] | None = None,
  ) -> None:
    """Raises ValueError if `fitting` would leave no question; looks no further than the first."""
    asked = prompt or self._question_prompt
    if not any(len(asked(question)) <= limit for question in questions):
      raise ValueError(
        f"data.{use}: none of {len(questions)} questions has a prompt of at most {limit} tokens"
      )

  def _question_prompt(self, question: Question) -> list[int]:
    return prompts.question_prompt(self.tokenizer, self.config.prompt.question, question.text)


def _languages(questions: Sequence[Question]) -> str:
  counts = Counter(question.language for question in questions)
  return ", ".join(f"{language} {count}" for language, count in sorted(counts.items()))


def make_learner(config: Config, stage: str, model: TransformerConfig, valid_vocab: int) -> Learner:
  """A stage's updates; its schedule counts every one of a rollout, and ema_decay is of them all."""
  settings = config[stage]
  updates = settings.inner_batches * settings.inner_epochs if stage == "srl" else 1  # a step
  return Learner(
    config=model,
    optimizer=make_optimizer(settings.optimizer, settings.steps * updates),
    valid_vocab=valid_vocab,
    microbatches=settings.microbatches,
    row_bucket=settings.row_bucket if stage == "srl" else 0,
    average_decay=config.feedback.ema_decay ** (1 / updates),
    entropy=stage == "srl" and settings.exact_entropy,
  )


def make_engine(
  config: Config, model: TransformerConfig, mesh: jax.sharding.Mesh, valid_vocab: int, slots: int
) -> Engine:
  """What samples, `slots` rows at a time (0: as many as there are samples at first)."""
  rollout = config.rollout
  return Engine(
    config=model,
    mesh=mesh,
    valid_vocab=valid_vocab,
    prompt_bucket=rollout.prompt_bucket,
    slots=slots,
    prefill_prompts=rollout.prefill_prompts,
    refill_steps=rollout.refill_steps,
    cache_dtype=rollout.cache_dtype,
  )


def needs_reference(config: Config) -> bool:
  """Whether self-feedback holds the frozen stage-1 parameters."""
  return config.srl.kl_coef > 0 or config.feedback.teacher == "reference"


def keep_compiled(config: Config, workdir: pathlib.Path) -> None:
  """From now on JAX keeps compiled programs in the work directory, and takes them from there.

  Call it before anything is compiled. If JAX_COMPILATION_CACHE_DIR names a folder, that is used.
  """
  if config.checkpoint.compiled and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def make_run(config: Config, workdir: pathlib.Path, pools: Sequence[str] | None = None) -> Run:
  """Builds what lasts and reads all questions, so that bad input shows at once; no weights yet.

  `pools` are the pools to read, if not all that the configuration's stages use.

  Raises:
    ValueError: among others, self-feedback could not tell its languages apart, or cannot read a
      gold answer that it is to learn from; no solution of a pool ends in its answer, though answers
      are read from responses that are learned from them.
  """
  used = pools_used(config) if pools is None else pools
  if "srl" in used:
    expect_told_apart(config)
  workdir.mkdir(parents=True, exist_ok=True)
  # Whatever JAX_DEFAULT_PRNG_IMPL says: with rbg a row's noise would depend on its neighbours.
  jax.config.update("jax_default_prng_impl", "threefry2x32")
  mesh = make_mesh(config.mesh.fsdp, config.mesh.tensor, replica=config.mesh.replica)
  tokenizer = make_tokenizer(config, workdir)
  model = model_config(config, tokenizer)
  questions = read_pools(config, used)
  run = Run(
    config=config,
    workdir=workdir,
    mesh=mesh,
    tokenizer=tokenizer,
    model=model,
    pools=questions,
  )
  # Now, not when the stages before have ended.
  if "srl" in run.pools:
    run.expect_fitting(run.pools["srl"], config.srl.max_prompt_length, "srl")
  if pools is None:
    for stage in supervised_settings(config):
      run.expect_examples(stage)
    tell_overlap(questions)
  return run


def make_tokenizer(config: Config, workdir: pathlib.Path) -> Tokenizer:
  settings = config.tokenizer
  path = settings.path or source(config.model)
  if path == "synthetic":
    path = str(workdir / "tokenizer.model")
    if not pathlib.Path(path).exists():
      partial = workdir / f"tokenizer.{process_index()}.partial"
      synthetic.train_tokenizer(partial)
      partial.replace(path)
  tokenizer = load_tokenizer(
    path,
    settings.open,
    settings.close,
    settings.stop,
    settings.pad or None,
    settings.delimiters == "added",
  )
  if config.prompt.style != "chat":
    return tokenizer
  return with_chat(tokenizer, config.prompt.system, config.prompt.thinking)


def model_config(config: Config, tokenizer: Tokenizer) -> TransformerConfig:
  """The model's shape: the checkpoint's own, or `config.model`'s.

  Raises:
    ValueError: the tokenizer has ids that the model has no embedding for, or for less than half
      of its embeddings.
  """
  settings = config.model
  computed = {name: settings[name] for name in COMPUTED}
  if settings.pretrained:
    model = dataclasses.replace(pretrained.load_config(source(settings)), **computed)
    known = tokenizer.vocab_size - len(tokenizer.added)
    # Embeddings have some rows to spare, never as many again.
    if not model.vocab_size <= 2 * known <= 2 * model.vocab_size:
      raise ValueError(
        f"tokenizer.path: {tokenizer.source} has {known} ids, but the model {settings.pretrained}"
        f" has embeddings for {model.vocab_size}; expected the model's own"
      )
    if tokenizer.added and config.lora.rank > 0:
      # A new row is the mean of others', so that its token is never the likeliest until it learns.
      raise ValueError(
        f"tokenizer.delimiters is 'added' and {tokenizer.open_delimiter!r} is new to the vocabulary"
        f" of {settings.pretrained}, but with lora.rank={config.lora.rank} its embedding would not"
        " be trained; expected 'tags', or reserved tokens as tokenizer.open and tokenizer.close"
      )
    if tokenizer.vocab_size > model.vocab_size:  # by new delimiters
      model = dataclasses.replace(model, vocab_size=_rows(tokenizer.vocab_size))
    return model
  return TransformerConfig(
    vocab_size=_rows(tokenizer.vocab_size),
    embed_dim=settings.embed_dim,
    num_layers=settings.num_layers,
    num_heads=settings.num_heads,
    num_kv_heads=settings.num_kv_heads,
    head_dim=settings.head_dim,
    mlp_dim=settings.mlp_dim,
    query_scale=settings.head_dim**-0.5,
    qk_norm=True,
    norm_plus_one=True,
    scale_embeddings=True,
    activation="gelu_tanh",
    **computed,
  )


def _rows(vocab_size: int) -> int:
  """Rows of an embedding table: divisible by any tensor axis."""
  return -(-vocab_size // 128) * 128


def parameter_count(params: Any) -> int:
  """How many numbers a tree of arrays, or of their shapes, holds."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
