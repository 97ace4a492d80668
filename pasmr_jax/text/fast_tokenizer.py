"""A tokenizer as transformers reads it: the tokenizer files of an exported model.

A vocabulary that transformers read is written by it again. A SentencePiece model is rebuilt with
the tokenizers library: its pieces and scores, its spaces, its bytes. New delimiters become added
tokens. What is written must give the ids of `Tokenizer.encode`, and delimiters that are tokens must
have their ids: both are checked before anything is written.
"""

import copy
import pathlib
from typing import Any

from pasmr_jax.text.tokenizer import Tokenizer
from pasmr_jax.text.vocabularies import FastVocabulary, SentencePieceVocabulary

# Scripts, digits, spaces and signs by which the rebuilt tokenizer is compared.
_SAMPLES = (
  "Anna has 17 apples, and buys 5 more. 17 + 5 = 22\n#### 22",
  "Größe  zwei\tspaces, 1.234,50 € -- «x²»",
  "У Анны 7 яблок. 我有四十五個苹果。 りんごは 18 個あります。",
  "আনার ৭টি আপেল আছে। ราคา 1,234 บาท ధర 12 مجموع ١٢ و ٣",
  " leading and trailing \n\n",
)
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # SentencePiece's kinds of pieces
_UNIGRAM, _BPE = 1, 2  # SentencePiece's kinds of models


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
  """Writes tokenizer.json and what belongs to it.

  Raises:
    ValueError: transformers cannot express this vocabulary exactly.
  """
  fast = to_fast(tokenizer)
  for text in _SAMPLES:
    found, expected = fast.encode(text, add_special_tokens=False), tokenizer.encode(text)
    if found != expected:
      raise ValueError(
        f"tokenizer {tokenizer.source}: transformers would read {text!r} as {found}, not {expected}"
      )
  for text, ids in (
    (tokenizer.open_delimiter, tokenizer.open_ids),
    (tokenizer.close_delimiter, tokenizer.close_ids),
  ):
    found = fast.encode(text, add_special_tokens=False)
    if found != list(ids):
      raise ValueError(
        f"tokenizer {tokenizer.source}: transformers would read the delimiter {text!r} as {found},"
        f" not {list(ids)}"
      )
  fast.save_pretrained(folder)


def to_fast(tokenizer: Tokenizer) -> Any:
  """The tokenizer of transformers, with delimiters and a padding token."""
  import tokenizers

  vocabulary = tokenizer.vocabulary
  if isinstance(vocabulary, FastVocabulary):
    fast = copy.deepcopy(vocabulary.model)
  elif isinstance(vocabulary, SentencePieceVocabulary):
    fast = _from_sentencepiece(vocabulary)
  else:
    raise TypeError(f"unknown vocabulary {type(vocabulary).__name__}")
  if tokenizer.single_token_delimiters:
    delimiters = (tokenizer.open_delimiter, tokenizer.close_delimiter)
    fast.add_tokens(
      [tokenizers.AddedToken(text, normalized=False) for text in delimiters], special_tokens=True
    )
  # Its own may be one that ends a response, which is learned and not padding.
  fast.pad_token = vocabulary.token_of(tokenizer.pad_id)
  return fast


def _from_sentencepiece(vocabulary: SentencePieceVocabulary) -> Any:
  import tokenizers
  from tokenizers import decoders, normalizers, processors
  from transformers import PreTrainedTokenizerFast

  proto = vocabulary.proto
  fast = tokenizers.Tokenizer(_model(proto))
  steps: list[Any] = [normalizers.Replace(" ", "▁")]
  if proto.normalizer_spec.precompiled_charsmap:
    steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
  fast.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
  fast.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  fast.add_special_tokens(
    [
      tokenizers.AddedToken(piece.piece, normalized=False, special=True)
      for piece in proto.pieces
      if piece.type in (_CONTROL, _UNKNOWN)
    ]
  )
  # They are found in the text as it is after normalisation, where spaces are signs already.
  fast.add_tokens(
    [
      tokenizers.AddedToken(piece.piece, normalized=True)
      for piece in proto.pieces
      if piece.type == _USER_DEFINED
    ]
  )
  ids = {
    "bos_token": vocabulary.bos_id,
    "eos_token": vocabulary.eos_id,
    "unk_token": vocabulary.unknown_id,
    "pad_token": vocabulary.pad_id,
  }
  named = {key: vocabulary.token_of(token) for key, token in ids.items() if token is not None}
  if vocabulary.adds_bos and vocabulary.bos_id is not None:
    bos = named["bos_token"]
    fast.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
      single=f"{bos} $A", special_tokens=[(bos, vocabulary.bos_id)]
    )
  model = PreTrainedTokenizerFast(tokenizer_object=fast, **named)
  model.chat_template = vocabulary.chat_template
  return model


def _model(proto: Any) -> Any:
  from tokenizers import models

  kind = proto.trainer_spec.model_type
  if kind not in (_UNIGRAM, _BPE):
    raise ValueError("a SentencePiece model of words or characters has no tokenizer.json")
  unknown = next((i for i, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN), None)
  bytes_too = proto.trainer_spec.byte_fallback
  if kind == _UNIGRAM:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, unknown, bytes_too)
  vocab = {piece.piece: token for token, piece in enumerate(proto.pieces)}
  return models.BPE(
    vocab=vocab,
    merges=_merges(proto, vocab),
    unk_token=None if unknown is None else proto.pieces[unknown].piece,
    fuse_unk=True,
    byte_fallback=bytes_too,
  )


def _merges(proto: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
  """Every pair of pieces that makes a piece, best pieces first, as SentencePiece merges."""
  found = []
  for token, piece in enumerate(proto.pieces):
    if piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED):
      continue
    text = piece.piece
    for at in range(1, len(text)):
      left, right = text[:at], text[at:]
      if left in vocab and right in vocab:
        found.append((-piece.score, token, vocab[left], left, right))
  return [(left, right) for *_, left, right in sorted(found)]
