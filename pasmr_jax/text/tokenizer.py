"""From strings to token ids and back, with two promises the method rests on.

`load_tokenizer` reads one of four kinds of source:

- a SentencePiece `.model` file, read by the sentencepiece library;
- a `.gguf` file, whose vocabulary (pieces, scores, kinds) is rebuilt as a SentencePiece model, so
  that no deep-learning framework is needed to read it;
- a folder or a hub id in the Hugging Face layout, read by transformers.

All end in one `Tokenizer`, which promises:

1. **Data cannot speak with control tokens.** `encode` never returns a control token: text that
   looks like one ("<eos>", "<unused0>", a delimiter) becomes ordinary pieces that decode to the
   same text. Control tokens are put in place by id, or by a prompt template (`split_controls`).
   The one exception are literal delimiters, which are no tokens of their own: their text is text
   wherever it stands, and `prompts.response` refuses parts that contain it.
2. **Encoding is exact piece by piece.** `decode(encode(a) + encode(b)) == a + b`, so the parts of a
   response can be encoded apart and cut out again. For that SentencePiece models are read without
   their dummy prefix and without folding of spaces (Gemma is trained that way; for a model of the
   Llama 2 kind every text counts as the continuation of a line). What the model's own
   normalisation rule changes (NFKC, for instance) stays changed. Text a vocabulary cannot express
   comes back as its unknown sign; byte fallback avoids that.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto

# Kinds of pieces; SentencePiece and GGUF number them alike.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


class _Vocabulary(Protocol):
  """What `Tokenizer` needs of a library: text to ids, ids to text, and the tokens' names."""

  size: int
  pad_id: int | None
  bos_id: int | None
  eos_id: int | None
  unknown_id: int | None
  controls: Mapping[str, int]  # name -> id of each token that is never text

  def encode(self, text: str) -> list[int]: ...
  def decode(self, ids: Sequence[int]) -> str: ...
  def id_of(self, token: str) -> int | None: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
  """A vocabulary, its control tokens and the delimiters of a translation."""

  source: str  # the path or hub id it was read from, for messages
  vocabulary: _Vocabulary = dataclasses.field(repr=False)
  vocab_size: int  # ids are in [0, vocab_size)
  pad_id: int  # never equal to eos_id or another stop id
  bos_id: int | None  # None if the model has no beginning-of-sequence token
  eos_id: int
  stop_ids: tuple[int, ...]  # eos_id first, then the extra stop tokens
  open_delimiter: str
  close_delimiter: str
  open_ids: tuple[int, ...]  # one id, or several for a literal tag
  close_ids: tuple[int, ...]
  controls: Mapping[str, int] = dataclasses.field(repr=False)  # every name `encode` keeps out
  _control_names: Mapping[int, str] = dataclasses.field(repr=False)
  _control_pattern: re.Pattern[str] = dataclasses.field(repr=False)

  @property
  def single_token_delimiters(self) -> bool:
    """Whether each delimiter is one token, which ordinary text can never produce."""
    return len(self.open_ids) == 1 and len(self.close_ids) == 1

  def encode(self, text: str) -> list[int]:
    """Token ids of ordinary text, without bos or eos. Never contains a control token.

    Raises ValueError if `text` is no valid Unicode (a lone surrogate).
    """
    ids = self._encode(text)
    if self._control_names.keys().isdisjoint(ids):
      return ids
    # The text names a control token. Cut each name after its first character: neither half is
    # a name, and the halves decode to the same text.
    cuts = [match.start() + 1 for match in self._control_pattern.finditer(text)]
    ids = []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
      part = self._encode(text[start:stop])
      if not self._control_names.keys().isdisjoint(part):
        # Only the vocabulary's own normalisation can still make a name (of full-width letters,
        # say). One character at a time it cannot.
        part = [token for character in text[start:stop] for token in self._encode(character)]
      ids += part
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of token ids. Padding, bos and stop tokens are skipped, other control tokens shown.

    Bytes that are no valid UTF-8 come out as U+FFFD. Raises IndexError for an id outside the
    vocabulary.
    """
    skipped = {self.pad_id, self.bos_id, *self.stop_ids}
    text, plain = [], []
    for token in ids:
      token = int(token)
      if not 0 <= token < self.vocab_size:
        raise IndexError(
          f"token id {token} is outside the vocabulary of {self.source} ({self.vocab_size} ids)"
        )
      if token in skipped or token in self._control_names:
        if plain:
          text.append(self.vocabulary.decode(plain))
          plain = []
        if token not in skipped:
          text.append(self._control_names[token])
      else:
        plain.append(token)
    if plain:
      text.append(self.vocabulary.decode(plain))
    return "".join(text)

  def split_controls(self, text: str) -> list[str | int]:
    """Trusted text, such as a prompt template, as ordinary text around control tokens.

    Returns strings and control ids in turn; the first and the last element are strings, maybe
    empty: "<start_of_turn>user" gives ["", 105, "user"].
    """
    parts: list[str | int] = []
    position = 0
    for match in self._control_pattern.finditer(text):
      name = match.group(1)
      if match.start() >= position:
        parts += [text[position : match.start()], self.controls[name]]
        position = match.start() + len(name)
    return [*parts, text[position:]]

  def _encode(self, text: str) -> list[int]:
    try:
      text.encode()  # the libraries raise errors of several kinds
    except UnicodeEncodeError as error:
      raise ValueError(f"text is no valid Unicode, {error.reason}: {text[:80]!r}") from error
    return self.vocabulary.encode(text)


def load_tokenizer(
  path: str,
  open_delimiter: str,
  close_delimiter: str,
  stop_tokens: Sequence[str] = (),
  pad_token: str | None = None,
) -> Tokenizer:
  """Reads a tokenizer and finds its control tokens and delimiters.

  Args:
    path: a SentencePiece `.model` file, a `.gguf` file, a Hugging Face folder, or a hub id.
    open_delimiter: text that opens a translation. If it is a token of the vocabulary (Gemma's
      "<unused0>") it becomes that one token, else the ids of its text.
    close_delimiter: text that closes a translation; both are single tokens or neither is.
    stop_tokens: names of tokens that end a response beside end-of-sequence ("<end_of_turn>").
    pad_token: name of the padding token, for a tokenizer whose own is its end-of-sequence token.
      A tokenizer without padding pads with bos, else with unk: padding is masked everywhere, so
      any id will do that never is a target.

  Raises:
    FileNotFoundError: a `.model` or `.gguf` path that is not there.
    ValueError: an unreadable file, an unknown stop or padding token, no end-of-sequence token,
      padding equal to a stop token, delimiters that are equal, empty, or of two kinds.
  """
  vocabulary = _read_vocabulary(path)

  def named(token: str, key: str) -> int:
    token_id = vocabulary.id_of(token)
    if token_id is None:
      raise ValueError(f"tokenizer {path}: {key} names {token!r}, which is not in its vocabulary")
    return token_id

  if vocabulary.eos_id is None:
    raise ValueError(f"tokenizer {path}: it has no end-of-sequence token, expected one")
  stop_ids = (vocabulary.eos_id, *(named(token, "stop_tokens") for token in stop_tokens))
  stop_ids = tuple(dict.fromkeys(stop_ids))

  if pad_token is not None:
    pad_id = named(pad_token, "pad_token")
  else:
    candidates = (vocabulary.pad_id, vocabulary.bos_id, vocabulary.unknown_id)
    pad_id = next((token for token in candidates if token is not None), None)
    if pad_id is None:
      raise ValueError(
        f"tokenizer {path}: it has no padding, beginning-of-sequence or unknown token;"
        " name a padding token (pad_token)"
      )
  if pad_id in stop_ids:
    raise ValueError(
      f"tokenizer {path}: padding and a stop token are the same id {pad_id}, so that the end of a"
      " response could not be learned; name another padding token (pad_token)"
    )

  delimiters = {"open_delimiter": open_delimiter, "close_delimiter": close_delimiter}
  single = {key: vocabulary.id_of(text) for key, text in delimiters.items()}
  _check_delimiters(path, delimiters, single, {pad_id, vocabulary.bos_id, *stop_ids})

  controls = dict(vocabulary.controls)
  if None in single.values():
    open_ids, close_ids = (tuple(vocabulary.encode(text)) for text in delimiters.values())
    _check_literal_delimiters(path, vocabulary, delimiters)
  else:
    controls |= {delimiters[key]: token for key, token in single.items() if token is not None}
    open_ids, close_ids = ((token,) for token in single.values() if token is not None)
  controls |= {token: named(token, "stop_tokens") for token in stop_tokens}
  if pad_token is not None:
    controls[pad_token] = pad_id

  # Longest first, so that "<unused10>" is not read as a shorter name. A look-ahead also finds
  # names that overlap.
  names = sorted(controls, key=len, reverse=True)
  return Tokenizer(
    source=path,
    vocabulary=vocabulary,
    vocab_size=vocabulary.size,
    pad_id=pad_id,
    bos_id=vocabulary.bos_id,
    eos_id=vocabulary.eos_id,
    stop_ids=stop_ids,
    open_delimiter=open_delimiter,
    close_delimiter=close_delimiter,
    open_ids=open_ids,
    close_ids=close_ids,
    controls=controls,
    _control_names={token: name for name, token in controls.items()},
    _control_pattern=re.compile(f"(?=({'|'.join(map(re.escape, names))}))"),
  )


def _check_delimiters(
  path: str,
  delimiters: Mapping[str, str],
  single: Mapping[str, int | None],
  taken: set[int | None],
) -> None:
  for key, text in delimiters.items():
    if not text or text != text.strip():
      raise ValueError(f"tokenizer {path}: {key} is {text!r}, expected text without outer spaces")
    if single[key] is not None and single[key] in taken:
      raise ValueError(
        f"tokenizer {path}: {key} {text!r} is the padding, beginning or a stop token;"
        " expected a token of its own"
      )
  opening, closing = delimiters.values()
  if opening in closing or closing in opening:
    raise ValueError(
      f"tokenizer {path}: open_delimiter {opening!r} and close_delimiter {closing!r} must differ"
      " and neither contain the other"
    )
  if (single["open_delimiter"] is None) != (single["close_delimiter"] is None):
    has, lacks = (opening, closing) if single["close_delimiter"] is None else (closing, opening)
    raise ValueError(
      f"tokenizer {path}: {has!r} is one token and {lacks!r} is not; expected both or neither"
    )


def _check_literal_delimiters(
  path: str, vocabulary: _Vocabulary, delimiters: Mapping[str, str]
) -> None:
  opening, closing = delimiters.values()
  for part in ("x", " x"):
    pieces = [token for text in (opening, part, closing) for token in vocabulary.encode(text)]
    if vocabulary.decode(pieces) != opening + part + closing:
      raise ValueError(
        f"tokenizer {path}: texts encoded apart do not join to the same text, got"
        f" {vocabulary.decode(pieces)!r}, expected {opening + part + closing!r}; use delimiters"
        " that are single tokens of its vocabulary"
      )


def _read_vocabulary(path: str) -> _Vocabulary:
  suffix = os.path.splitext(path)[1]
  if suffix not in (".model", ".gguf"):
    return _HuggingFace(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"tokenizer {path}: no such file")
  return _SentencePiece(_gguf_proto(path) if suffix == ".gguf" else _model_proto(path), path)


class _SentencePiece:
  """A SentencePiece model without dummy prefix and without folding of spaces."""

  def __init__(self, proto: Any, path: str):
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
      raise ValueError(f"tokenizer {path}: sentencepiece cannot use it: {error}") from error
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
    self.controls: Mapping[str, int] = {
      piece.piece: token for token, piece in enumerate(proto.pieces) if piece.type == _CONTROL
    }

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(list(ids))

  def id_of(self, token: str) -> int | None:
    token_id = self._model.piece_to_id(token)
    return token_id if self._model.id_to_piece(token_id) == token else None


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


def _gguf_proto(path: str) -> Any:
  """The SentencePiece model that a GGUF file's vocabulary was made from.

  GGUF keeps a SentencePiece vocabulary as pieces, scores and kinds under `tokenizer.ggml.*`
  (github.com/ggml-org/ggml, docs/gguf.md).
  """
  import gguf

  try:
    fields = gguf.GGUFReader(path).fields
  except (ValueError, IndexError) as error:
    raise ValueError(f"tokenizer {path}: not a GGUF file: {error}") from error

  def value(key: str, default: Any = None) -> Any:
    field = fields.get(f"tokenizer.ggml.{key}")
    if field is None and default is None:
      raise ValueError(f"tokenizer {path}: the GGUF file has no key tokenizer.ggml.{key}")
    return default if field is None else field.contents()

  if value("model") != "llama":
    raise ValueError(
      f"tokenizer {path}: tokenizer.ggml.model is {value('model')!r}, expected 'llama' (a"
      " SentencePiece vocabulary); name the model's Hugging Face folder as tokenizer instead"
    )
  proto = sentencepiece_proto.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
  tokens, scores, kinds = value("tokens"), value("scores"), value("token_type")
  unknown = int(value("unknown_token_id", -1))
  for token, (piece, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
    # GGUF writers call <unk> a control token, and write user-defined pieces with plain spaces.
    if kind == _USER_DEFINED:
      piece = piece.replace(" ", "▁")
    proto.pieces.add(piece=piece, score=score, type=_UNKNOWN if token == unknown else kind)
  trainer = proto.trainer_spec
  trainer.model_type = 2  # BPE: the scores are merge ranks
  trainer.byte_fallback = _BYTE in kinds
  for name, key in (
    ("unk", "unknown_token_id"),
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("pad", "padding_token_id"),
  ):
    token = int(value(key, -1))
    setattr(trainer, f"{name}_id", token)
    if token >= 0:
      setattr(trainer, f"{name}_piece", tokens[token])
  proto.normalizer_spec.name = "identity"
  proto.normalizer_spec.escape_whitespaces = True
  return proto


class _HuggingFace:
  """A tokenizer that transformers reads from a folder or the hub."""

  def __init__(self, path: str):
    from transformers import AutoTokenizer

    try:
      self._model: Any = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(
        f"tokenizer {path}: expected a .model or .gguf file, a folder with tokenizer.json, or a"
        f" hub id; transformers says: {error}"
      ) from error
    self.pad_id = self._model.pad_token_id
    self.bos_id = self._model.bos_token_id
    self.eos_id = self._model.eos_token_id
    self.unknown_id = self._model.unk_token_id
    self._ids = dict(self._model.get_vocab())
    self.size = max(self._ids.values()) + 1
    self.controls: Mapping[str, int] = {
      added.content: token
      for token, added in self._model.added_tokens_decoder.items()
      if added.special
    }

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def id_of(self, token: str) -> int | None:
    return self._ids.get(token)
