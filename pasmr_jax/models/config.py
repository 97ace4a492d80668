"""The shape of a decoder-only transformer, as one frozen record.

One record describes Gemma 2 and 3, Llama 3, Qwen 2.5 and 3 and Mistral: what differs between these
families is a field here and a branch in `layers.py` or `attention.py`, never a second model
(`families.py` says which family has what). The record is hashable, so it may be a static argument
of `jax.jit`.
"""

import dataclasses
import math

_ACTIVATIONS = ("gelu_tanh", "silu")
_DTYPES = ("float32", "bfloat16", "float16")
_KINDS = ("local", "global")
# How a model is computed may change between runs; what it is may not.
COMPUTED = ("dtype", "param_dtype", "remat", "scan_unroll", "attention")
_REMAT = ("none", "full", "dots")
ATTENTIONS = ("auto", "xla", "splash")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Sizes and switches of one decoder. Raises ValueError, naming the field, on a bad value."""

  # Sizes.
  vocab_size: int  # rows of the embedding table, padding rows included
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int  # each is shared by num_heads / num_kv_heads query heads
  head_dim: int
  mlp_dim: int
  query_scale: float  # queries are multiplied by it; usually head_dim ** -0.5

  # Attention. Layer i is of the kind attention_pattern[i % len(attention_pattern)].
  attention_pattern: tuple[str, ...] = ("global",)
  sliding_window: int = 4096  # a token of a local layer sees itself and the window - 1 before it
  rope_base_global: float = 10_000.0
  rope_base_local: float = 10_000.0
  rope_scale_global: float = 1.0  # positions of global layers are divided by it
  rope_scale_local: float = 1.0  # positions of local layers are divided by it
  # Llama 3's scaling, in every layer: slow rotations are divided by the factor, fast ones kept. A
  # rotation's speed is how often it turns in `length` positions: slow is at most `low_freq` times,
  # fast at least `high_freq` times, and in between the divisor goes from one to the other.
  rope_llama3_factor: float = 1.0  # 1 is off
  rope_llama3_low_freq: float = 1.0
  rope_llama3_high_freq: float = 4.0
  rope_llama3_length: int = 8192  # positions the model was trained on before it was scaled
  qk_norm: bool = False  # RMSNorm over head_dim of queries and keys, before the rotation
  attention_bias: bool = False  # biases of the query, key and value projections
  attention_softcap: float | None = None  # scores become cap * tanh(scores / cap)

  # Everything around attention.
  post_norms: bool = False  # RMSNorm of each branch's output before it joins the residual
  norm_plus_one: bool = False  # the norm multiplies by 1 + weight (Gemma), not by weight
  norm_eps: float = 1e-6
  activation: str = "silu"  # 'gelu_tanh' (Gemma) or 'silu' (Llama, Qwen)
  tie_embeddings: bool = True  # the output table is the embedding table
  scale_embeddings: bool = False  # embeddings are multiplied by sqrt(embed_dim)
  final_softcap: float | None = None  # logits become cap * tanh(logits / cap)

  # How it is computed.
  dtype: str = "float32"  # of activations and of weights when they are used
  param_dtype: str = "float32"  # of stored weights
  remat: str = "none"  # recompute in the backward pass: nothing, whole layers, all but products
  scan_unroll: int = 1  # layers to a turn of the layer loop; small models decode faster unrolled
  stacked: bool = True  # one loop over stacked weights; else layers and weights one by one
  attention: str = "auto"  # of rows without a cache: 'xla', 'splash' (kernel), or by platform

  def __post_init__(self):
    sizes = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    for name in (*sizes, "mlp_dim", "sliding_window", "rope_llama3_length", "scan_unroll"):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _reject(name, value, "a positive integer")
    for field in dataclasses.fields(self):
      if field.type is float:
        _check_positive(field.name, getattr(self, field.name))
    for name in ("attention_softcap", "final_softcap"):
      if getattr(self, name) is not None:
        _check_positive(name, getattr(self, name))
    for name, allowed in (
      ("activation", _ACTIVATIONS),
      ("dtype", _DTYPES),
      ("param_dtype", _DTYPES),
      ("remat", _REMAT),
      ("attention", ATTENTIONS),
    ):
      if getattr(self, name) not in allowed:
        _reject(name, getattr(self, name), f"one of {', '.join(allowed)}")
    for field in dataclasses.fields(self):
      if field.type is bool and not isinstance(getattr(self, field.name), bool):
        _reject(field.name, getattr(self, field.name), "True or False")

    pattern = self.attention_pattern
    if not isinstance(pattern, tuple) or not pattern or any(k not in _KINDS for k in pattern):
      _reject("attention_pattern", pattern, "a non-empty tuple of 'local' and 'global'")
    if self.num_heads % self.num_kv_heads:
      _reject("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads={self.num_heads}")
    if self.rope_llama3_high_freq <= self.rope_llama3_low_freq:
      more = f"more than rope_llama3_low_freq={self.rope_llama3_low_freq}"
      _reject("rope_llama3_high_freq", self.rope_llama3_high_freq, more)
    if self.head_dim % 2:
      _reject("head_dim", self.head_dim, "an even number, because rotary embedding pairs entries")

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """'local' or 'global' for every layer in order."""
    pattern = self.attention_pattern
    return tuple(pattern[layer % len(pattern)] for layer in range(self.num_layers))


def _check_positive(name: str, value: object) -> None:
  if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
    return
  _reject(name, value, "a positive finite number")


def _reject(name: str, found: object, expected: str) -> None:
  raise ValueError(f"TransformerConfig.{name}: found {found!r}, expected {expected}")
