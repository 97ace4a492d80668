"""Reading pretrained weights: a Hugging Face folder or hub id of safetensors, or a GGUF file.

`load_config` reads the sizes and refuses, by name, what the decoder does not do. `load_params`
lists the tensors of the checkpoint, checks all their names and shapes against that config at once,
then fills one parameter leaf at a time: the layers' tensors are read, turned to our axes and
stacked on the host, and each device takes its part. The host holds one leaf besides the parameters.

A hub id may carry a revision: `owner/name@revision`.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params

Path = str | pathlib.Path


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

  def to_ours(self, stored: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
    """A view of the stored tensor with our axes."""
    order = [axis for group in self.axes for axis in group]
    return stored.reshape([ours[axis] for axis in order]).transpose(np.argsort(order))

  def from_ours(self, ours: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    order = [axis for group in self.axes for axis in group]
    return ours.transpose(order).reshape(self.shape(ours.shape))


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


def load_config(path: Path) -> TransformerConfig:
  """The config of a checkpoint: a folder with config.json, a `.gguf` file, or a hub id.

  Computation fields (dtype, remat, ...) keep their defaults: set them by `dataclasses.replace`.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: the architecture, or something it asks for, is not supported.
  """
  if _is_gguf(path):
    return _gguf_config(pathlib.Path(path))
  import transformers  # after the decision: reading GGUF needs none of it

  folder = _folder(path, ["config.json"])
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: found no config.json")
  model_type = json.loads((folder / "config.json").read_text()).get("model_type")
  if model_type not in _HUGGING_FACE:
    known = ", ".join(sorted(_HUGGING_FACE))
    raise ValueError(f"{folder}: found model_type {model_type!r}, supported are {known}")
  # transformers' own config class fills in what the file leaves to defaults, of old layouts too.
  found = transformers.AutoConfig.from_pretrained(folder)
  return _hugging_face_config(getattr(found, "text_config", found), str(folder))


def load_params(
  path: Path,
  config: TransformerConfig,
  shardings: Any | None = None,
  dtype: str | None = None,
) -> Any:
  """The parameters of a checkpoint, in `dtype` (config.param_dtype if None).

  Args:
    path: a folder of safetensors, a `.gguf` file, or a hub id.
    config: what `load_config` gave, computation fields aside.
    shardings: tree of Shardings as `parallel.mesh.param_shardings` makes; None is one device.
    dtype: of the parameters.

  Raises:
    ValueError: listing every tensor that is missing, not expected, or of another shape.
  """
  tensors = stored_tensors(config)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  target = np.dtype(jnp.dtype(config.param_dtype if dtype is None else dtype))
  reader = _gguf_reader if _is_gguf(path) else _safetensors_reader
  with reader(path, config) as (stored_shapes, name_of, read):
    _check(str(path), config, tensors, shapes, stored_shapes, name_of)

    def leaf(key_path, abstract, sharding):
      tensor = tensors[tuple(key.key for key in key_path)]
      stacked = key_path[0].key == "layers"
      shape = abstract.shape[1:] if stacked else abstract.shape
      host = np.empty(abstract.shape, target)
      for layer in range(config.num_layers) if stacked else (None,):
        at = ... if layer is None else layer
        host[at] = tensor.to_ours(read(name_of(tensor, layer)), shape)
      if sharding is None:
        return jax.device_put(host)
      return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if shardings is None:
      return jax.tree_util.tree_map_with_path(lambda p, shape: leaf(p, shape, None), shapes)
    return jax.tree_util.tree_map_with_path(leaf, shapes, shardings)


def _check(path, config, tensors, shapes, found, name_of):
  """Compares all names and shapes before anything is read."""
  expected: dict[str, tuple[int, ...]] = {}
  for key_path, abstract in jax.tree_util.tree_leaves_with_path(shapes):
    tensor = tensors[tuple(key.key for key in key_path)]
    if key_path[0].key == "layers":
      for layer in range(config.num_layers):
        expected[name_of(tensor, layer)] = tensor.shape(abstract.shape[1:])
    else:
      expected[name_of(tensor, None)] = tensor.shape(abstract.shape)
  problems = [f"missing {name} {list(expected[name])}" for name in expected.keys() - found.keys()]
  problems += [
    f"not expected {name} {list(found[name])}" for name in found.keys() - expected.keys()
  ]
  for name in expected.keys() & found.keys():
    if expected[name] != found[name]:
      problems.append(f"{name}: found {list(found[name])}, expected {list(expected[name])}")
  if problems:
    lines = "\n  ".join(sorted(problems))
    raise ValueError(f"{path} does not fit the model config ({len(problems)} tensors):\n  {lines}")


# --- Hugging Face folders -----------------------------------------------------------------------

_HUGGING_FACE = ("gemma2", "gemma3", "gemma3_text")
_KINDS = {"sliding_attention": "local", "full_attention": "global"}


def _is_gguf(path: Path) -> bool:
  return str(path).endswith(".gguf")


def _folder(path: Path, patterns: list[str]) -> pathlib.Path:
  """The folder itself, or the local snapshot of a hub id."""
  if pathlib.Path(path).is_dir():
    return pathlib.Path(path)
  name, _, revision = str(path).partition("@")
  if name.count("/") != 1 or name.startswith((".", "/", "~")):
    raise FileNotFoundError(
      f"{path}: found no such folder, and it is not a hub id 'owner/name' or 'owner/name@revision'"
    )
  import huggingface_hub

  return pathlib.Path(
    huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
  )


def _hugging_face_config(found: Any, where: str) -> TransformerConfig:
  gemma3 = found.model_type == "gemma3_text"

  def require(name: str, wanted: tuple[object, ...]) -> None:
    value = getattr(found, name, wanted[0])
    if value not in wanted:
      raise ValueError(f"{where}: {name} = {value!r} is not supported, only {wanted[0]!r}")

  require("hidden_activation", ("gelu_pytorch_tanh",))
  require("attention_bias", (False,))
  require("use_bidirectional_attention", (False, None))
  ropes = found.rope_parameters
  local = ropes["sliding_attention"] if gemma3 else ropes
  full = ropes["full_attention"] if gemma3 else ropes
  for rope, allowed in (
    (local, ("default",)),
    (full, ("default", "linear") if gemma3 else ("default",)),
  ):
    if rope["rope_type"] not in allowed:
      raise ValueError(
        f"{where}: rope_type = {rope['rope_type']!r} is not supported, only {', '.join(allowed)}"
      )
  return TransformerConfig(
    vocab_size=found.vocab_size,
    embed_dim=found.hidden_size,
    num_layers=found.num_hidden_layers,
    num_heads=found.num_attention_heads,
    num_kv_heads=found.num_key_value_heads,
    head_dim=found.head_dim,
    mlp_dim=found.intermediate_size,
    query_scale=found.query_pre_attn_scalar**-0.5,
    attention_pattern=_shortest(tuple(_KINDS[kind] for kind in found.layer_types)),
    sliding_window=found.sliding_window,
    rope_base_global=float(full["rope_theta"]),
    rope_base_local=float(local["rope_theta"]),
    rope_scale_global=float(full.get("factor", 1.0)),
    qk_norm=gemma3,
    attention_softcap=found.attn_logit_softcapping,
    final_softcap=found.final_logit_softcapping,
    norm_eps=found.rms_norm_eps,
    tie_embeddings=found.tie_word_embeddings,
    **_GEMMA,
  )


_GEMMA: Mapping[str, Any] = {
  "post_norms": True,
  "norm_plus_one": True,
  "activation": "gelu_tanh",
  "scale_embeddings": True,
}


def _shortest(kinds: tuple[str, ...]) -> tuple[str, ...]:
  """The shortest pattern that, repeated, gives the kinds of all layers."""
  for length in range(1, len(kinds) + 1):
    if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
      return kinds[:length]
  return kinds


@contextlib.contextmanager
def _safetensors_reader(path: Path, config: TransformerConfig) -> Iterator:
  import safetensors

  folder = _folder(path, ["*.json", "*.safetensors"])
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  else:
    files = ["model.safetensors"]
  absent = [name for name in files if not (folder / name).is_file()]
  if absent:
    raise FileNotFoundError(f"{folder}: found no {', '.join(absent)}")
  with contextlib.ExitStack() as stack:
    shapes, where = {}, {}
    for file in files:
      opened = stack.enter_context(safetensors.safe_open(folder / file, framework="np"))
      for stored in opened.keys():  # noqa: SIM118 (not a mapping)
        name = _text_name(stored, config)
        if name is not None:
          shapes[name] = tuple(opened.get_slice(stored).get_shape())
          where[name] = (opened, stored)

    def name_of(tensor: StoredTensor, layer: int | None) -> str:
      return tensor.hugging_face.format(layer)

    def read(name: str) -> np.ndarray:
      opened, stored = where[name]
      return opened.get_tensor(stored)

    yield shapes, name_of, read


def _text_name(name: str, config: TransformerConfig) -> str | None:
  """The name without a multimodal model's prefix; None for what the text model does not use."""
  if any(part in name for part in ("vision_tower.", "multi_modal_projector.")):
    return None
  for prefix in ("model.language_model.", "language_model.model."):
    if name.startswith(prefix):
      return "model." + name.removeprefix(prefix)
  name = name.removeprefix("language_model.")
  return None if config.tie_embeddings and name == "lm_head.weight" else name


# --- GGUF ---------------------------------------------------------------------------------------

# Metadata says neither which layers are local nor the query scale: llama.cpp knows both by
# architecture, the latter from the number of layers of the largest model, which scales by
# embed_dim / num_heads instead of head_dim.
_GGUF_PERIOD = {"gemma2": 2, "gemma3": 6}
_GGUF_LARGEST = {"gemma2": 46, "gemma3": 62}


def _gguf_config(path: pathlib.Path) -> TransformerConfig:
  import gguf

  if not path.is_file():
    raise FileNotFoundError(f"{path}: found no such file")
  reader = gguf.GGUFReader(path)
  fields = {
    name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name
  }
  family = fields.get("general.architecture")
  if family not in _GGUF_PERIOD:
    known = ", ".join(_GGUF_PERIOD)
    raise ValueError(f"{path}: found general.architecture {family!r}, supported are {known}")

  def field(name: str, default: Any = None) -> Any:
    value = fields.get(f"{family}.{name}", default)
    if value is None:
      raise ValueError(f"{path}: found no metadata key {family}.{name}")
    return value

  scaling = field("rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    raise ValueError(f"{path}: rope.scaling.type = {scaling!r} is not supported, only 'linear'")
  vectors = {tensor.name: tensor.shape for tensor in reader.tensors}
  embed_dim, vocab_size = (int(size) for size in vectors["token_embd.weight"])
  heads, layers, head_dim = (
    field("attention.head_count"),
    field("block_count"),
    field("attention.key_length"),
  )
  if field("attention.value_length", head_dim) != head_dim:
    raise ValueError(f"{path}: attention.value_length other than key_length is not supported")
  gemma3 = family == "gemma3"
  period = field("attention.sliding_window_pattern", _GGUF_PERIOD[family])
  base = float(field("rope.freq_base", 1e6 if gemma3 else 1e4))
  largest = layers == _GGUF_LARGEST[family]
  softcaps = {
    "attention_softcap": fields.get(f"{family}.attn_logit_softcapping", None if gemma3 else 50.0),
    "final_softcap": fields.get(f"{family}.final_logit_softcapping", None if gemma3 else 30.0),
  }
  return TransformerConfig(
    vocab_size=vocab_size,
    embed_dim=embed_dim,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=field("attention.head_count_kv"),
    head_dim=head_dim,
    mlp_dim=field("feed_forward_length"),
    query_scale=(embed_dim // heads if largest else head_dim) ** -0.5,
    attention_pattern=_shortest(
      tuple("global" if (i + 1) % period == 0 else "local" for i in range(layers))
    ),
    sliding_window=field("attention.sliding_window"),
    rope_base_global=base,
    rope_base_local=float(field("rope.freq_base_swa", 1e4)) if gemma3 else base,
    rope_scale_global=float(field("rope.scaling.factor")) if scaling == "linear" else 1.0,
    qk_norm=gemma3,
    norm_eps=round(float(field("attention.layer_norm_rms_epsilon")), 12),  # from float32
    tie_embeddings="output.weight" not in vectors,
    **softcaps,
    **_GEMMA,
  )


@contextlib.contextmanager
def _gguf_reader(path: Path, config: TransformerConfig) -> Iterator:
  import gguf

  tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
  # GGUF names the fastest axis first.
  shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}

  def name_of(tensor: StoredTensor, layer: int | None) -> str:
    return tensor.gguf.format(layer)

  def read(name: str) -> np.ndarray:
    values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    # llama.cpp multiplies by the norm weight alone, so its converter adds Gemma's one to it.
    return values - 1.0 if config.norm_plus_one and name.endswith("norm.weight") else values

  yield shapes, name_of, read
