"""From strings to token ids and back, with two promises the method rests on.

`load_tokenizer` reads a vocabulary (`vocabularies.py`: a SentencePiece `.model`, a `.gguf` file, a
Hugging Face folder or hub id) and settles its control tokens and delimiters. The `Tokenizer` it
gives promises:

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
import re
from collections.abc import Mapping, Sequence

from pasmr_jax.text.vocabularies import Vocabulary, read_vocabulary

DELIMITERS = ("added", "tags")  # what delimiters are that the vocabulary lacks
_TAGS = ("<pivot>", "</pivot>")  # where the vocabulary has nothing to spare
# Tokens to spare: they stand in a family's vocabulary, and its training did not use them.
_RESERVED = (
  ("<unused0>", "<unused1>"),  # Gemma
  ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),  # Llama 3
  ("<SPECIAL_100>", "<SPECIAL_101>"),  # Mistral's Tekken
  ("[control_100]", "[control_101]"),  # Mistral's SentencePiece from version 3 on
)
_OPEN, _CLOSE = "tokenizer.open", "tokenizer.close"  # keys of the configuration, for messages
_UNDECODED = "\ufffd"  # what bytes that are no whole character decode to


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
  """A vocabulary, its control tokens and the delimiters of a translation."""

  source: str  # the path or hub id it was read from, for messages
  vocabulary: Vocabulary = dataclasses.field(repr=False)
  vocab_size: int  # ids are in [0, vocab_size)
  pad_id: int  # never equal to eos_id or another stop id
  bos_id: int | None  # None if the model's texts begin with no such token
  eos_id: int
  stop_ids: tuple[int, ...]  # eos_id, the extra stop tokens, what ends an answer in a chat
  open_delimiter: str
  close_delimiter: str
  open_ids: tuple[int, ...]  # one id, or several for a literal tag
  close_ids: tuple[int, ...]
  added: Mapping[int, tuple[int, ...]]  # delimiters the vocabulary lacks: id -> ids of their text
  controls: Mapping[str, int] = dataclasses.field(repr=False)  # every name `encode` keeps out
  _control_names: Mapping[int, str] = dataclasses.field(repr=False)
  _control_pattern: re.Pattern[str] = dataclasses.field(repr=False)
  turn: tuple[str, str] | None = None  # text before and after a user's message in a chat

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

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """The text that each token adds, joined `decode(ids)`: for cutting and showing it by tokens.

    In many scripts a character's bytes are spread over several tokens; it comes with the last of
    them. Bytes that no later token completes come with that token as U+FFFD.
    """
    added: list[str] = []
    before: list[int] = []  # tokens decoded already, as context: a library may treat a start apart
    open_: list[int] = []  # tokens since then, the last of which ends inside a character
    given, context = 0, 0  # characters of the open tokens that were given out, and of the context
    for token in ids:
      open_.append(token)
      text = self.decode([*before, *open_])[context:]
      whole = text.rstrip(_UNDECODED)
      added.append(whole[given:])
      given = len(whole)
      if whole == text:
        before, open_, given = open_, [], 0
        context = len(self.decode(before))
    if open_:
      added[-1] += self.decode([*before, *open_])[context + given :]
    return added

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
  add_delimiters: bool = False,
) -> Tokenizer:
  """Reads a tokenizer and finds its control tokens and delimiters.

  Args:
    path: a SentencePiece `.model` file, a `.gguf` file, a Hugging Face folder, or a hub id.
    open_delimiter: text that opens a translation. If it is a token of the vocabulary (Gemma's
      "<unused0>") it becomes that one token, else the ids of its text. "" takes a reserved token
      where the vocabulary has some of the known names, else "<pivot>".
    close_delimiter: text that closes a translation; "" if and only if `open_delimiter` is.
    stop_tokens: names of tokens that end a response beside end-of-sequence ("<end_of_turn>").
    pad_token: name of the padding token. If None: the tokenizer's own, unless that also ends a
      response (Qwen's), else bos, else unk, else any other control token: padding is masked
      everywhere, so any id will do that never is a target.
    add_delimiters: a delimiter that the vocabulary lacks becomes a new token, with an id after the
      vocabulary's last; the model needs an embedding row for it.

  Raises:
    FileNotFoundError: a `.model` or `.gguf` path that is not there.
    ValueError: an unreadable file, an unknown stop or padding token, one of them or a delimiter
      that is a single character of ordinary text, no end-of-sequence token, no token for padding
      but one that ends a response, delimiters that are equal, empty, or (not added) of two kinds.
      It names the configuration's keys, not these arguments.
  """
  vocabulary = read_vocabulary(path)
  if not open_delimiter and not close_delimiter:
    open_delimiter, close_delimiter = _choose_delimiters(vocabulary)

  def named(token: str, key: str) -> int:
    token_id = vocabulary.id_of(token)
    if token_id is None:
      raise ValueError(f"tokenizer {path}: {key} names {token!r}, which is not in its vocabulary")
    return token_id

  if vocabulary.eos_id is None:
    raise ValueError(f"tokenizer {path}: it has no end-of-sequence token, expected one")
  stop_ids = (vocabulary.eos_id, *(named(token, "tokenizer.stop") for token in stop_tokens))
  stop_ids = tuple(dict.fromkeys(stop_ids))

  delimiters = {_OPEN: open_delimiter, _CLOSE: close_delimiter}
  single = {key: vocabulary.id_of(text) for key, text in delimiters.items()}
  if pad_token is None:
    pad_id = _choose_padding(path, vocabulary, {*stop_ids, *single.values()})
  else:
    pad_id = named(pad_token, "tokenizer.pad")
    if pad_id in stop_ids:
      raise ValueError(
        f"tokenizer {path}: the padding token {pad_token!r} is also a stop token, so that the end"
        " of a response could not be learned; name another (tokenizer.pad)"
      )
  added: dict[int, tuple[int, ...]] = {}
  if add_delimiters:
    for key, text in delimiters.items():
      if single[key] is None:
        single[key] = vocabulary.size + len(added)
        added[vocabulary.size + len(added)] = tuple(vocabulary.encode(text))
  _check_delimiters(path, delimiters, single, {pad_id, vocabulary.bos_id, *stop_ids})

  controls = dict(vocabulary.controls)
  if None in single.values():
    open_ids, close_ids = (tuple(vocabulary.encode(text)) for text in delimiters.values())
    _check_literal_delimiters(path, vocabulary, delimiters)
  else:
    controls |= {delimiters[key]: token for key, token in single.items() if token is not None}
    open_ids, close_ids = ((token,) for token in single.values() if token is not None)
  controls |= {token: named(token, "tokenizer.stop") for token in stop_tokens}
  if pad_token is not None:
    controls[pad_token] = pad_id

  # Longest first, so that "<unused10>" is not read as a shorter name. A look-ahead also finds
  # names that overlap.
  names = sorted(controls, key=len, reverse=True)
  tokenizer = Tokenizer(
    source=path,
    vocabulary=vocabulary,
    vocab_size=vocabulary.size + len(added),
    pad_id=pad_id,
    bos_id=vocabulary.bos_id if vocabulary.adds_bos else None,
    eos_id=vocabulary.eos_id,
    stop_ids=stop_ids,
    open_delimiter=open_delimiter,
    close_delimiter=close_delimiter,
    open_ids=open_ids,
    close_ids=close_ids,
    added=added,
    controls=controls,
    _control_names={token: name for name, token in controls.items()},
    _control_pattern=re.compile(f"(?=({'|'.join(map(re.escape, names))}))"),
  )
  stops = (("tokenizer.stop", token) for token in stop_tokens)
  for key, token in (*stops, ("tokenizer.pad", pad_token), *delimiters.items()):
    if token is not None and token in controls:
      _check_kept_out(tokenizer, key, token)
  return tokenizer


def _check_kept_out(tokenizer: Tokenizer, key: str, token: str) -> None:
  """`encode` cuts a control token's text in two to keep it out; one character it cannot cut."""
  token_id = tokenizer.controls[token]
  written = [] if token_id in tokenizer.added else [token_id]
  if token_id in tokenizer.encode(tokenizer.vocabulary.decode(written)):
    raise ValueError(
      f"tokenizer {tokenizer.source}: {key} names {token!r}, which stands in text; expected a"
      " token that ordinary text cannot have"
    )


def _choose_delimiters(vocabulary: Vocabulary) -> tuple[str, str]:
  """A pair of tokens that the vocabulary has; tags if it has none."""
  for pair in (_TAGS, *_RESERVED):
    if all(vocabulary.id_of(token) is not None for token in pair):
      return pair
  return _TAGS


def _choose_padding(path: str, vocabulary: Vocabulary, taken: set[int | None]) -> int:
  candidates = (vocabulary.pad_id, vocabulary.bos_id, vocabulary.unknown_id)
  for token in (*candidates, *vocabulary.controls.values()):
    if token is not None and token not in taken:
      return token
  raise ValueError(
    f"tokenizer {path}: it has no control token to pad with but those that end a response or stand"
    " around a translation; name a padding token (tokenizer.pad)"
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
      f"tokenizer {path}: {_OPEN} {opening!r} and {_CLOSE} {closing!r} must differ"
      " and neither contain the other"
    )
  if (single[_OPEN] is None) != (single[_CLOSE] is None):
    has, lacks = (opening, closing) if single[_CLOSE] is None else (closing, opening)
    raise ValueError(
      f"tokenizer {path}: of {_OPEN} and {_CLOSE} {has!r} is one token and {lacks!r} is not;"
      " expected both or neither"
    )


def _check_literal_delimiters(
  path: str, vocabulary: Vocabulary, delimiters: Mapping[str, str]
) -> None:
  opening, closing = delimiters.values()
  for part in ("x", " x"):
    pieces = [token for text in (opening, part, closing) for token in vocabulary.encode(text)]
    if vocabulary.decode(pieces) != opening + part + closing:
      raise ValueError(
        f"tokenizer {path}: texts encoded apart do not join to the same text, got"
        f" {vocabulary.decode(pieces)!r}, expected {opening + part + closing!r}; name single tokens"
        f" of its vocabulary ({_OPEN} and {_CLOSE})"
      )
