"""Slots: rows that decode together, each at its own point of its own response.

Four programs work on them. `prefill` computes prompts once, `begin` lets samples of those prompts
take free slots, `decode` draws a few tokens for every slot in a jitted `while_loop`, and `gather`
moves the rows that go on into fewer slots, or more. `scheduler.py` decides when.

B slots, F prompts prefilled together, P their padded length, N rows that begin, T steps of one call
of `decode`, V vocabulary. Rows are split over the mesh by their leading axis, and so are prompts: a
prompt's samples take slots of the devices that hold it, so that nothing crosses over.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from pasmr_jax.models import transformer
from pasmr_jax.models.cache import Cache, KeyValues, begin_rows, init_cache, settle
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel.mesh import batch_sharding, row_axes
from pasmr_jax.rollout import sampling as drawing


class Prompts(flax.struct.PyTreeNode):
  """Prompts computed and ready to be sampled from."""

  prefix: tuple[KeyValues, ...]  # of each layer, left padded
  hidden: Float[Array, "F D"]  # at each prompt's last token
  lengths: Int[Array, " F"]
  keys: Key[Array, " F"]
  sampling: drawing.Sampling  # of each prompt
  limits: Int[Array, " F"]  # tokens a response may have


class Slots(flax.struct.PyTreeNode):
  """Rows while they are being written."""

  cache: Cache
  hidden: Float[Array, "B D"]  # from which the next token is drawn
  keys: Key[Array, " B"]  # the t-th token of a row is drawn with fold_in(key, t)
  drawn: Int[Array, " B"]  # tokens so far
  limits: Int[Array, " B"]
  alive: Bool[Array, " B"]  # not ended by a stop id or its limit
  sampling: drawing.Sampling


class Drawn(flax.struct.PyTreeNode):
  """What one call of `decode` drew; 0 where a row had ended."""

  tokens: Int[drawing.AnyArray, "B T"]
  logprobs: Float[drawing.AnyArray, "B T"]  # of softmax(logits / temperature): the policy
  counts: Int[drawing.AnyArray, " B"]  # tokens of this call
  alive: Bool[drawing.AnyArray, " B"]  # afterwards
  stopped: Bool[drawing.AnyArray, " B"]  # ended by a stop id in this call


@functools.partial(jax.jit, static_argnames=("config", "mesh", "rows", "length", "steps", "dtype"))
def empty(
  *,
  config: TransformerConfig,
  mesh: Mesh,
  rows: int,
  length: int,
  steps: int,
  dtype: str,
) -> Slots:
  """Free slots.

  Args:
    config: the model.
    mesh: over whose axes but `tensor` they are split.
    rows: B.
    length: tokens a row may have, prompt included.
    steps: T of `decode`.
    dtype: of the cache.
  """
  numbers, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
  slots = Slots(
    cache=init_cache(config, rows, length, steps, dtype),
    hidden=jnp.zeros((rows, config.embed_dim), config.dtype),
    keys=jax.vmap(jax.random.key)(numbers),
    drawn=numbers,
    limits=numbers,
    alive=numbers > 0,
    sampling=drawing.Sampling(
      temperature=floats,
      top_k=numbers,
      top_p=floats,
      min_p=floats,
      stop_ids=jnp.zeros((rows, drawing.MAX_STOP_IDS), jnp.int32),
    ),
  )
  return _hold(slots, mesh, config)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def prefill(
  params: Any,
  tokens: Int[Array, "F P"],
  lengths: Int[Array, " F"],
  key_data: Any,  # uint32 [F W], of a key a prompt
  ids: Int[Array, " F"],
  sampling: drawing.Sampling,
  limits: Int[Array, " F"],
  *,
  config: TransformerConfig,
  mesh: Mesh,
) -> Prompts:
  """Computes prompts, all their tokens at once.

  Args:
    params: model parameters.
    tokens: left padded.
    lengths: tokens of each prompt; 0 for padding of the batch.
    key_data: of the key that each prompt's noise comes from.
    ids: folded into it, what makes a prompt's noise its own.
    sampling: with a value a prompt.
    limits: tokens a response may have.
    config: the model.
    mesh: over whose axes but `tensor` prompts are split.
  """
  columns = jnp.arange(tokens.shape[1])[None, :]
  starts = tokens.shape[1] - lengths
  segment_ids = (columns >= starts[:, None]).astype(jnp.int32)
  positions = jnp.maximum(columns - starts[:, None], 0)
  model = transformer.Transformer(config, keep=True)
  computed = model.apply({"params": params}, tokens, positions, segment_ids)
  hidden, prefix = cast(tuple[Array, tuple[KeyValues, ...]], computed)
  keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(key_data), ids)
  prompts = Prompts(prefix, hidden[:, -1], lengths, keys, sampling, limits)
  return _hold(prompts, mesh, config)


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="slots")
def begin(
  slots: Slots,
  prompts: Prompts,
  rows: Int[Array, " N"],
  sources: Int[Array, " N"],
  samples: Int[Array, " N"],
  counts: Int[Array, " devices"],
  *,
  config: TransformerConfig,
  mesh: Mesh,
) -> Slots:
  """Lets samples of prompts take slots.

  Args:
    slots: donated.
    prompts: from `prefill`.
    rows: the slot of each row that begins, counted from its device's first.
    sources: its prompt, counted likewise.
    samples: which sample of its prompt it is; its noise is `fold_in(prompt's key, sample)`.
    counts: how many rows begin on each device; `rows`, `sources` and `samples` are split into
      equal parts of which the first so many are read.
    config: the model.
    mesh: over whose axes but `tensor` slots and prompts are split.
  """

  def on_device(slots: Slots, prompts: Prompts, rows, sources, samples, counts) -> Slots:
    count = counts[0]
    cache = begin_rows(slots.cache, prompts.prefix, prompts.lengths, rows, sources, count)
    keys = jax.vmap(jax.random.fold_in)(prompts.keys[sources], samples)
    # Rows that are not meant are put out of range, where a scatter drops them.
    rows = jnp.where(jnp.arange(rows.shape[0]) < count, rows, slots.alive.shape[0])

    def put(old, new):
      return old.at[rows].set(new.astype(old.dtype), mode="drop")

    return Slots(
      cache=cache,
      hidden=put(slots.hidden, prompts.hidden[sources]),
      keys=slots.keys.at[rows].set(keys, mode="drop"),
      drawn=put(slots.drawn, jnp.zeros_like(rows)),
      limits=put(slots.limits, prompts.limits[sources]),
      alive=put(slots.alive, prompts.limits[sources] > 0),
      sampling=jax.tree.map(
        lambda old, new: put(old, new[sources]), slots.sampling, prompts.sampling
      ),
    )

  begun = _by_rows(on_device, mesh)(slots, prompts, rows, sources, samples, counts)
  return _hold(begun, mesh, config)


@functools.partial(
  jax.jit, static_argnames=("config", "mesh", "steps", "valid_vocab"), donate_argnames="slots"
)
def decode(
  params: Any, slots: Slots, *, config: TransformerConfig, mesh: Mesh, steps: int, valid_vocab: int
) -> tuple[Slots, Drawn, Int[Array, ""]]:
  """Draws up to `steps` tokens for every slot whose row goes on; stops when all have ended.

  Only shapes and `steps` compile; how to draw and when to stop are arrays. Returns the slots, what
  was drawn, and the steps taken.

  Args:
    params: model parameters.
    slots: donated.
    config: the model.
    mesh: over whose axes but `tensor` rows are split.
    steps: T.
    valid_vocab: ids from here on are never drawn.
  """
  table = transformer.output_table(params, config)
  rows = slots.alive.shape[0]

  def unfinished(state):
    slots, _, taken = state
    return (taken < steps) & slots.alive.any()

  def step(state):
    slots, drawn, taken = state
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.drawn)
    logits = transformer.logits(slots.hidden, table, config, valid_vocab)
    tokens, logprobs = drawing.sample(logits, keys, slots.sampling)
    alive = slots.alive
    stopped = alive & drawing.is_stop(tokens, slots.sampling)
    written = slots.drawn + alive

    def put(array, column):
      column = jnp.where(alive, column, 0).astype(array.dtype)
      return jax.lax.dynamic_update_slice_in_dim(array, column[:, None], taken, axis=1)

    still = alive & ~stopped & (written < slots.limits)
    drawn = Drawn(
      tokens=put(drawn.tokens, tokens),
      logprobs=put(drawn.logprobs, logprobs),
      counts=drawn.counts + alive,
      alive=still,
      stopped=drawn.stopped | stopped,
    )
    lengths = slots.cache.lengths
    hidden, cache = transformer.decode_step(params, tokens, slots.cache, config)
    # A row that has ended grows no further, or its positions would.
    cache = cache.replace(lengths=jnp.where(still, cache.lengths, lengths))
    slots = slots.replace(cache=cache, hidden=hidden, drawn=written, alive=still)
    return slots, drawn, taken + 1

  nothing = Drawn(
    tokens=jnp.zeros((rows, steps), jnp.int32),
    logprobs=jnp.zeros((rows, steps), jnp.float32),
    counts=jnp.zeros(rows, jnp.int32),
    alive=slots.alive,
    stopped=jnp.zeros(rows, bool),
  )
  state = (slots, nothing, jnp.int32(0))
  slots, drawn, taken = jax.lax.while_loop(unfinished, step, state)
  slots = slots.replace(cache=settle(slots.cache))
  # Each process reads its own rows.
  drawn = jax.lax.with_sharding_constraint(drawn, batch_sharding(mesh))
  return _hold(slots, mesh, config), drawn, taken


def gather(slots: Slots, rows: Int[Array, " N"], *, config: TransformerConfig, mesh: Mesh) -> Slots:
  """Other slots with these rows, each counted from its device's first slot; -1 is a free slot.

  The cache is deleted, one layer after the other: beside a whole one there is room for a layer
  more, but seldom for half of all.

  Args:
    slots: whose cache is deleted.
    rows: as many of each device.
    config: the model.
    mesh: over whose axes but `tensor` slots are split.
  """
  cache = slots.cache
  moved: list[Slots] = []  # with a cache of one layer each
  for ring, recent in zip(cache.rings, cache.recent, strict=True):
    layer = slots.replace(cache=cache.replace(rings=(ring,), recent=(recent,)))
    # Deleting only marks what a program still reads, so the program must have ended.
    moved.append(jax.block_until_ready(_gather(layer, rows, config=config, mesh=mesh)))
    for leaf in jax.tree.leaves((ring, recent)):
      leaf.delete()
  rings = tuple(one.cache.rings[0] for one in moved)
  recents = tuple(one.cache.recent[0] for one in moved)
  return moved[0].replace(cache=moved[0].cache.replace(rings=rings, recent=recents))


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def _gather(
  slots: Slots, rows: Int[Array, " N"], *, config: TransformerConfig, mesh: Mesh
) -> Slots:
  """The same in one program, without deleting."""

  def on_device(slots: Slots, rows) -> Slots:
    cache = slots.cache.replace(
      rings=jax.tree.map(lambda ring: ring[rows], slots.cache.rings),
      recent=jax.tree.map(lambda recent: recent[rows], slots.cache.recent),
      lengths=slots.cache.lengths[rows],
    )
    return Slots(
      cache=cache,
      hidden=slots.hidden[rows],
      keys=slots.keys[rows],
      drawn=slots.drawn[rows],
      limits=slots.limits[rows],
      alive=slots.alive[rows] & (rows >= 0),
      sampling=jax.tree.map(lambda leaf: leaf[rows], slots.sampling),
    )

  return _hold(_by_rows(on_device, mesh)(slots, rows), mesh, config)


def _by_rows(function: Callable[..., Slots], mesh: Mesh) -> Callable[..., Slots]:
  """The function on each device's own rows; what is split over `tensor` stays so."""
  axes = row_axes(mesh)

  def call(slots: Slots, *others: Any) -> Slots:
    leaves, structure = jax.tree.flatten((slots, *others))
    split = jax.shard_map(
      lambda *leaves: jax.tree.leaves(function(*structure.unflatten(leaves))),
      mesh=mesh,
      in_specs=tuple(_specs((slots, *others), axes)),
      out_specs=_specs(slots, axes),
      axis_names={*axes},
      check_vma=False,
    )
    return jax.tree.structure(slots).unflatten(split(*leaves))

  return call


def shardings(rows: Any, mesh: Mesh, config: TransformerConfig) -> list[NamedSharding]:
  """Of each leaf of slots or prompts."""
  tensor = mesh.shape["tensor"]
  heads = "tensor" if tensor > 1 and config.num_kv_heads % tensor == 0 else None
  return [NamedSharding(mesh, spec) for spec in _specs(rows, row_axes(mesh), heads)]


def _hold(rows: Any, mesh: Mesh, config: TransformerConfig) -> Any:
  """Holds slots or prompts where every program expects them."""
  leaves, structure = jax.tree.flatten(rows)
  held = map(jax.lax.with_sharding_constraint, leaves, shardings(rows, mesh, config))
  return structure.unflatten(held)


def _specs(tree: Any, axes: tuple[str, ...], heads: str | None = None) -> list[PartitionSpec]:
  """Of each leaf: rows over `axes`, heads of keys and values over `heads`; counters are whole."""
  specs = []
  for path, _ in jax.tree_util.tree_leaves_with_path(tree):
    names = [getattr(key, "name", None) for key in path]
    if "index" in names or "taken" in names:
      specs.append(PartitionSpec())
    elif {"rings", "recent", "prefix"} & {*names}:
      specs.append(PartitionSpec(axes, heads))
    else:
      specs.append(PartitionSpec(axes))
  return specs
