"""Byte-level vocabularies in GGUF files, against transformers' reading of the same file."""

import json
import pathlib

import gguf
import pytest

from pasmr_jax.text.tokenizer import load_tokenizer
from pasmr_jax.text.vocabularies import read_vocabulary

TEXTS = (
  "Anna has 7 apples, and buys 1250 more!  It's 12.5%\n\n  \tso\r\n",
  "У Анны 7 яблок, она покупает ещё 5.",
  "আনার ৭টি আপেল আছে। 苹果45個 HTTPServer/path",
  "<|end|> Äpfel A\u0308pfel <think>",
)


def write(path, folder: pathlib.Path, pre: str | None, **changes):
  """The vocabulary of a Hugging Face folder as llama.cpp's converter writes it."""
  saved = json.loads((folder / "tokenizer.json").read_text())
  vocabulary = dict(saved["model"]["vocab"])
  special = {token["content"] for token in saved["added_tokens"]}
  tokens = sorted(vocabulary, key=vocabulary.__getitem__)
  kinds = [3 if token in special else 1 for token in tokens]
  tokens += ["<think>", "[PAD1]", "[PAD2]"]
  kinds += [4, 5, 5]
  writer = gguf.GGUFWriter(path, "llama")
  for key, value in {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
  }.items():
    writer.add_uint32(f"llama.{key}", value)
  writer.add_tokenizer_model(changes.get("model", "gpt2"))
  if pre is not None:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges([" ".join(merge) for merge in saved["model"]["merges"]])
  writer.add_eos_token_id(vocabulary["<|end|>"])
  writer.add_bos_token_id(vocabulary["<|begin|>"])
  if "add_bos" in changes:
    writer.add_add_bos_token(changes["add_bos"])
  writer.add_chat_template("{{ messages[0].content }}")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_ids_are_those_of_transformers(paths, tmp_path, pre):
  pytest.importorskip("torch", reason="transformers reads GGUF with torch only")
  from transformers import AutoTokenizer

  path = tmp_path / "model.gguf"
  write(path, pathlib.Path(paths["bytes"]), pre)
  reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
  found = read_vocabulary(str(path))
  for text in TEXTS:
    composed = text.replace("A\u0308", "Ä") if pre == "qwen2" else text  # as Qwen's own tokenizer
    expected = reference.encode(composed, add_special_tokens=False)
    assert found.encode(text) == expected, [found.token_of(token) for token in found.encode(text)]
    assert found.decode(expected) == composed


def test_smollm_cuts_single_digits_first(paths, tmp_path):
  """As SmolLM2's own tokenizer.json; transformers' reading of its GGUF file leaves that out."""
  path = tmp_path / "model.gguf"
  write(path, pathlib.Path(paths["bytes"]), "smollm")
  found = read_vocabulary(str(path))
  pieces = [found.token_of(token) for token in found.encode("has 1250 apples")]
  assert pieces[-6:] == ["Ġ", "1", "2", "5", "0", "Ġapples"]


def test_a_gguf_tokenizer_is_that_of_the_folder_it_was_made_from(paths, tokenizers, tmp_path):
  path = tmp_path / "model.gguf"
  write(path, pathlib.Path(paths["bytes"]), "gpt-2", add_bos=True)
  found = load_tokenizer(str(path), "<|reserved_0|>", "<|reserved_1|>", ["<|eot|>"])
  expected = tokenizers["reserved"]
  for name in ("bos_id", "eos_id", "stop_ids", "open_ids", "close_ids"):
    assert getattr(found, name) == getattr(expected, name)
  # One more token than the folder, and names that only fill the embedding are no tokens.
  assert found.vocab_size == expected.vocab_size + 1
  assert found.vocabulary.chat_template == "{{ messages[0].content }}"
  for text in (TEXTS[0], TEXTS[1], "<|end|>"):
    assert found.encode(text) == expected.encode(text)


@pytest.mark.parametrize(
  ("pre", "add_bos", "expected"),
  [("llama-bpe", None, 1), ("qwen2", None, None), ("qwen2", True, 1), ("llama-bpe", False, None)],
)
def test_beginning_of_sequence(paths, tmp_path, pre, add_bos, expected):
  path = tmp_path / "model.gguf"
  changes = {} if add_bos is None else {"add_bos": add_bos}
  write(path, pathlib.Path(paths["bytes"]), pre, **changes)
  assert load_tokenizer(str(path), "<pivot>", "</pivot>").bos_id == expected


def test_what_is_not_known_is_refused_by_name(paths, tmp_path):
  path = tmp_path / "model.gguf"
  write(path, pathlib.Path(paths["bytes"]), "chameleon")
  with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre is 'chameleon', supported are llama"):
    read_vocabulary(str(path))
  write(path, pathlib.Path(paths["bytes"]), "gpt-2", model="t5")
  with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model is 't5', expected 'llama'"):
    read_vocabulary(str(path))


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2", "qwen3", "llama"])
def test_a_folder_without_a_vocabulary_is_refused(paths, tmp_path, family):
  """Of Gemma and Qwen, transformers would make an empty one."""
  (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
  (tmp_path / "vocab.json").write_text("{}")  # half of one
  named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
  said = (
    rf"a folder with tokenizer\.json, .*vocab\.json and merges.*; {tmp_path} holds no vocabulary"
  )
  with pytest.raises(ValueError, match=said):
    read_vocabulary(str(tmp_path))


def test_a_vocabulary_of_vocab_json_and_merges(paths, tmp_path):
  """As older folders of Qwen have it."""
  model = json.loads((pathlib.Path(paths["bytes"]) / "tokenizer.json").read_text())["model"]
  (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
  (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
  assert read_vocabulary(str(tmp_path)).size >= len(model["vocab"])
