"""Small tokenizers of each kind, trained on a few sentences."""

import io

import pytest
import sentencepiece
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pasmr_jax.text.tokenizer import load_tokenizer

CORPUS = [
  "Anna has 7 apples and buys 5 more. How many apples does she have?",
  "7 + 5 = 12\n#### 12",
  "Anna hat 7 Äpfel und kauft 5 weitere. Wie viele hat sie?",
  "У Анны 7 яблок, она покупает ещё 5.",
  "আনার ৭টি আপেল আছে।",
  "<answer> & {braces}",
] * 20


MARKS = ["<start_of_turn>", "<unused0>", "<|image|>", "<pivot>", "</pivot>", "<table>", "\n"]


def train_sentencepiece(path, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    **{
      "vocab_size": 400,
      "model_type": "bpe",
      "byte_fallback": True,
      "pad_id": 0,
      "eos_id": 1,
      "bos_id": 2,
      "unk_id": 3,
      "eos_piece": "<eos>",
      "bos_piece": "<bos>",
      "pad_piece": "<pad>",
      "normalization_rule_name": "identity",
      "user_defined_symbols": ["<pivot>", "</pivot>"],
      "control_symbols": ["<end_of_turn>"],
      "hard_vocab_limit": False,
      "minloglevel": 2,
    }
    | options,
  )
  path.write_bytes(model.getvalue())
  return str(path)


def train_byte_level(folder, special_tokens, **names):
  """A Hugging Face folder of the Llama 3 and Qwen kind: bytes, no dummy prefix."""
  fast = FastTokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  fast.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  fast.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(
      vocab_size=400,
      special_tokens=special_tokens,
      initial_alphabet=alphabet,
      show_progress=False,
    ),
  )
  bos = names.get("bos_token")
  if bos is not None:
    fast.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, fast.token_to_id(bos))]
    )
  PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
  return str(folder)


@pytest.fixture(scope="session")
def byte_level():
  """Trains one: `byte_level(folder, special_tokens, **names)` gives its path."""
  return train_byte_level


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizers")
  special = ["<|pad|>", "<|begin|>", "<|end|>", "<|eot|>", "<|reserved_0|>", "<|reserved_1|>"]
  names = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
  return {
    "sentencepiece": train_sentencepiece(folder / "small.model"),
    "prefixed": train_sentencepiece(folder / "prefixed.model", add_dummy_prefix=True),
    "marks": train_sentencepiece(folder / "marks.model", user_defined_symbols=MARKS),
    "nfkc": train_sentencepiece(folder / "nfkc.model", normalization_rule_name="nfkc"),
    "endless": train_sentencepiece(folder / "endless.model", eos_id=-1),
    "bytes": train_byte_level(folder / "bytes", special, **names),
    "no_pad": train_byte_level(
      folder / "no_pad", special, bos_token="<|begin|>", eos_token="<|end|>"
    ),
    "pad_is_eos": train_byte_level(
      folder / "pad_is_eos", special, pad_token="<|end|>", eos_token="<|end|>"
    ),
  }


@pytest.fixture(scope="module")
def tokenizers(paths):
  return {
    "sentencepiece": load_tokenizer(
      paths["sentencepiece"], "<pivot>", "</pivot>", ["<end_of_turn>"]
    ),
    "prefixed": load_tokenizer(paths["prefixed"], "<pivot>", "</pivot>"),
    "nfkc": load_tokenizer(paths["nfkc"], "<pivot>", "</pivot>"),
    "reserved": load_tokenizer(paths["bytes"], "<|reserved_0|>", "<|reserved_1|>", ["<|eot|>"]),
    "tags": load_tokenizer(paths["bytes"], "<pivot>", "</pivot>"),
  }
