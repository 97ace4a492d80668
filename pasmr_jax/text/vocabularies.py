"""Vocabularies as models come with them: text to ids and ids to text.

`read_vocabulary` reads one of four kinds of source:

- a SentencePiece `.model` file, read by the sentencepiece library;
- a `.gguf` file with a SentencePiece vocabulary (Gemma, Llama 2, Mistral), rebuilt as such a model;
- a `.gguf` file with byte-level BPE (Llama 3, Qwen, SmolLM2), rebuilt with the tokenizers library;
- a folder or a hub id in the Hugging Face layout, read by transformers.

None needs a deep-learning framework.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto

from pasmr_jax.text import hub
from pasmr_jax.text.gguf_content import read_content

_TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
# What holds a vocabulary: all files of one of these, by pattern.
_VOCABULARY_FILES = (
  ("tokenizer.json",),
  ("*.model",),  # SentencePiece
  ("vocab.json", "merges.txt"),
  ("vocab.txt",),
)
# What marks turns and images, or is to spare, among pieces that a model's makers defined: not the
# HTML tags and line ends that are there too.
_MARK = re.compile(r"<unused\d+>|<[^<>\s]*[_|][^<>\s]*>")
# Kinds of pieces; SentencePiece and GGUF number them alike.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6


class Vocabulary(Protocol):
  """What `Tokenizer` needs of a library."""

  size: int  # ids are in [0, size)
  pad_id: int | None
  bos_id: int | None
  eos_id: int | None
  unknown_id: int | None
  adds_bos: bool  # whether the model's texts begin with bos
  controls: Mapping[str, int]  # name -> id of each token that is never text
  chat_template: str | None  # Jinja, as instruction-tuned models come with it

  def encode(self, text: str) -> list[int]: ...
  def decode(self, ids: Sequence[int]) -> str: ...
  def id_of(self, token: str) -> int | None: ...
  def token_of(self, token_id: int) -> str: ...


def read_vocabulary(path: str) -> Vocabulary:
  """Errors as `tokenizer.load_tokenizer`."""
  suffix = os.path.splitext(path)[1]
  if suffix not in (".model", ".gguf"):
    return FastVocabulary(_read_hugging_face(path))
  if not os.path.isfile(path):
    raise FileNotFoundError(f"tokenizer {path}: no such file")
  if suffix == ".model":
    return SentencePieceVocabulary(_model_proto(path), path)
  found = _GGUF(path)
  if found.value("model") == "llama":
    adds_bos = bool(found.value("add_bos_token", True))
    return SentencePieceVocabulary(_gguf_proto(found), path, adds_bos, found.chat_template)
  if found.value("model") == "gpt2":
    return FastVocabulary(_gguf_byte_level(found), found.size, bool(found.adds_bos))
  raise ValueError(
    f"tokenizer {path}: tokenizer.ggml.model is {found.value('model')!r}, expected 'llama'"
    " (SentencePiece) or 'gpt2' (byte-level BPE); name the model's Hugging Face folder as"
    " tokenizer instead"
  )


class SentencePieceVocabulary:
  """A SentencePiece model without dummy prefix and without folding of spaces."""

  def __init__(
    self, proto: Any, path: str, adds_bos: bool = True, chat_template: str | None = None
  ):
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
      raise ValueError(f"tokenizer {path}: sentencepiece cannot use it: {error}") from error
    self.proto = proto
    self.size = self._model.vocab_size()
    self.pad_id, self.bos_id, self.eos_id, self.unknown_id = (
      token if token >= 0 else None
      for token in (
        self._model.pad_id(),
        self._model.bos_id(),
        self._model.eos_id(),
        self._model.unk_id(),
      )
    )
    self.adds_bos = adds_bos
    self.chat_template = chat_template
    self.controls: Mapping[str, int] = {
      piece.piece: token
      for token, piece in enumerate(proto.pieces)
      if piece.type == _CONTROL or (piece.type == _USER_DEFINED and _MARK.fullmatch(piece.piece))
    }

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids))

  def id_of(self, token: str) -> int | None:
    token_id = self._model.piece_to_id(token)
    return token_id if self.token_of(token_id) == token else None

  def token_of(self, token_id: int) -> str:
    return self._model.id_to_piece(token_id)


class FastVocabulary:
  """A tokenizer of transformers."""

  def __init__(self, model: Any, size: int | None = None, adds_bos: bool | None = None):
    """`size` and `adds_bos` are found out if None."""
    self.model = model
    self.pad_id = model.pad_token_id
    self.bos_id = model.bos_token_id
    self.eos_id = model.eos_token_id
    self.unknown_id = model.unk_token_id
    self._ids = dict(model.get_vocab())
    self.size = max(self._ids.values()) + 1 if size is None else size
    if adds_bos is None:
      adds_bos = self.bos_id is not None and model.encode("x")[:1] == [self.bos_id]
    self.adds_bos = bool(adds_bos)
    # A model may have several by name; transformers takes "default" where no tools are used.
    template = model.chat_template
    self.chat_template: str | None = (
      template.get("default") if isinstance(template, dict) else template
    )
    self.controls: Mapping[str, int] = {
      added.content: token
      for token, added in model.added_tokens_decoder.items()
      if added.special or _MARK.fullmatch(added.content)
    }

  def encode(self, text: str) -> list[int]:
    return self.model.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    return self.model.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def id_of(self, token: str) -> int | None:
    return self._ids.get(token)

  def token_of(self, token_id: int) -> str:
    return self.model.convert_ids_to_tokens(token_id)


def _read_hugging_face(path: str) -> Any:
  from transformers import AutoTokenizer

  try:
    folder = path if os.path.isdir(path) else hub.snapshot(path, _TOKENIZER_FILES)
    if _has_vocabulary(pathlib.Path(folder)):
      return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
  except (OSError, ValueError, KeyError, RecursionError) as error:
    raise ValueError(f"{_expected_source(path)}; transformers says: {error}") from error
  raise ValueError(f"{_expected_source(path)}; {folder} holds no vocabulary")


def _expected_source(path: str) -> str:
  kinds = ", or ".join(" and ".join(patterns) for patterns in _VOCABULARY_FILES)
  return f"tokenizer {path}: expected a .model or .gguf file, a hub id, or a folder with {kinds}"


def _has_vocabulary(folder: pathlib.Path) -> bool:
  """Where there is none transformers may make an empty one."""
  return any(
    all(any(folder.glob(pattern)) for pattern in patterns) for patterns in _VOCABULARY_FILES
  )


def _model_proto(path: str) -> Any:
  from google.protobuf.message import DecodeError

  proto = sentencepiece_proto.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
  try:
    with open(path, "rb") as file:
      proto.ParseFromString(file.read())
  except DecodeError as error:
    raise ValueError(f"tokenizer {path}: not a SentencePiece model: {error}") from error
  if not proto.pieces:
    raise ValueError(f"tokenizer {path}: a SentencePiece model without pieces")
  return proto


class _GGUF:
  """The vocabulary in a GGUF file, under `tokenizer.ggml.*` (github.com/ggml-org/ggml, gguf.md)."""

  def __init__(self, path: str):
    self.path = path
    try:
      self._fields = read_content(path).fields
    except (ValueError, IndexError, KeyError, OverflowError) as error:
      raise ValueError(f"tokenizer {path}: not a GGUF file: {error}") from error
    self.chat_template: str | None = self._fields.get("tokenizer.chat_template")

  def value(self, key: str, default: Any = None) -> Any:
    found = self._fields.get(f"tokenizer.ggml.{key}", default)
    if found is None:
      raise ValueError(f"tokenizer {self.path}: the GGUF file has no key tokenizer.ggml.{key}")
    return found

  @property
  def size(self) -> int:
    """How many ids have a meaning: converters fill the embedding's last rows with unused names."""
    kinds = self.value("token_type")
    return max(token for token, kind in enumerate(kinds) if kind != _UNUSED) + 1

  @property
  def adds_bos(self) -> bool:
    # Files older than the key: llama.cpp adds bos for Llama 3, and for no other byte-level BPE.
    return bool(self.value("add_bos_token", self.value("pre", "default") == "llama-bpe"))

  def special(self) -> dict[str, int]:
    """The ids of `unk`, `bos`, `eos` and `pad`; -1 is none."""
    keys = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}
    return {name: int(self.value(f"{key}_token_id", -1)) for name, key in keys.items()}


def _gguf_proto(found: _GGUF) -> Any:
  """The SentencePiece model that the vocabulary was made from."""
  proto = sentencepiece_proto.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
  tokens, scores, kinds = found.value("tokens"), found.value("scores"), found.value("token_type")
  special = found.special()
  for token, (piece, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
    # GGUF writers call <unk> a control token, and write user-defined pieces with plain spaces.
    if kind == _USER_DEFINED:
      piece = piece.replace(" ", "▁")
    proto.pieces.add(piece=piece, score=score, type=_UNKNOWN if token == special["unk"] else kind)
  trainer = proto.trainer_spec
  trainer.model_type = 2  # BPE: the scores are merge ranks
  trainer.byte_fallback = _BYTE in kinds
  for name, token in special.items():
    setattr(trainer, f"{name}_id", token)
    if token >= 0:
      setattr(trainer, f"{name}_piece", tokens[token])
  proto.normalizer_spec.name = "identity"
  proto.normalizer_spec.escape_whitespaces = True
  return proto


# How each vocabulary cuts text into words before it merges bytes, by the name that llama.cpp gives
# it. The patterns are the models' own, from their tokenizer.json; they differ in their digits.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED_WORDS = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_PATTERNS: Mapping[str, str | None] = {
  "llama-bpe": "|".join([_WORDS, r"\p{N}{1,3}", _SIGNS, _SPACES]),
  "qwen2": "|".join([_WORDS, r"\p{N}", _SIGNS, _SPACES]),
  "tekken": "|".join([_CASED_WORDS, r"\p{N}", _SIGNS_AND_SLASHES, _SPACES]),
  "gpt-2": None,  # the pattern of the library's ByteLevel
  "smollm": None,  # after single digits are cut off
}
_WHOLE_WORDS_FIRST = ("llama-bpe", "tekken")  # a word that is a token is not merged
_NORMALIZED = ("qwen2",)  # to composed characters (NFC)


def _gguf_byte_level(found: _GGUF) -> Any:
  """The tokenizer of transformers that the vocabulary was made from."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  name = found.value("pre", "gpt-2")
  if name not in _PATTERNS:
    raise ValueError(
      f"tokenizer {found.path}: tokenizer.ggml.pre is {name!r}, supported are"
      f" {', '.join(_PATTERNS)}; name the model's Hugging Face folder as tokenizer instead"
    )
  tokens, kinds = found.value("tokens"), found.value("token_type")
  fast = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: number for number, token in enumerate(tokens[: found.size])},
      merges=[tuple(merge.split(" ")) for merge in found.value("merges")],
      ignore_merges=name in _WHOLE_WORDS_FIRST,
    )
  )
  pattern = _PATTERNS[name]
  cut: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
  if pattern is not None:
    cut.append(pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))
  cut.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
  fast.pre_tokenizer = pre_tokenizers.Sequence(cut)  # pyright: ignore[reportAttributeAccessIssue]
  fast.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
  if name in _NORMALIZED:
    fast.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
  fast.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
  fast.add_tokens(
    [
      tokenizers.AddedToken(token, normalized=False)
      for token, kind in zip(tokens, kinds, strict=True)
      if kind == _USER_DEFINED
    ]
  )
  named = {f"{key}_token": tokens[token] for key, token in found.special().items() if token >= 0}
  model = PreTrainedTokenizerFast(tokenizer_object=fast, **named)
  model.chat_template = found.chat_template
  return model
