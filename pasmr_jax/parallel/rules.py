"""Two tables from the names on weights to the axes of the mesh.

Every weight names its dimensions (`embed`, `heads`, ...: see `models`). A table says which mesh
axis splits which name; changing how a model is laid out is changing a line here. TRAINING splits
weights over `fsdp` and `tensor` and gathers them layer by layer; nothing of a weight is split over
`replica`, so every replica holds it and gradients are summed over it. DECODING keeps whole every
dimension that training splits over `fsdp`: a token's work is too small to pay for gathering weights
each time.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

Rules = Mapping[str, tuple[str, ...]]  # logical axis -> mesh axes; a missing mesh axis is skipped

TRAINING: Rules = {
  "layers": (),
  "vocab": ("tensor",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "head_dim": (),
  "mlp": ("tensor",),
  "rank": (),  # of adapters
  "batch": ("replica", "fsdp"),
}

DECODING: Rules = {**TRAINING, "embed": ()}


def partition_specs(
  axes: Any, shapes: Any, mesh_shape: Mapping[str, int], rules: Rules
) -> tuple[Any, tuple[str, ...]]:
  """Mesh axes for every leaf, and a note for every kind of dimension that cannot be split.

  Args:
    axes: tree whose leaves are PartitionSpecs of logical names.
    shapes: the same tree with leaves that have a `shape`.
    mesh_shape: size of each mesh axis.
    rules: the table.

  Returns:
    The tree of PartitionSpecs of mesh axes, and the notes. A dimension that its mesh axis does not
    divide (one key/value head over two devices) is kept whole, and a note says so once.

  Raises:
    KeyError: a logical name that the table lacks.
  """
  notes: dict[str, None] = {}

  def leaf(names: PartitionSpec, array: Any) -> PartitionSpec:
    return PartitionSpec(
      *(
        _mesh_axes(name, size, mesh_shape, rules, notes)
        for name, size in zip(names, array.shape, strict=True)
      )
    )

  specs = jax.tree.map(leaf, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))
  return specs, tuple(notes)


def _mesh_axes(name, size, mesh_shape, rules, notes):
  if name not in rules:
    raise KeyError(f"logical axis {name!r} has no rule; known are {', '.join(sorted(rules))}")
  present = tuple(axis for axis in rules[name] if mesh_shape.get(axis, 1) > 1)
  devices = 1
  for axis in present:
    devices *= mesh_shape[axis]
  if size % devices:
    over = " x ".join(f"{axis}={mesh_shape[axis]}" for axis in present)
    notes[f"{name}: {size} is not divisible by {over}, so it is replicated"] = None
    return None
  if not present:
    return None
  return present[0] if len(present) == 1 else present
