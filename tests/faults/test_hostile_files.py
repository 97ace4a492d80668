"""Hostile checkpoints and tokenizers of others: refused before anything is allocated."""

import json
import resource
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.models.transformer import param_shapes
from pasmr_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.faults

CONFIG = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 32,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 64,
  "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path):
  """A sound checkpoint."""
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  config = load_config(tmp_path)
  shapes = param_shapes(config)
  tensors = {}
  for path, tensor in stored_tensors(config).items():
    shape = shapes
    for key in path:
      shape = shape[key]
    ours = shape.shape[1:] if path[0] == "layers" else shape.shape
    tensors[tensor.hugging_face.format(0)] = np.zeros(tensor.shape(ours), np.float32)
  save_file(tensors, tmp_path / "model.safetensors")
  load_params(tmp_path, config)
  return tmp_path


def _configured(folder, **changes):
  (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def _refused(folder, error, match):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(error, match=match):
    load_params(folder, load_config(folder))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
  "changes",
  [
    {"hidden_size": 1 << 24, "num_attention_heads": 2},
    {"vocab_size": 1 << 40},
    {"intermediate_size": 1 << 40},
    {"num_hidden_layers": 1000},
  ],
)
def test_sizes_that_the_file_does_not_have_are_refused_before_allocation(folder, changes):
  _configured(folder, **changes)
  _refused(folder, ValueError, r"does not fit the model config|expected 1 to \d+")


@pytest.mark.parametrize(
  "changes",
  [
    {"num_attention_heads": 0},
    {"hidden_size": -16},
    {"num_hidden_layers": "many"},
    {"num_key_value_heads": 3},
    {"hidden_size": None},
  ],
)
def test_sizes_that_are_none_are_refused(folder, changes):
  _configured(folder, **changes)
  _refused(folder, ValueError, "config.json")


@pytest.mark.parametrize(
  "name", ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors"]
)
def test_an_index_that_leaves_its_folder_is_refused(folder, name):
  index = {"weight_map": {"model.norm.weight": name}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  _refused(folder, ValueError, "expected files in the same folder")


@pytest.mark.parametrize(
  "index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_refused(folder, index):
  (folder / "model.safetensors.index.json").write_text(index)
  _refused(folder, ValueError, "model.safetensors.index.json: expected")


def _header(values, length=None) -> bytes:
  text = json.dumps(values).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text


TERABYTES = {
  "model.norm.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
}


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x80\x04cos\nsystem\n",  # a pickle
    b"PK\x03\x04" + b"\0" * 64,  # torch's zip of pickles
    struct.pack("<Q", 1 << 60),
    _header(TERABYTES),
    _header(TERABYTES, 1 << 50),
    _header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}),
    _header([1, 2]),
  ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(folder, data):
  (folder / "model.safetensors").write_bytes(data)
  _refused(folder, ValueError, "model.safetensors: no readable safetensors file")


@pytest.mark.parametrize("cut", [0, 4, 8, 24, 100])
@pytest.mark.parametrize("claims", [(1 << 62, 0), (0, 1 << 62), (3, 3)])
def test_a_gguf_header_that_claims_too_much_is_refused(tmp_path, cut, claims):
  tensors, keys = claims
  data = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"\xff" * 100
  path = tmp_path / "model.gguf"
  path.write_bytes(data[:cut] if cut else data)
  with pytest.raises(ValueError, match=r"model\.gguf"):
    load_config(path)
  with pytest.raises(ValueError, match=r"model\.gguf"):
    load_tokenizer(str(path), "<pivot>", "</pivot>")


@pytest.mark.parametrize(
  "data", [b"", b"\x80\x04cos\nsystem\n", b"\xff" * 5000, b"\x0a" + b"\xff" * 9]
)
def test_a_tokenizer_that_is_none_is_refused(tmp_path, data):
  path = tmp_path / "tokenizer.model"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"tokenizer\.model"):
    load_tokenizer(str(path), "<pivot>", "</pivot>")


@pytest.mark.parametrize(
  "text", ["", "{", "[" * 100_000, '{"model": {}}', '{"model": {"type": "Pickle"}}']
)
def test_a_tokenizer_folder_that_is_none_is_refused(tmp_path, text):
  (tmp_path / "tokenizer.json").write_text(text)
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
  with pytest.raises(ValueError, match="tokenizer"):
    load_tokenizer(str(tmp_path), "<pivot>", "</pivot>")
