"""What a run is made of."""

import dataclasses

import jax
import pytest

from configs import tiny
from pasmr_jax.data.pools import NAMES
from pasmr_jax.experiment import summary
from pasmr_jax.experiment.setup import make_run


def test_noise_is_of_one_kind_whatever_the_environment_says(tmp_path):
  """As JAX_DEFAULT_PRNG_IMPL=rbg does, with which a row's noise depends on its neighbours."""
  before = jax.config.jax_default_prng_impl
  jax.config.update("jax_default_prng_impl", "rbg")
  try:
    make_run(tiny.get_config(), tmp_path, pools=())
    assert jax.config.jax_default_prng_impl == "threefry2x32"
  finally:
    jax.config.update("jax_default_prng_impl", before)


def test_languages_that_only_self_feedback_must_tell_apart(tmp_path):
  config = tiny.get_config()
  config.languages = ("de", "ha")  # Hausa, which lingua does not know
  said = (
    r"languages: cannot tell .* 'ha' \(Hausa\); expected other languages, or stages without srl"
  )
  with pytest.raises(ValueError, match=said):
    make_run(config, tmp_path / "srl", pools=("srl",))
  assert not (tmp_path / "srl").exists()
  make_run(config, tmp_path, pools=())  # as eval.py does, whatever the stage


def test_a_folder_that_is_no_run_is_named_with_its_key(tmp_path):
  config = tiny.get_config()
  config.init_from, config.stages = str(tmp_path / "nothing"), ("srl",)
  run = make_run(config, tmp_path, pools=())
  with pytest.raises(ValueError, match=r"init_from: .*nothing: expected a run with"):
    run.start_params("srl")


def test_the_start_names_what_ends_a_response(tmp_path, capsys):
  run = make_run(tiny.get_config(), tmp_path, pools=())
  run.pools = {name: [] for name in NAMES}
  stops = (run.tokenizer.eos_id, run.tokenizer.close_ids[0])
  run.tokenizer = dataclasses.replace(run.tokenizer, stop_ids=stops)
  summary.print_start(run)
  eos, other = (run.tokenizer.vocabulary.token_of(token) for token in stops)
  said = " ".join(capsys.readouterr().err.split())
  assert f"learned to end with {eos}, sampled up to {eos} or {other}" in said
