"""The tensors of a checkpoint: what they are called, and how they hold our parameters."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pasmr_jax.models.config import TransformerConfig

VOCABULARY = (("embedding",), ("head",))  # the leaves with a row for each token
Cut = tuple[slice, ...]  # a part of a tensor: a slice for each of its axes, without steps


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Where a checkpoint keeps one parameter leaf; `{}` in a name is the layer.

  `axes` says how our axes (without `layers`) are laid out there: ((1, 2), (0,)) for a query [D N H]
  is the matrix [N*H, D]. Checkpoints keep matrices as [out, in], we keep the axes apart.
  """

  hugging_face: str
  gguf: str
  axes: tuple[tuple[int, ...], ...]

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape of a leaf of our shape (without `layers`)."""
    return tuple(math.prod(ours[axis] for axis in group) for group in self.axes)

  def cut(self, index: Sequence[slice], ours: tuple[int, ...]) -> Cut:
    """Where the part `index` of a leaf of our shape is stored.

    Raises ValueError if it does not lie in one piece: of the axes that share a stored axis only the
    first can be cut (heads, not head_dim).
    """
    found = []
    for first, *rest in self.axes:
      inner = math.prod(ours[axis] for axis in rest)
      if any(index[axis].indices(ours[axis])[:2] != (0, ours[axis]) for axis in rest):
        raise ValueError(f"{self.hugging_face}: axis {rest} of {ours} is split; it must be whole")
      start, stop, _ = index[first].indices(ours[first])
      found.append(slice(start * inner, stop * inner))
    return tuple(found)

  def as_stored(self, ours: np.ndarray) -> np.ndarray:
    """A leaf of ours (without `layers`), or a part of it, as it is stored: a view."""
    order = [axis for group in self.axes for axis in group]
    return np.reshape(ours.transpose(order), self.shape(ours.shape), copy=False)


_VECTOR, _MATRIX = ((0,),), ((1,), (0,))
_HEADS_OUT, _HEADS_IN = ((1, 2), (0,)), ((2,), (0, 1))


def stored_tensors(config: TransformerConfig) -> dict[tuple[str, ...], StoredTensor]:
  """For every leaf of the parameters, by its path, where checkpoints keep it."""
  layer, block = "model.layers.{}.", "blk.{}."

  def inside(ours, hugging_face, gguf, axes):
    return ("layers", *ours), StoredTensor(f"{layer}{hugging_face}", f"{block}{gguf}", axes)

  # In families with post-norms, `post_attention_layernorm` is one; elsewhere it precedes the MLP.
  mlp_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
  entries = [
    (("embedding",), StoredTensor("model.embed_tokens.weight", "token_embd.weight", ((0,), (1,)))),
    (("final_norm", "scale"), StoredTensor("model.norm.weight", "output_norm.weight", _VECTOR)),
    inside(("attention_norm", "scale"), "input_layernorm.weight", "attn_norm.weight", _VECTOR),
    inside(("mlp_norm", "scale"), f"{mlp_norm}.weight", "ffn_norm.weight", _VECTOR),
    inside(("attention", "query"), "self_attn.q_proj.weight", "attn_q.weight", _HEADS_OUT),
    inside(("attention", "key"), "self_attn.k_proj.weight", "attn_k.weight", _HEADS_OUT),
    inside(("attention", "value"), "self_attn.v_proj.weight", "attn_v.weight", _HEADS_OUT),
    inside(("attention", "output"), "self_attn.o_proj.weight", "attn_output.weight", _HEADS_IN),
    inside(("mlp", "gate"), "mlp.gate_proj.weight", "ffn_gate.weight", _MATRIX),
    inside(("mlp", "up"), "mlp.up_proj.weight", "ffn_up.weight", _MATRIX),
    inside(("mlp", "down"), "mlp.down_proj.weight", "ffn_down.weight", _MATRIX),
  ]
  if config.post_norms:
    for ours, theirs, gguf in (
      ("attention_post_norm", "post_attention_layernorm", "post_attention_norm"),
      ("mlp_post_norm", "post_feedforward_layernorm", "post_ffw_norm"),
    ):
      entries.append(inside((ours, "scale"), f"{theirs}.weight", f"{gguf}.weight", _VECTOR))
  for ours, letter in (("query", "q"), ("key", "k"), ("value", "v")):
    if config.attention_bias:
      bias = f"self_attn.{letter}_proj.bias", f"attn_{letter}.bias"
      entries.append(inside(("attention", f"{ours}_bias"), *bias, ((0, 1),)))
    if config.qk_norm and ours != "value":
      norm = f"self_attn.{letter}_norm.weight", f"attn_{letter}_norm.weight"
      entries.append(inside(("attention", f"{ours}_norm", "scale"), *norm, _VECTOR))
  if not config.tie_embeddings:
    entries.append((("head",), StoredTensor("lm_head.weight", "output.weight", ((0,), (1,)))))
  return dict(entries)


@dataclasses.dataclass(frozen=True)
class TensorSource:
  """An open checkpoint."""

  shapes: Mapping[str, tuple[int, ...]]  # of every tensor that concerns the text model
  name_of: Callable[[StoredTensor, int | None], str]  # of a leaf's tensor, in a layer
  read: Callable[[str, Cut], np.ndarray]  # a part of one tensor
