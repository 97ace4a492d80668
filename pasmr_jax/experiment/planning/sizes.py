"""Sizes of published models, for planning where the hub cannot be read.

A folder's or the hub's own config.json always comes before this table. Each row is that of the
model's config.json on the hub; tests/experiment/planning/test_sizes.py checks the parameter counts.
"""

from collections.abc import Mapping
from typing import Any

from pasmr_jax.models.config import TransformerConfig


def _gemma(vocab: int, heads: tuple[int, int, int], **own: Any) -> TransformerConfig:
  num_heads, num_kv_heads, head_dim = heads
  shared = {
    "vocab_size": vocab,
    "num_heads": num_heads,
    "num_kv_heads": num_kv_heads,
    "head_dim": head_dim,
    "query_scale": head_dim**-0.5,
    "post_norms": True,
    "norm_plus_one": True,
    "scale_embeddings": True,
    "activation": "gelu_tanh",
  }
  return TransformerConfig(**shared | own)


def _gemma3(vocab: int, heads: tuple[int, int, int], **own: Any) -> TransformerConfig:
  shared = {
    "attention_pattern": ("local",) * 5 + ("global",),
    "sliding_window": 1024,
    "rope_base_global": 1e6,
    "rope_scale_global": 8.0,
    "qk_norm": True,
  }
  return _gemma(vocab, heads, **shared | own)


def _gemma2(heads: tuple[int, int, int], **own: Any) -> TransformerConfig:
  shared = {
    "attention_pattern": ("local", "global"),
    "sliding_window": 4096,
    "attention_softcap": 50.0,
    "final_softcap": 30.0,
  }
  return _gemma(256_000, heads, **shared | own)


# Gemma 3's two smallest have a window of 512 and were not extended to longer texts.
_SMALL: Any = {"sliding_window": 512, "rope_scale_global": 1.0}

PUBLISHED: Mapping[str, TransformerConfig] = {
  "google/gemma-3-270m": _gemma3(
    262_144, (4, 1, 256), embed_dim=640, num_layers=18, mlp_dim=2048, **_SMALL
  ),
  "google/gemma-3-1b-pt": _gemma3(
    262_144, (4, 1, 256), embed_dim=1152, num_layers=26, mlp_dim=6912, **_SMALL
  ),
  "google/gemma-3-4b-pt": _gemma3(
    262_208, (8, 4, 256), embed_dim=2560, num_layers=34, mlp_dim=10_240
  ),
  "google/gemma-3-12b-pt": _gemma3(
    262_208, (16, 8, 256), embed_dim=3840, num_layers=48, mlp_dim=15_360
  ),
  "google/gemma-3-27b-pt": _gemma3(
    262_208, (32, 16, 128), embed_dim=5376, num_layers=62, mlp_dim=21_504, query_scale=168**-0.5
  ),
  "google/gemma-2-2b": _gemma2((8, 4, 256), embed_dim=2304, num_layers=26, mlp_dim=9216),
  "google/gemma-2-9b": _gemma2((16, 8, 256), embed_dim=3584, num_layers=42, mlp_dim=14_336),
  "google/gemma-2-27b": _gemma2(
    (32, 16, 128), embed_dim=4608, num_layers=46, mlp_dim=36_864, query_scale=144**-0.5
  ),
  "meta-llama/Llama-3.1-8B": TransformerConfig(
    vocab_size=128_256,
    embed_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14_336,
    query_scale=128**-0.5,
    rope_base_global=500_000.0,
    rope_llama3_factor=8.0,
    norm_eps=1e-5,
    tie_embeddings=False,
  ),
  "Qwen/Qwen3-8B": TransformerConfig(
    vocab_size=151_936,
    embed_dim=4096,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=12_288,
    query_scale=128**-0.5,
    rope_base_global=1e6,
    qk_norm=True,
    tie_embeddings=False,
  ),
}


def published(name: str) -> TransformerConfig | None:
  """The sizes of a hub id, its instruction-tuned or base twin included; None if not listed."""
  for suffix in ("-it", "-pt", "-Instruct", "-Base"):
    stem = name.removesuffix(suffix)
    for known in (name, stem, f"{stem}-pt"):
      if known in PUBLISHED:
        return PUBLISHED[known]
  return None
