"""A run with adapters: what is trained and saved, how it goes on, and what others read of it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import base, tiny
from pasmr_jax.experiment import exporting, origins, setup
from pasmr_jax.experiment.checkpoint import Checkpoints, Progress
from pasmr_jax.experiment.reliability import identity, weights
from pasmr_jax.models import lora
from pasmr_jax.models.transformer import Transformer
from tests import runs, tiny_model

RANK = 2


def _run(workdir, **changes):
  config = tiny.get_config()
  small = {"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
  config.model.update(small | {"mlp_dim": 32, "scan_unroll": 1})
  config.languages = ("de", "es")
  for pool in ("pivot", "translation", "target", "triplets", "srl", "development", "test"):
    config.data[pool] = ("synthetic:24",)
  for stage in ("base", "pam"):
    config[stage].batch_size = 8
  config.srl.update({"questions": 8, "group_size": 2, "update_rows": 8, "kl_coef": 0.5})
  config.srl.update({"rehearsal_weight": 0.0, "max_new_tokens": 24, "max_pivot_tokens": 8})
  config.feedback.pivot_samples = 2
  config.feedback.source = "random"  # an untrained model's answers say nothing,
  config.srl.mask_truncated = False  # and have no end
  config.srl.exact_entropy = True
  config.reward.gate = False
  config.lora.rank = RANK
  config.update_from_flattened_dict(changes)
  return setup.make_run(config, workdir)


def _train(run, name, steps):
  """Goes on with a stage for so many steps, saves, and gives the last state."""
  begun = weights.weights_checksum(run.config)
  now = identity.make_identity(run.config, run.pools, run.tokenizer, begun)
  checkpoints = Checkpoints(run.workdir, name, run.config.checkpoint, identity=now)
  stage = run.make_stage(name)
  state, _ = run.start(stage, checkpoints)
  for _ in range(steps):
    batch, _ = stage.batch(state, int(state.step))
    state, _ = stage.update(state, batch)
  checkpoints.save(state, stage.data_state(), Progress(), run.model, None)
  checkpoints.wait()
  checkpoints.close()
  return state


def _same(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def _hidden(run, params):
  tokens = jnp.arange(3, 19).reshape(2, 8)
  model = Transformer(run.model)
  ones = jnp.ones_like(tokens)
  apply = jax.jit(lambda params: model.apply(lora.variables(params), tokens, tokens, ones)[0])
  return np.asarray(apply(params))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Base and two steps of PAM, without a stop between them; the run and PAM's state."""
  run = _run(tmp_path_factory.mktemp("adapters"))
  with jax.set_mesh(run.mesh):
    _train(run, "base", 1)
    return run, _train(run, "pam", 2)


def test_only_adapters_are_trained_and_saved(trained):
  run, state = trained
  saved = runs.params(run.workdir, "pam")
  names = {name for name in saved if name.startswith("params")}
  assert len(names) == 2 * 7
  assert all(name.endswith(("['a']", "['b']")) for name in names)
  sizes = sum(saved[name].size for name in names)
  everything = sum(array.size for array in saved.values())
  assert 3 * sizes <= everything < 3 * sizes + 10  # two moments each, and counters
  base = runs.params(run.workdir, "base")
  assert base["params['embedding']"].size > sizes
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.frozen.params):
    np.testing.assert_array_equal(leaf, base["params" + jax.tree_util.keystr(path)])
  assert all(np.abs(saved[name]).max() > 0 for name in names if name.endswith("['b']"))
  query = state.params["layers"]["attention"]["query"]
  assert query["a"].sharding.spec[1] == "fsdp"


def test_resumed_it_is_the_same_to_the_bit(trained, tmp_path):
  run, state = trained
  (tmp_path / "checkpoints").mkdir()
  for file in ("tokenizer.model", "checkpoints/base"):
    (tmp_path / file).symlink_to(run.workdir / file)
  again = _run(tmp_path)
  with jax.set_mesh(again.mesh):
    _train(again, "pam", 1)
    _same(_train(_run(tmp_path), "pam", 1), state)


def test_what_a_checkpoint_gives_is_merged(trained):
  run, state = trained
  with jax.set_mesh(run.mesh):
    # eval.py knows one stage only, and none of the keys that made the adapters.
    alone = _run(run.workdir, stages=("pam",), **{"lora.rank": 0})
    params, step = alone.origins.checkpoint_params("pam", "last")
    assert step == 2
    assert jax.tree.structure(params) == jax.tree.structure(state.frozen.params)
    found = _hidden(run, params)
    np.testing.assert_allclose(found, _hidden(run, state.whole()), atol=2e-5)
    assert np.abs(found - _hidden(run, state.frozen.params)).max() > 1e-3


@pytest.mark.parametrize("rank", [0, RANK])
def test_a_reference_is_held_only_where_it_is_used(trained, rank):
  """With adapters it is their numbers alone: the weights under them are the policy's own."""
  run, state = trained
  for kl_coef, teacher, used in (
    (0.0, "policy", False),
    (0.0, "ema", False),
    (0.0, "reference", True),
    (0.5, "policy", True),
  ):
    keys = {"lora.rank": rank, "srl.kl_coef": kl_coef, "feedback.teacher": teacher}
    other = _run(run.workdir, **keys)
    with jax.set_mesh(other.mesh):
      reference = other.make_stage("srl").reference
    if not used:
      assert reference is None
      continue
    held = state.params if rank else state.frozen.params
    assert jax.tree.structure(reference) == jax.tree.structure(held)


def test_self_feedback_goes_on_with_the_adapters_and_measures_against_them(trained):
  run, state = trained
  with jax.set_mesh(run.mesh):
    stage = run.make_stage("srl")
    checkpoints = Checkpoints(run.workdir, "srl", run.config.checkpoint)
    begun, _ = run.start(stage, checkpoints)
    checkpoints.close()
    _same(begun.params, state.params)
    _same(stage.reference, state.params)
    assert begun.frozen.origin == state.frozen.origin == "checkpoint:checkpoints/base/1"
    batch, _ = stage.batch(begun, 0)
    after, learned = stage.update(begun, batch)
  # The policy is still its own reference, and sampled as it is scored.
  assert float(learned["kl"]) == pytest.approx(0.0, abs=1e-9)
  assert float(learned["mismatch_max"]) == pytest.approx(1.0, abs=1e-3)
  assert float(learned["gradient_norm"]) > 0
  assert 0 < float(learned["exact_entropy"]) < np.log(run.tokenizer.vocab_size)
  pairs = zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True)
  assert max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs) > 1e-5
  _same(after.frozen.params, state.frozen.params)


def test_other_adapters_are_refused(trained):
  run, _ = trained
  with jax.set_mesh(run.mesh):
    for changes, found in (
      ({"lora.rank": 3}, r"rank 2, .* expected rank 3"),
      ({"lora.alpha": 1.0}, r"alpha 16.0, .* expected .* alpha 1.0"),
      ({"lora.rank": 0}, r"rank 2, .* expected all weights \(lora.rank 0\)"),
    ):
      other = _run(run.workdir, **changes)
      stage = other.make_stage("pam")
      checkpoints = Checkpoints(run.workdir, "pam", run.config.checkpoint)
      with pytest.raises(ValueError, match=found):
        other.start(stage, checkpoints)
      checkpoints.close()
    with pytest.raises(ValueError, match="base/1 holds all weights, not adapters"):
      run.origins.checkpoint_adapters("base", "last")


def test_a_run_begins_with_what_another_runs_adapters_made(trained, tmp_path):
  run, state = trained
  (tmp_path / "tokenizer.model").symlink_to(run.workdir / "tokenizer.model")
  changes = {"stages": ("pam",), "init_from": str(run.workdir)}
  for rank in (0, RANK):
    other = _run(tmp_path, **changes, **{"lora.rank": rank})
    with jax.set_mesh(other.mesh):
      begun = other.origins.start_params("pam")
      np.testing.assert_allclose(_hidden(run, begun), _hidden(run, state.whole()), atol=2e-5)


def test_the_run_under_adapters_may_be_moved(trained, tmp_path):
  source, _ = trained
  start, moved, workdir = tmp_path / "start", tmp_path / "moved", tmp_path / "run"
  shutil.copytree(source.workdir, start)
  keys = {"stages": ("pam",), "pam.steps": 9}
  run = _run(workdir, **keys, init_from=str(start))
  with jax.set_mesh(run.mesh):
    before = _train(run, "pam", 1)
    start.rename(moved)
    with pytest.raises(ValueError, match=r"pam/1 holds adapters on .*start/.*pam/2, which is gone"):
      run.origins.checkpoint_params("pam", "1")
    again = _run(workdir, **keys, init_from=str(moved))
    _same(again.origins.checkpoint_params("pam", "1")[0], lora.merged(before.whole()))
    after = _train(again, "pam", 1)
    assert int(after.step) == 2
    _same(after.frozen.params, before.frozen.params)
    # What lies there now is not what the adapters are on.
    shutil.rmtree(moved / "checkpoints" / "pam" / "2" / "seal")
    with pytest.raises(
      ValueError, match="expected it there, or the same in the run that init_from"
    ):
      again.origins.checkpoint_params("pam", "1")


# On a model of Hugging Face.


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  pytest.importorskip("torch")
  return tiny_model.write(tmp_path_factory.mktemp("llama"))


def _pretrained_run(workdir, folder, **changes):
  config = base.get_config()
  config.stages = ("pam",)
  config.model.pretrained = str(folder)
  config.tokenizer.delimiters = "tags"
  config.data.triplets = ("synthetic:24",)
  config.pam.batch_size = 8
  config.pam.mixture.pivot = 0.0
  config.pam.max_length = 512
  config.lora.rank = RANK
  config.log.progress = False
  config.update_from_flattened_dict(changes)
  return setup.make_run(config, workdir, pools=("triplets",))


def test_adapters_are_exported_for_peft_and_merged_for_others(llama, tmp_path):
  run = _pretrained_run(tmp_path / "run", llama)
  with jax.set_mesh(run.mesh):
    state = _train(run, "pam", 1)
    adapters, settings, origin, step = run.origins.checkpoint_adapters("pam", "last")
    _same(adapters, state.params)
    assert (settings, step) == (origins.lora_settings(run.config), 1)
    assert origin == f"pretrained:{llama.name}"
    exporting.export_adapters(run, adapters, settings, origin, "pam_1", tmp_path / "adapters")
    exporting.export(run, run.origins.checkpoint_params("pam", "1")[0], "pam_1", tmp_path / "whole")
  found = {file.name for file in (tmp_path / "adapters").iterdir()}
  assert {
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "tokenizer.json",
  } <= found
  assert "model.safetensors" not in found
  assert "library_name: peft" in (tmp_path / "adapters" / "README.md").read_text("utf-8")
  pair = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
  name = "model.layers.1.mlp.down_proj"
  a, b = (pair[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
  before = load_file(llama / "model.safetensors")[f"{name}.weight"]
  whole = load_file(tmp_path / "whole" / "model.safetensors")[f"{name}.weight"]
  assert np.abs(whole - before).max() > 1e-6
  np.testing.assert_allclose(whole, before + 16.0 / RANK * b @ a, atol=1e-6)


def test_adapters_on_what_nobody_else_has_must_be_merged(trained, tmp_path):
  run, _ = trained
  with jax.set_mesh(run.mesh):
    adapters, settings, origin, _ = run.origins.checkpoint_adapters("pam", "last")
    with pytest.raises(ValueError, match=r"pam_2 holds adapters on .* expected --merge_lora"):
      exporting.export_adapters(run, adapters, settings, origin, "pam_2", tmp_path / "out")


def test_adapters_of_another_model_are_refused(llama, tmp_path):
  run = _pretrained_run(tmp_path, llama)
  with jax.set_mesh(run.mesh):
    _train(run, "pam", 0)
    moved = tmp_path / "another"
    moved.symlink_to(llama)
    with pytest.raises(ValueError, match=f"model.pretrained is 'another'; expected '{llama.name}'"):
      _pretrained_run(tmp_path, moved).origins.checkpoint_params("pam", "last")


def test_delimiters_that_adapters_could_not_learn_are_refused(llama, tmp_path):
  with pytest.raises(ValueError, match=r"'<pivot>' is new to the vocabulary .* expected 'tags'"):
    _pretrained_run(tmp_path, llama, **{"tokenizer.delimiters": "added"})
  run = _pretrained_run(tmp_path, llama)
  with jax.set_mesh(run.mesh):
    params = run.origins.pretrained_params()
    run.origins._check_delimiters(params)  # a random row is as good as any other
    row = run.tokenizer.close_ids[0]
    untrained = params | {"embedding": params["embedding"].at[row].set(1e-9)}
    with pytest.raises(ValueError, match="'<pivot>' and '</pivot>', whose embeddings were never"):
      run.origins._check_delimiters(untrained)
