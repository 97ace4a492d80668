"""A tiny model as people have them: a Llama folder with a tokenizer and a chat template.

Its tokenizer has no reserved tokens. Needs torch, as whoever made the folder had.
"""

import pathlib

_TEXTS = ["Anna has 7 apples.", "У Анны 7 яблок.", "আনার ৭টি আপেল আছে।"] * 20
_TEMPLATE = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<|model|>{% endif %}"
)


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes the model, random, and its tokenizer."""
  import torch
  import transformers
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  fast = Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  fast.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<|end|>", "<|user|>", "<|model|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  fast.train_from_iterator(_TEXTS, trainer)
  wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>")
  wrapped.chat_template = _TEMPLATE
  wrapped.save_pretrained(folder)
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=len(wrapped),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=True,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  return folder
