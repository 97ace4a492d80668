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
from pasmr_jax.experiment import origins, setup
from pasmr_jax.experiment.planning.compiling import Program, device_bytes
from pasmr_jax.experiment.planning.workload import Workload
from pasmr_jax.learning import losses
from pasmr_jax.learning.logprobs import chunk_size
from pasmr_jax.learning.update import Learner, TrainState
from pasmr_jax.models import lora
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import as_computed, param_shapes
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import rules
from pasmr_jax.rollout import slots
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.sampling import make_sampling
from pasmr_jax.stages import packing


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
    return self._params(self.model, rules.TRAINING)

  @functools.cached_property
  def decoded_params(self) -> Any:
    """Abstract parameters as `Engine.lay_out` gives them."""
    return self._as_computed(self._params(self.engine.decoding, rules.DECODING))

  def _params(self, model: TransformerConfig, table: rules.Rules) -> Any:
    return meshes.abstract(param_shapes(model), meshes.param_shardings(model, self.mesh, table))

  @functools.cached_property
  def adapters(self) -> Any | None:
    """Abstract adapters of pam and srl as training holds them; None without."""
    if not self.config.lora.rank:
      return None
    settings = origins.lora_settings(self.config)
    shapes = lora.adapter_shapes(param_shapes(self.model), settings)
    shardings = meshes.adapter_shardings(self.model, self.mesh, rules.TRAINING, settings)
    return meshes.abstract(shapes, shardings)

  @functools.cached_property
  def reference(self) -> Any:
    """Abstract frozen parameters of stage 1."""
    if self.adapters is not None:
      return self.adapters
    return self._as_computed(self.params)

  def _as_computed(self, params: Any) -> Any:
    shapes = jax.eval_shape(lambda params: as_computed(params, self.model), params)
    return meshes.abstract(shapes, jax.tree.map(lambda leaf: leaf.sharding, params))

  @functools.cached_property
  def copied(self) -> list[Any]:
    """The parameters that laying out copies, or adds adapters to; others are what they were."""
    laid_out = dict(jax.tree_util.tree_leaves_with_path(self.decoded_params))
    adapted = jax.tree_util.tree_leaves_with_path(self.adapters)
    with_adapters = {path[:-1] for path, _ in adapted}

    def as_it_was(path, leaf) -> bool:
      laid = laid_out.get(path)  # layers that were taken apart have other paths
      if laid is None or leaf.dtype != laid.dtype or path in with_adapters:
        return False
      return leaf.sharding.is_equivalent_to(laid.sharding, leaf.ndim)

    held = jax.tree_util.tree_leaves_with_path(self.params)
    return [leaf for path, leaf in held if not as_it_was(path, leaf)]

  def programs(self) -> Iterator[Program]:
    """Every program of the configuration's stages, cheapest to compile first."""
    stages = self.config.stages
    if "srl" in stages:
      if self.copied:
        yield self.reshard()
      yield self.prefill()
      yield self.decode()
      if self._scores():
        yield self.score()
    yield from (self.supervised(stage) for stage in stages if stage != "srl")
    if "srl" in stages:
      yield self.policy()
      if self.has_longer_rows:
        yield self.longest_policy()

  # Updates.

  def supervised(self, stage: str) -> Program:
    settings = self.config[stage]
    learner, state = self._learner(stage), self._state(stage)
    shape = (settings.batch_size, settings.max_length)
    return Program(
      name=f"{stage} update",
      function=Learner.update_supervised,
      branches=True,
      arguments=(learner, state, self._sequences(*shape)),
      parts=self._parts(state),
      working=self._working(state, shape, learner.microbatches),
      **self._scored(shape, learner.microbatches),
      tokens=math.prod(shape),
      model_flops=self._model_flops(stage, shape),
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
    pieces = learner.pieces(load.update_rows)
    scored = self._scored(shape, pieces, self._response_share())
    model_flops = self._model_flops("srl", shape, self._response_share())
    rehearsal = None
    if srl.rehearsal_weight > 0:
      rehearsed = (srl.rehearsal_rows, self.config.pam.max_length)
      rehearsal = self._sequences(*rehearsed)
      model_flops += self._model_flops("srl", rehearsed)
      # Two loops of about equal turns, which a program counts alike: the mean of their numbers.
      other = self._scored(rehearsed, learner.microbatches)
      scored["trips"] = (scored["trips"] + other["trips"]) / 2
    settings = losses.policy_settings(srl)
    return Program(
      name="srl update",
      function=Learner.update_policy,
      branches=True,
      arguments=(learner, state, batch, rehearsal, settings, np.float32(srl.rehearsal_weight)),
      parts=self._parts(state),
      resident=self._reference(),
      working=self._working(state, shape, pieces),
      **scored,
      calls=inner,
      tokens=math.prod(shape),
      model_flops=model_flops,
    )

  @property
  def has_longer_rows(self) -> bool:
    return len(packing.row_lengths(self.config.srl)) > 1

  def longest_policy(self) -> Program:
    """The SRL update on as many rows of the greatest length, if `srl.longer_rows` has longer.

    A step takes them where they leave less padding, so they must fit. Responses at their limits
    leave less in rows of the usual length: it is no part of the step that is planned.
    """
    length = max(packing.row_lengths(self.config.srl))
    load = dataclasses.replace(self.workload, update_length=length)
    longest = dataclasses.replace(self, workload=load).policy()
    return dataclasses.replace(longest, name="longest srl update", calls=0)

  def score(self) -> Program:
    """Log-probabilities of the reference, of the old policy, or of both."""
    srl, load = self.config.srl, self.workload
    learner, state = self._learner("srl"), self._state("srl")
    batch = self._sequences(load.update_rows, load.update_length)
    beside = {"moments": state.opt_state, "moving average": state.average}
    scored, pieces = state.whole(), learner.pieces(load.update_rows)
    if srl.kl_coef > 0:  # the reference's, beside which the policy's stand
      scored = state.whole(self.reference)
      beside["policy"] = state.params
    return Program(
      name="score",
      function=Learner.score,
      arguments=(learner, scored, batch, np.float32(srl.temperature)),
      parts={"parameters": scored},
      resident=beside | self._decoded_reference(),
      branches=pieces > 1,  # whether a microbatch has a response is a condition
      **self._scored((load.update_rows, load.update_length), pieces, self._response_share()),
      calls=self._scores(),
      tokens=load.update_rows * load.update_length,
    )

  def _scores(self) -> int:
    srl = self.config.srl
    old = srl.inner_batches * srl.inner_epochs > 1
    return srl.inner_batches * (old + (srl.kl_coef > 0))

  # Sampling.

  @functools.cached_property
  def engine(self) -> Engine:
    return setup.make_engine(
      self.config, self.model, self.mesh, self.model.vocab_size, self.config.rollout.slots
    )

  def reshard(self) -> Program:
    state = self._state("srl")

    def lay_out(params):
      return self.engine.lay_out(lora.merged(params, self.model.dtype))

    return Program(
      name="reshard",
      function=jax.jit(lay_out, out_shardings=self.engine.shardings),
      arguments=(state.whole(),),
      parts={"parameters": state.whole(), "parameters laid out": self.decoded_params},
      resident={"moments": state.opt_state, "moving average": state.average} | self._reference(),
      calls=2 if self.config.feedback.teacher == "ema" else 1,
    )

  def prefill(self) -> Program:
    load = self.workload
    rows = load.prefill_prompts
    numbers = self._rows((rows,), jnp.int32)
    width = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    # No logits are taken: an output table of its own is no argument of what is compiled.
    read = {name: leaf for name, leaf in self.decoded_params.items() if name != "head"}
    beside = self._beside_sampling() | {"cache": self._slots().cache}
    if "head" in self.decoded_params:
      beside["output table"] = self.decoded_params["head"]
    return Program(
      name="prefill",
      function=slots.prefill,
      arguments=(
        self.decoded_params,
        self._rows((rows, load.prompt_length), jnp.int32),
        numbers,
        self._rows((rows, *width), jnp.uint32),
        numbers,
        jax.tree.map(
          lambda leaf: self._rows((rows, *leaf.shape), leaf.dtype), make_sampling(1.0, (1,))
        ),
        numbers,
      ),
      keywords={"config": self.engine.decoding, "mesh": self.mesh},
      parts={"parameters": read},
      resident=beside,
      calls=load.prefills,
      tokens=rows * load.prompt_length,
    )

  def decode(self) -> Program:
    load, held = self.workload, self._slots()
    steps = self.config.rollout.refill_steps
    return Program(
      name="decode",
      function=slots.decode,
      arguments=(self.decoded_params, held),
      keywords={
        "config": self.engine.decoding,
        "mesh": self.mesh,
        "steps": steps,
        "valid_vocab": self.model.vocab_size,
      },
      parts={"parameters": self.decoded_params, "cache": held.cache},
      resident=self._beside_sampling(),
      vocabulary=self._vocabulary,
      logits=load.slots * self._vocabulary // meshes.row_parts(self.mesh),
      calls=load.decodes,
      tokens=load.slots * steps,
      trips=steps,
    )

  def _beside_sampling(self) -> dict[str, Any]:
    """What is on the devices while responses and solutions are sampled."""
    state = self._state("srl")
    beside = {"policy": self.copied, "moments": state.opt_state, "moving average": state.average}
    return beside | {"adapters": self.adapters} | self._reference()

  def _slots(self) -> slots.Slots:
    rollout, model = self.config.rollout, self.engine.decoding
    shapes = jax.eval_shape(
      functools.partial(
        slots.empty,
        config=model,
        mesh=self.mesh,
        rows=self.workload.slots,
        length=self.workload.row_length,
        steps=rollout.refill_steps,
        dtype=rollout.cache_dtype or model.dtype,
      )
    )
    leaves, structure = jax.tree.flatten(shapes)
    return structure.unflatten(
      jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
      for leaf, sharding in zip(leaves, slots.shardings(shapes, self.mesh, model), strict=True)
    )

  # Abstract arguments.

  def _learner(self, stage: str) -> Learner:
    return setup.make_learner(self.config, stage, self.model, self.model.vocab_size)

  def _state(self, stage: str) -> TrainState:
    learner, trained, frozen = self._learner(stage), self.params, None
    if self.adapters is not None and stage != "base":
      trained = self.adapters
      frozen = lora.Frozen(self.params, origins.lora_settings(self.config), origin="")
    average = stage == "srl" and self.config.feedback.teacher == "ema"
    return learner.abstract(trained, average, frozen)

  def _parts(self, state: TrainState) -> dict[str, Any]:
    return {
      "parameters": state.whole(),
      "moments": state.opt_state,
      "gradients": state.params,
      "moving average": state.average,
    }

  def _reference(self) -> dict[str, Any]:
    """The frozen stage-1 parameters, where a step needs them, laid out too if they answer."""
    held = {"reference": self.reference} if setup.needs_reference(self.config) else {}
    return held | self._decoded_reference()

  def _decoded_reference(self) -> dict[str, Any]:
    frozen = self.config.feedback.teacher == "reference"
    return {"reference laid out": self.decoded_params} if frozen else {}

  def _sequences(self, rows: int, length: int) -> losses.Sequences:
    numbers = self._rows((rows, length), jnp.int32)
    return losses.Sequences(numbers, numbers, numbers, self._rows((rows, length), jnp.float32))

  def _rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
    """An abstract array split by rows, where an array is expected."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.batch_sharding(self.mesh))

  @property
  def _vocabulary(self) -> int:
    """Logits of a token on one device."""
    vocabulary, tensor = self.model.vocab_size, self.mesh.shape["tensor"]
    return vocabulary if vocabulary % tensor else vocabulary // tensor

  def _model_flops(self, stage: str, shape: tuple[int, int], share: float = 1.0) -> float:
    """Operations of an update without recomputation and without attention's scores.

    Two a weight and token forward and four backward, of which two are the weight's gradient.

    Args:
      stage: whose update.
      shape: rows and tokens.
      share: of the tokens that have logits.
    """
    tokens, tables = math.prod(shape), 1 if self.model.tie_embeddings else 2
    table = self.model.vocab_size * self.model.embed_dim
    layers = setup.parameter_count(self.params) - tables * table
    each = 4 if self.adapters is not None and stage != "base" else 6
    return each * (layers + share * table) * tokens

  def _response_share(self) -> float:
    """Of an SRL row's tokens, where prompts and responses are at their limits."""
    srl = self.config.srl
    return srl.max_new_tokens / (srl.max_prompt_length + srl.max_new_tokens)

  def _working(self, state: TrainState, shape: tuple[int, int], pieces: int) -> int:
    """Bytes on one device that an update cannot do without while it sums the table's gradient.

    The sums over microbatches; the output table, gathered; its gradient of the device's own rows;
    and of each layer what its recomputation starts from. Other activations and logits come on top.

    Args:
      state: of the stage.
      shape: rows and tokens of its whole batch.
      pieces: its microbatches.
    """
    model, mesh = self.model, self.mesh
    width = jnp.dtype(model.dtype).itemsize
    table = self._vocabulary * model.embed_dim
    working = device_bytes(state.params) if pieces > 1 else 0
    if mesh.shape["fsdp"] > 1:
      working += table * width
    if state.frozen is None:
      working += table * jnp.dtype(jnp.float32).itemsize
    if model.remat != "none":
      tokens = math.prod(shape) // (pieces * meshes.row_parts(mesh))
      working += model.num_layers * tokens * model.embed_dim * width
    return working

  def _scored(self, shape: tuple[int, int], pieces: int, share: float = 1.0) -> dict[str, Any]:
    """The logits that one device has at a time, and how many such chunks a microbatch has.

    Args:
      shape: rows and tokens of a program's whole batch.
      pieces: its microbatches.
      share: of the tokens that have a weight.
    """
    tokens = math.prod(shape) // (pieces * meshes.row_parts(self.mesh))
    size = chunk_size(tokens, self._vocabulary)
    return {
      "vocabulary": self._vocabulary,
      "logits": size * self._vocabulary,
      "trips": math.ceil(share * tokens / size),
    }
