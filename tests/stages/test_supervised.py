"""Examples of a pool: a question that cannot be one is named."""

import pytest

from configs import base as base_config
from pasmr_jax.data import synthetic
from pasmr_jax.data.questions import Question
from pasmr_jax.stages.supervised import examples
from pasmr_jax.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  synthetic.train_tokenizer(path)
  return load_tokenizer(str(path), "[open]", "[close]")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"pivot_text": None}, "has no pivot_text"),
    ({"solution": None}, "has no solution"),
    ({"text": " "}, "question_prompt: the question is blank"),
    ({"solution": ""}, "response: the solution is blank"),
    ({"pivot_text": "7 [close]"}, r"response: the translation contains the delimiter '\[close\]'"),
  ],
)
def test_a_question_that_is_no_example_is_named_with_its_pool(tokenizer, changes, said):
  fields = {"text": "Wie viele?", "pivot_text": "How many?", "solution": "#### 7"} | changes
  pool = [Question("q1", "de", "Wie?", "How?", "#### 5"), Question("q2", "de", **fields)]
  with pytest.raises(ValueError, match=rf"data.triplets: question 'q2' \(de\):? ?{said}"):
    examples("triplets", pool, tokenizer, base_config.get_config().prompt)
