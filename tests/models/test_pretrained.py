"""Reading weights: sharded, in several files, in little memory; and what is wrong with a folder."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import checkpoints  # beside this file; skips where torch is absent
import jax
import numpy as np
import pytest
from safetensors import torch as safetensors_torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from pasmr_jax.models import pretrained, writing
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.transformer import param_shapes
from pasmr_jax.models.writing import find_layout, write_model
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.parallel.rules import DECODING, TRAINING
from pasmr_jax.text.vocabularies import read_vocabulary
from tests import runs

READING = str(pathlib.Path(__file__).with_name("reading.py"))


@pytest.fixture(scope="module", params=["gemma3", "qwen2"])
def folder(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  checkpoints.random_model(request.param).save_pretrained(folder, max_shard_size="20KB")
  return folder


@pytest.mark.parametrize("rules", [TRAINING, DECODING], ids=["training", "decoding"])
def test_parameters_are_read_into_their_shardings(folder, rules):
  config = load_config(folder)
  shardings = param_shardings(config, make_mesh(-1, 2), rules)
  sharded = load_params(folder, config, shardings, "bfloat16")
  whole = load_params(folder, config)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, sharded, shardings)))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b.astype("bfloat16"))),
    sharded,
    whole,
  )


def test_tokens_that_the_checkpoint_does_not_know_begin_as_the_mean_of_others(folder):
  """Sharded too; rows for which there is no token are zero."""
  config = load_config(folder)
  grown = dataclasses.replace(config, vocab_size=128)
  shardings = param_shardings(grown, make_mesh(-1, 2), TRAINING)
  new_rows = {95: (5, 6), 96: (7,), 97: (8, 9, 10)}
  params, before = (
    load_params(folder, grown, shardings, new_rows=new_rows),
    load_params(folder, config),
  )
  assert ("head" in params) == (not config.tie_embeddings)
  for name in {"embedding", "head"} & params.keys():
    found, old = np.asarray(params[name]), np.asarray(before[name])
    assert found.shape == (128, 32)
    np.testing.assert_array_equal(found[:95], old[:95])
    for row, tokens in new_rows.items():
      np.testing.assert_allclose(found[row], old[list(tokens)].mean(axis=0), atol=1e-6)
    assert (found[98:] == 0).all()
  jax.tree.map(np.testing.assert_array_equal, params["layers"], before["layers"])
  with pytest.raises(
    ValueError, match=r"embed_tokens.weight: found \[96, 32\], expected \[128, 32\]"
  ):
    load_params(folder, grown)


def test_a_bar_shows_how_far_reading_is(folder, monkeypatch):
  bars = []

  class Watched(pretrained.Progress):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      bars.append(self)

  monkeypatch.setattr(pretrained, "Progress", Watched)
  config = load_config(folder)
  load_params(folder, config)
  load_params(folder, config, show_progress=True)
  assert [bar.disable for bar in bars] == [True, False]
  (task,) = bars[1].tasks
  # A step for each tensor of each layer, and for those outside of layers.
  assert task.finished
  inside = len(jax.tree.leaves(param_shapes(config)["layers"]))
  outside = len(jax.tree.leaves(param_shapes(config))) - inside
  assert task.total == config.num_layers * inside + outside


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """A model of 240 MB in float32, in files of bfloat16, and the bytes of its largest tensor."""
  config = TransformerConfig(
    vocab_size=8192,
    embed_dim=1024,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=6144,
    query_scale=128**-0.5,
    tie_embeddings=False,
  )
  folder = tmp_path_factory.mktemp("large")
  params = jax.tree.map(lambda shape: np.full(shape.shape, 0.5, np.float32), param_shapes(config))
  layout = find_layout(config, config.vocab_size, {"max_position_embeddings": 64}, "bfloat16")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(writing, "MAX_SHARD_BYTES", 30_000_000)
    write_model(folder, layout, params, "bfloat16")
  assert len(list(folder.glob("*.safetensors"))) > 3
  return folder, 4 * config.vocab_size * config.embed_dim


def anonymous_bytes(process: int) -> int:
  """Memory of a process that no file stands behind."""
  lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
  return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(), reason="memory is read in /proc"
)
def test_the_host_holds_little_more_than_one_tensor(large, compiled):
  """Besides its share of the parameters, on CPU all: 1.3 times the largest tensor."""
  folder, largest = large
  # So that what is freed is given back at once, and the peak is of what is held.
  environment = runs.environment(compiled, devices=4) | {"MALLOC_MMAP_THRESHOLD_": "65536"}
  command = [sys.executable, READING, folder, "2", "2"]
  with subprocess.Popen(
    command,
    env=environment | {"PYTHONPATH": str(runs.ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdin is not None
    assert process.stdout is not None
    begun = json.loads(process.stdout.readline())
    before = anonymous_bytes(begun["process"])
    process.stdin.write("go on\n")
    process.stdin.flush()
    peak, done = before, []
    watching = threading.Thread(target=lambda: done.append(process.stdout.readline()))
    watching.start()
    while not done:
      peak = max(peak, anonymous_bytes(begun["process"]))
      time.sleep(0.001)
    watching.join()
    assert done[0].startswith("read")
    process.stdin.write("end\n")
  assert process.returncode == 0
  above = peak - before - begun["size"]
  print(f"{above / largest:.2f} of the largest tensor above the parameters")
  assert begun["size"] > 7 * largest
  assert above < 1.3 * largest


@pytest.mark.slow
def test_each_process_reads_what_its_devices_hold(large, compiled):
  """Two processes of two devices, parameters split over all four: half of it each, once."""
  folder, _ = large
  environment = runs.environment(compiled, devices=2) | {"PYTHONPATH": str(runs.ROOT)}
  said = runs.run_two_processes([sys.executable, READING, str(folder), "4", "1"], environment)
  for text in said:
    counts = json.loads(text.splitlines()[-1])
    assert counts["read"] == counts["held"]
    assert counts["held"] == pytest.approx(counts["total"] / 2, rel=0.01)


@pytest.fixture
def broken(tmp_path):
  """A folder of a Gemma 3 whose files a test then spoils."""
  checkpoints.FAMILIES["gemma3"]().save_pretrained(tmp_path)
  return tmp_path


def test_all_tensors_that_do_not_fit_are_listed_at_once(broken):
  file = broken / "model.safetensors"
  tensors = safetensors_torch.load_file(file)
  del tensors["model.norm.weight"]
  tensors["model.layers.9.mlp.up_proj.weight"] = checkpoints.torch.zeros(2, 3)
  tensors["model.layers.1.self_attn.q_norm.weight"] = checkpoints.torch.zeros(7)
  safetensors_torch.save_file(tensors, file, metadata={"format": "pt"})
  with pytest.raises(ValueError, match="3 tensors") as error:
    load_params(broken, load_config(broken))
  message = str(error.value)
  assert "missing model.norm.weight [32]" in message
  assert "not expected model.layers.9.mlp.up_proj.weight [2, 3]" in message
  assert "model.layers.1.self_attn.q_norm.weight: found [7], expected [8]" in message


def test_a_head_of_its_own_is_not_thrown_away(broken):
  """Where config.json ties it: an equal one is the embedding again, another was trained."""
  file, config = broken / "model.safetensors", load_config(broken)
  assert config.tie_embeddings
  expected, tensors = load_params(broken, config), safetensors_torch.load_file(file)
  head = tensors["model.embed_tokens.weight"].clone()
  for changed in (False, True):
    head[-1, -1] += changed
    safetensors_torch.save_file(tensors | {"lm_head.weight": head}, file)
    if changed:
      with pytest.raises(ValueError, match=r"lm_head\.weight is another; expected tie_word"):
        load_params(broken, config)
    else:
      jax.tree.map(np.testing.assert_array_equal, load_params(broken, config), expected)
  del tensors["model.embed_tokens.weight"]  # is what is told where there is none
  safetensors_torch.save_file(tensors | {"lm_head.weight": head}, file)
  with pytest.raises(ValueError, match=r"missing model\.embed_tokens\.weight"):
    load_params(broken, config)


def test_a_rope_that_is_not_supported_is_refused_by_name(broken):
  file = broken / "config.json"
  config = json.loads(file.read_text())
  full = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
  config["rope_parameters"]["full_attention"] = full
  file.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="rope_type = 'yarn' is not supported"):
    load_config(broken)


def test_a_multimodal_checkpoint_gives_its_text_model(broken, tmp_path_factory):
  whole = tmp_path_factory.mktemp("multimodal")
  text = json.loads((broken / "config.json").read_text())
  (whole / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
  tensors = safetensors_torch.load_file(broken / "model.safetensors")
  renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
  renamed["vision_tower.vision_model.embeddings.patch_embedding.bias"] = checkpoints.torch.zeros(3)
  renamed["multi_modal_projector.mm_input_projection_weight"] = checkpoints.torch.zeros(3)
  safetensors_torch.save_file(renamed, whole / "model.safetensors")
  assert load_config(whole) == load_config(broken)
  config = load_config(whole)
  found, expected = load_params(whole, config), load_params(broken, config)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_path_that_is_nothing_is_an_error():
  with pytest.raises(FileNotFoundError, match="found no such folder, and it is not a hub id"):
    load_config("./nowhere")
  with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf: found no such file"):
    load_config("nowhere.gguf")


def test_a_hub_id_with_a_revision_is_read_from_the_hub_cache(broken, tmp_path, monkeypatch):
  """The hub's own layout on disk, and no network: what a second start of a run finds."""
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  repository = tmp_path / "models--owner--tiny"
  PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel({"x": 0, "</s>": 1}, unk_token="x")), eos_token="</s>"
  ).save_pretrained(broken)
  shutil.copytree(broken, repository / "snapshots" / ("a" * 40))
  (repository / "refs").mkdir()
  (repository / "refs" / "v2").write_text("a" * 40)
  config = load_config("owner/tiny@v2")
  assert config == load_config(broken)
  found, expected = load_params("owner/tiny@v2", config), load_params(broken, config)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert read_vocabulary("owner/tiny@v2").id_of("</s>") == 1
  with pytest.raises(FileNotFoundError, match=r"main|cached|snapshot"):
    load_config("owner/tiny")  # revision main is not there


def test_pickled_weights_are_not_read(broken):
  (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
  with pytest.raises(
    FileNotFoundError, match=r"no model\.safetensors; pytorch_model\.bin may hold"
  ):
    load_params(broken, load_config(broken))


def test_code_in_a_folder_is_not_run(broken):
  """A config or tokenizer that names its own Python files is read without them, or refused."""
  mark = broken / "was_run"
  (broken / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
  file = broken / "config.json"
  own = {"auto_map": {"AutoConfig": "own.Config"}}
  file.write_text(json.dumps(json.loads(file.read_text()) | own))
  assert load_config(broken).num_layers == 4
  named = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
  (broken / "tokenizer_config.json").write_text(json.dumps(named))
  (broken / "tokenizer.json").write_text("{}")  # so that transformers is asked
  with pytest.raises(ValueError, match="transformers says"):
    read_vocabulary(str(broken))
  assert not mark.exists()
