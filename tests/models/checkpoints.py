"""A tiny random checkpoint of every family, made by transformers, with every feature on."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 96
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (2, 40))

SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
  "attn_implementation": "eager",  # the only one that caps attention scores
}
GEMMA = {
  "head_dim": 8,
  "query_pre_attn_scalar": 20,
  "sliding_window": 6,
  "final_logit_softcapping": 3.0,
}


def gemma2():
  return transformers.Gemma2ForCausalLM(
    transformers.Gemma2Config(**SIZES, **GEMMA, attn_logit_softcapping=5.0)
  )


def gemma3():
  local, full = "sliding_attention", "full_attention"
  config = transformers.Gemma3TextConfig(
    **SIZES,
    **GEMMA,
    layer_types=[local, local, full, local],
    rope_parameters={
      local: {"rope_type": "default", "rope_theta": 500.0},
      full: {"rope_type": "linear", "factor": 8.0, "rope_theta": 20_000.0},
    },
  )
  return transformers.Gemma3ForCausalLM(config)


def llama():
  """Llama 3.2: scaled rotations, here one fast, one between, two slow; one head's width is free."""
  rope = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
  }
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(**SIZES, head_dim=8, rope_parameters=rope)
  )


def mistral():
  rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
  return transformers.MistralForCausalLM(
    transformers.MistralConfig(**SIZES, head_dim=16, rope_parameters=rope, sliding_window=6)
  )


def qwen2():
  """Biases, and a window in the upper layers."""
  return transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(
      **SIZES,
      rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
      use_sliding_window=True,
      sliding_window=6,
      max_window_layers=2,
      rms_norm_eps=1e-5,
    )
  )


def qwen3():
  return transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)
  )


FAMILIES = {make.__name__: make for make in (gemma2, gemma3, llama, mistral, qwen2, qwen3)}


def random_model(family: str):
  """The model in evaluation mode, its norms and biases random too, which start at 0 or 1."""
  torch.manual_seed(0)
  model = FAMILIES[family]().eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.normal_(std=0.3)
  return model
