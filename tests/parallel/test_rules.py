import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pasmr_jax.parallel.rules import DECODING, TRAINING, partition_specs

AXES = {"query": P("layers", "embed", "heads", "head_dim"), "key": P("layers", "embed", "kv_heads")}
SHAPES = {"query": np.zeros((2, 8, 4, 6)), "key": np.zeros((2, 8, 1))}


def test_training_splits_embed_over_fsdp_and_heads_over_tensor():
  specs, notes = partition_specs(AXES, SHAPES, {"fsdp": 4, "tensor": 2}, TRAINING)
  assert specs["query"] == P(None, "fsdp", "tensor", None)
  assert specs["key"] == P(None, "fsdp", None)
  assert notes == ("kv_heads: 1 is not divisible by tensor=2, so it is replicated",)


def test_decoding_keeps_embed_whole():
  specs, _ = partition_specs(AXES, SHAPES, {"fsdp": 4, "tensor": 2}, DECODING)
  assert specs["query"] == P(None, None, "tensor", None)


def test_an_axis_of_one_device_splits_nothing():
  specs, notes = partition_specs(AXES, SHAPES, {"fsdp": 1, "tensor": 1}, TRAINING)
  assert jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)) == [
    P(None, None, None),
    P(None, None, None, None),
  ]
  assert notes == ()


def test_an_unknown_name_is_an_error():
  with pytest.raises(KeyError, match="'expert' has no rule"):
    partition_specs({"x": P("expert")}, {"x": np.zeros(3)}, {"fsdp": 1}, TRAINING)
