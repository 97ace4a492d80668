"""One plain character for each way to write a digit, a sign or a space; positions stay true."""

import unicodedata

SIGN = "-"
NARROW = "\u00a0"  # every no-break, narrow and thin space, normalised
INVISIBLE = "\u200b"  # every zero-width and direction mark, normalised

_SAME = {
  **dict.fromkeys(map(ord, "\u2212\ufe63\u2010\u2011\u2012\u207b"), SIGN),
  **dict.fromkeys(map(ord, "\u00a0\u202f\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u205f"), NARROW),
  **dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032"), "'"),
  **dict.fromkeys(
    (0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), INVISIBLE
  ),
  **dict.fromkeys((0x061C, 0xFEFF, 0x00AD, 0x2060), INVISIBLE),
  **dict.fromkeys(map(ord, "\u2044\u2215"), "/"),
  **dict.fromkeys(map(ord, "\u22c5\u2219\u2022"), "·"),
  0x3000: " ",
  0xFE69: "$",
  0xFFE0: "¢",
  0xFFE1: "£",
  0xFFE5: "¥",
  0xFFE6: "₩",
  0x2236: ":",
  0x0130: "I",  # the one letter whose lower case has two characters
}


class _Characters(dict[int, str | int]):
  """Translation table that fills itself with the characters that it meets."""

  def __missing__(self, code: int) -> str | int:
    character = chr(code)
    digit = unicodedata.decimal(character, None) if code > 127 else None
    mapped: str | int = code
    if digit is not None:
      mapped = str(digit)
    elif 0xFF01 <= code <= 0xFF5E:
      mapped = chr(code - 0xFEE0)
    if len(self) < 1 << 14:  # hostile text could otherwise make it as large as Unicode
      self[code] = mapped
    return mapped


_CHARACTERS = _Characters(_SAME)


def normalise(text: str) -> str:
  """Maps digits, signs, spaces and full-width forms to plain ones; the length stays the same."""
  return text if text.isascii() else text.translate(_CHARACTERS)


def word_forms(words: tuple[str, ...]) -> tuple[str, ...]:
  """Lower-case forms under which `words` occur: as given, composed, decomposed; longest first."""
  forms: dict[str, None] = {}
  for word in words:
    for form in (word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)):
      forms[form.lower()] = None
      for nuktaless, composed in _COMPOSED_NUKTAS:
        if nuktaless in form:
          forms[form.lower().replace(nuktaless, composed)] = None
  return tuple(sorted(forms, key=lambda form: (-len(form), form)))


# Unicode's normal forms never compose these, keyboards do.
_COMPOSED_NUKTAS = (
  ("\u09af\u09bc", "\u09df"),
  ("\u09a1\u09bc", "\u09dc"),
  ("\u09a2\u09bc", "\u09dd"),
  ("\u091c\u093c", "\u095b"),
  ("\u0921\u093c", "\u095c"),
  ("\u0922\u093c", "\u095d"),
)
