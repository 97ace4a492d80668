"""The smallest decoder there is, for tests of what is kept of a run, not of what it learns."""

from pasmr_jax.models.config import TransformerConfig

MODEL = TransformerConfig(
  vocab_size=32,
  embed_dim=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=16,
  query_scale=1.0,
)
