import dataclasses

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def as_outside_of_tests():
  """Without the run-time checks of annotations, which would see a wrong type first."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_layers": 0}, "num_layers: found 0, expected a positive integer"),
    ({"embed_dim": 32.0}, "embed_dim: found 32.0, expected a positive integer"),
    ({"query_scale": float("nan")}, "query_scale: found nan, expected a positive finite"),
    ({"final_softcap": 0.0}, "final_softcap: found 0.0, expected a positive finite"),
    ({"activation": "relu"}, "activation: found 'relu', expected one of gelu_tanh, silu"),
    ({"remat": "all"}, "remat: found 'all', expected one of none, full, dots"),
    ({"dtype": "bf16"}, "dtype: found 'bf16', expected one of float32"),
    ({"qk_norm": 1}, "qk_norm: found 1, expected True or False"),
    ({"attention_pattern": ()}, "attention_pattern: found"),
    ({"attention_pattern": ("local", "Global")}, "attention_pattern: found"),
    ({"num_kv_heads": 3}, "num_kv_heads: found 3, expected a divisor of num_heads=4"),
    ({"head_dim": 7}, "head_dim: found 7, expected an even number"),
    ({"rope_llama3_factor": 0.0}, "rope_llama3_factor: found 0.0, expected a positive finite"),
    (
      {"rope_llama3_low_freq": 4.0},
      "rope_llama3_high_freq: found 4.0, expected more than rope_llama3_low_freq=4.0",
    ),
  ],
)
def test_bad_field_is_named_with_what_was_expected(small, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(small, **changes)


def test_pattern_repeats_over_layers(small):
  config = dataclasses.replace(small, num_layers=5, attention_pattern=("local", "local", "global"))
  assert config.layer_kinds == ("local", "local", "global", "local", "local")
  assert hash(config) == hash(dataclasses.replace(config))
