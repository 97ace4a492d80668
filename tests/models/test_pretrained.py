"""Reading weights: sharded, in several files, in little memory; and what is wrong with a folder."""

import dataclasses
import json
import shutil
import tracemalloc

import checkpoints  # beside this file; skips where torch is absent
import jax
import numpy as np
import pytest
from safetensors import torch as safetensors_torch

from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.parallel.rules import DECODING, TRAINING


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


def test_the_host_holds_little_more_than_one_tensor(tmp_path):
  """Besides the parameters: 1.3 times the largest tensor, in the dtype that is asked for."""
  config = checkpoints.FAMILIES["llama"]().config
  config.vocab_size, config.hidden_size, config.intermediate_size = 8192, 512, 1024
  config.head_dim, config.num_hidden_layers = 64, 8
  model = type(checkpoints.FAMILIES["llama"]())(config).to(checkpoints.torch.bfloat16)
  model.save_pretrained(tmp_path)
  ours = load_config(tmp_path)
  load_params(tmp_path, ours)  # what is imported and compiled once
  largest, all_layers = 8192 * 512 * 4, 8 * 512 * 1024 * 4
  tracemalloc.start()
  params = load_params(tmp_path, ours)
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert largest < peak < 1.3 * largest + held
  assert all_layers >= largest
  np.testing.assert_array_equal(
    np.asarray(params["layers"]["mlp"]["up"][5]),
    model.model.layers[5].mlp.up_proj.weight.detach().float().numpy().T,
  )


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
  shutil.copytree(broken, repository / "snapshots" / ("a" * 40))
  (repository / "refs").mkdir()
  (repository / "refs" / "v2").write_text("a" * 40)
  config = load_config("owner/tiny@v2")
  assert config == load_config(broken)
  found, expected = load_params("owner/tiny@v2", config), load_params(broken, config)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  with pytest.raises(FileNotFoundError, match=r"main|cached|snapshot"):
    load_config("owner/tiny")  # revision main is not there
