"""The programs that a configuration trains with, ready to be compiled.

`Planner.programs` lists the functions that training calls (`learning/update.py`,
`rollout/engine.py`), each with abstract arguments sharded as `parallel/` shards them, and with what
else is on the devices meanwhile. Nothing is allocated.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax import Config
from pasmr_jax.experiment import setup
from pasmr_jax.experiment.planning_compile import Program
from pasmr_jax.experiment.planning_workload import Workload
from pasmr_jax.feedback.rewards import needs_pivot_answers
from pasmr_jax.learning import losses
from pasmr_jax.learning.update import Learner, TrainState
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import param_shapes
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import rules
from pasmr_jax.rollout.engine import Engine, generate
from pasmr_jax.rollout.sampling import make_sampling


@dataclasses.dataclass(frozen=True)
class Planner:
  """A configuration on the devices of a topology."""

  config: Config
  model: TransformerConfig
  mesh: jax.sharding.Mesh
  workload: Workload

  @functools.cached_property
  def params(self) -> Any:
    """Abstract parameters as training holds them."""
    return self._params(rules.TRAINING, self.model.param_dtype)

  @functools.cached_property
  def decoded_params(self) -> Any:
    """Abstract parameters as `Engine.lay_out` gives them."""
    return self._params(rules.DECODING, self.model.dtype)

  def _params(self, table: rules.Rules, dtype: str) -> Any:
    shardings = meshes.param_shardings(self.model, self.mesh, table)
    return jax.tree.map(
      lambda shape, sharding: jax.ShapeDtypeStruct(
        shape.shape, jnp.dtype(dtype), sharding=sharding
      ),
      param_shapes(self.model),
      shardings,
    )

  @functools.cached_property
  def copied(self) -> list[Any]:
    """The parameters that `Engine.lay_out` copies; others it gives back as they are."""
    pairs = zip(jax.tree.leaves(self.params), jax.tree.leaves(self.decoded_params), strict=True)
    return [
      held
      for held, laid_out in pairs
      if held.dtype != laid_out.dtype
      or not held.sharding.is_equivalent_to(laid_out.sharding, held.ndim)
    ]

  def programs(self) -> Iterator[Program]:
    """Every program of the configuration's stages, cheapest to compile first."""
    stages = self.config.stages
    if "srl" in stages:
      if self.copied:
        yield self.reshard()
      yield from self.rollouts()
      if self._scores():
        yield self.score()
    yield from (self.supervised(stage) for stage in stages if stage != "srl")
    if "srl" in stages:
      yield self.policy()

  # Updates.

  def supervised(self, stage: str) -> Program:
    settings = self.config[stage]
    learner, state = self._learner(stage), self._state(stage)
    batch = self._sequences(settings.batch_size, settings.max_length)
    return Program(
      name=f"{stage} update",
      function=Learner.update_supervised,
      arguments=(learner, state, batch),
      parts=self._parts(state),
      **self._logits(
        settings.batch_size // settings.microbatches, min(learner.chunk, settings.max_length - 1)
      ),
      tokens=settings.batch_size * settings.max_length,
    )

  def policy(self) -> Program:
    srl, load = self.config.srl, self.workload
    learner, state = self._learner("srl"), self._state("srl")
    shape = (load.update_rows, load.update_length)
    inner = srl.inner_batches * srl.inner_epochs
    batch = losses.PolicyBatch(
      sequences=self._sequences(*shape),
      advantages=self._rows(shape, jnp.float32),
      sampler_logprobs=self._rows(shape, jnp.float32),
      old_logprobs=self._rows(shape, jnp.float32) if inner > 1 else None,
      reference_logprobs=self._rows(shape, jnp.float32) if srl.kl_coef > 0 else None,
    )
    rehearsal = None
    if srl.rehearsal_weight > 0:
      rehearsal = self._sequences(srl.rehearsal_rows, self.config.pam.max_length)
    settings = losses.policy_settings(srl)
    return Program(
      name="srl update",
      function=Learner.update_policy,
      arguments=(learner, state, batch, rehearsal, settings, np.float32(srl.rehearsal_weight)),
      parts=self._parts(state),
      resident=self._reference(decoded=True),
      **self._logits(load.update_rows // srl.microbatches, learner.chunk),
      calls=inner,
      tokens=math.prod(shape),
    )

  def score(self) -> Program:
    """Log-probabilities of the reference, of the old policy, or of both."""
    srl, load = self.config.srl, self.workload
    learner, state = self._learner("srl"), self._state("srl")
    batch = self._sequences(load.update_rows, load.update_length)
    beside = {"moments": state.opt_state, "moving average": state.average}
    if srl.kl_coef > 0:  # the policy's stand beside the reference's
      beside["policy"] = self.params
    return Program(
      name="score",
      function=Learner.score,
      arguments=(learner, self.params, batch, np.float32(srl.temperature)),
      parts={"parameters": self.params},
      resident=beside | self._decoded_reference(),
      **self._logits(load.update_rows // srl.microbatches, learner.chunk),
      calls=self._scores(),
      tokens=load.update_rows * load.update_length,
    )

  def _scores(self) -> int:
    srl = self.config.srl
    old = srl.inner_batches * srl.inner_epochs > 1
    return srl.inner_batches * (old + (srl.kl_coef > 0))

  # Sampling.

  def reshard(self) -> Program:
    engine = Engine(
      config=self.model,
      mesh=self.mesh,
      shardings=jax.tree.map(lambda leaf: leaf.sharding, self.decoded_params),
      valid_vocab=self.model.vocab_size,
      prompt_bucket=self.config.rollout.prompt_bucket,
      max_rows=self.config.rollout.max_rows,
    )
    state = self._state("srl")
    return Program(
      name="reshard",
      function=jax.jit(engine.lay_out, out_shardings=engine.shardings),
      arguments=(self.params,),
      parts={"parameters": self.params, "parameters laid out": self.decoded_params},
      resident={"moments": state.opt_state, "moving average": state.average}
      | self._reference(decoded=True),
      calls=2 if self.config.feedback.teacher == "ema" else 1,
    )

  def rollouts(self) -> Iterator[Program]:
    srl, feedback, load = self.config.srl, self.config.feedback, self.workload
    sizes = (load.prompts, srl.group_size, srl.max_new_tokens)
    yield self._generate("rollout", *sizes, srl.temperature, load.calls)
    if needs_pivot_answers(feedback.source, srl.credit):
      sizes = (load.pivot_prompts, feedback.pivot_samples, srl.max_pivot_tokens)
      yield self._generate("pivot", *sizes, feedback.pivot_temperature, load.pivot_calls)

  def _generate(
    self, name: str, prompts: int, samples: int, new: int, temperature: float, calls: int
  ) -> Program:
    srl, load, state = self.config.srl, self.workload, self._state("srl")
    key = jax.eval_shape(lambda: jax.random.key(0)).dtype
    beside = {"policy": self.copied, "moments": state.opt_state, "moving average": state.average}
    beside |= self._reference(decoded=False)
    if name == "pivot" and self.config.feedback.teacher != "policy":
      beside["policy laid out"] = self.decoded_params
    elif name == "rollout":
      beside |= self._decoded_reference()
    return Program(
      name=name,
      function=generate,
      arguments=(
        self.decoded_params,
        self._rows((prompts, load.prompt_length), jnp.int32),
        self._rows((prompts,), jnp.int32),
        self._rows((prompts * samples,), key),
        make_sampling(temperature, (1,), srl.top_k, srl.top_p, srl.min_p),
      ),
      keywords={
        "config": self.model,
        "samples": samples,
        "max_new_tokens": new,
        "valid_vocab": self.model.vocab_size,
      },
      parts={"parameters": self.decoded_params},
      resident=beside,
      **self._logits(prompts * samples, 1),
      cache=(self.model.num_layers, load.prompt_length + new),
      calls=calls,
      tokens=prompts * samples * new,
      prompt_tokens=prompts * load.prompt_length,
      decoded=new,
    )

  # Abstract arguments.

  def _learner(self, stage: str) -> Learner:
    return setup.make_learner(self.config, stage, self.model, self.model.vocab_size)

  def _state(self, stage: str) -> TrainState:
    learner = self._learner(stage)
    moments = jax.tree.map(
      lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
      jax.eval_shape(learner.optimizer.init, self.params),
      learner.opt_shardings(self.params),
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=meshes.replicated(self.mesh))
    averaged = stage == "srl" and self.config.feedback.teacher == "ema"
    return TrainState(step, self.params, moments, self.params if averaged else None)

  def _parts(self, state: TrainState) -> dict[str, Any]:
    return {
      "parameters": state.params,
      "moments": state.opt_state,
      "gradients": state.params,
      "moving average": state.average,
    }

  def _reference(self, decoded: bool) -> dict[str, Any]:
    """The frozen stage-1 parameters, where a step needs them."""
    held = {"reference": self.params} if setup.needs_reference(self.config) else {}
    return held | (self._decoded_reference() if decoded else {})

  def _decoded_reference(self) -> dict[str, Any]:
    frozen = self.config.feedback.teacher == "reference"
    return {"reference laid out": self.decoded_params} if frozen else {}

  def _sequences(self, rows: int, length: int) -> losses.Sequences:
    numbers = self._rows((rows, length), jnp.int32)
    return losses.Sequences(numbers, numbers, numbers, self._rows((rows, length), jnp.float32))

  def _rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
    """An abstract array split by rows, where an array is expected."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.batch_sharding(self.mesh))

  def _logits(self, rows: int, tokens: int) -> dict[str, Any]:
    """The vocabulary of one device, and its logits of so many tokens of so many rows."""
    vocabulary, tensor = self.model.vocab_size, self.mesh.shape["tensor"]
    if vocabulary % tensor == 0:
      vocabulary //= tensor
    logits = rows * tokens * vocabulary // self.mesh.shape["fsdp"]
    return {"vocabulary": vocabulary, "logits": logits}
