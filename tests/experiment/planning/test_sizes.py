"""Published sizes give models of the published size."""

import jax
import numpy as np

from configs import pasmr_gemma
from pasmr_jax.experiment.planning.sizes import PUBLISHED, published
from pasmr_jax.models.transformer import init_params

COUNTS = {
  "google/gemma-3-270m": 268_098_176,
  "google/gemma-3-1b-pt": 999_885_952,
  "google/gemma-3-4b-pt": 3_880_263_168,
  "google/gemma-3-12b-pt": 11_766_034_176,
  "google/gemma-3-27b-pt": 27_009_346_304,
  "google/gemma-2-2b": 2_614_341_888,
  "google/gemma-2-9b": 9_241_705_984,
  "google/gemma-2-27b": 27_227_128_320,
  "meta-llama/Llama-3.1-8B": 8_030_261_248,
  "Qwen/Qwen3-8B": 8_190_735_360,
}


def test_published_sizes_have_the_published_number_of_parameters():
  assert COUNTS.keys() == PUBLISHED.keys()
  for name, sizes in PUBLISHED.items():
    shapes = jax.eval_shape(lambda sizes=sizes: init_params(sizes, jax.random.key(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == COUNTS[name], name
  assert published("google/gemma-3-1b-it") is PUBLISHED["google/gemma-3-1b-pt"]
  assert published("meta-llama/Llama-3.1-8B-Instruct") is PUBLISHED["meta-llama/Llama-3.1-8B"]
  assert published("google/gemma-5-1b") is None
  assert set(pasmr_gemma.SIZES.values()) <= PUBLISHED.keys()
