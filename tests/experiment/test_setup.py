"""What a run is made of."""

import jax

from configs import tiny
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
