"""Which of the languages in play is a text written in?

The path of a text: what belongs to no language is taken out (numbers, LaTeX, links, the delimiters
of the response format), the letters that are left are counted by Unicode script, and
  - fewer letters than can decide, or no script with a clear majority: 'unknown';
  - the majority script is written by none of the languages in play: 'other';
  - by exactly one: that one (Chinese and Japanese are told apart by the share of kana);
  - by several: lingua (https://github.com/pemistahl/lingua-py) restricted to those; its first
    choice must lead by the more, the shorter the text is, else 'unknown'.

The world is closed: a Portuguese text is called Spanish if Spanish is the only language in play
that is written in Latin letters.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pasmr_jax.text import languages as language_tables

if TYPE_CHECKING:
  import lingua

UNKNOWN = "unknown"  # too little to tell
OTHER = "other"  # enough to tell that it is no one of the languages in play

# Of a longer text its beginning, middle and end are read, so that a drift from one language into
# another shows, at the cost of this many characters.
MAX_CHARACTERS = 900
# The majority script must hold this share of the (weighted) letters.
MIN_SCRIPT_SHARE = 0.6
# Letters needed where the script alone decides; where lingua has to, or for 'other'.
MIN_LETTERS_BY_SCRIPT = 2
MIN_LETTERS_BY_LINGUA = 8
MIN_LETTERS_MIXED = 20  # for 'other' because no script has the majority
# Japanese has kana in every clause, Chinese none: so many Han letters without kana are Chinese.
MIN_KANA_SHARE = 0.05
MIN_HAN_WITHOUT_KANA = 10
# lingua's first choice must lead the second by this over the number of letters: by 0.4 at 10
# letters, 0.1 at 40. Of MGSM's questions in 11 languages, cut at 40 characters, 99.7 % are then
# named right and 0.2 % wrong; cut at 10, 67 % and 1 %.
LEAD_TIMES_LETTERS = 4.0
# Names tell little of a language: lingua sees the words without a capital if they have so many
# letters.
MIN_LETTERS_WITHOUT_NAMES = 10

# A letter's Unicode name begins with its script ("BENGALI LETTER KA"), but for its width and some
# words; and some letters are symbols.
_WIDTHS = re.compile("(?:HALFWIDTH|FULLWIDTH|COMBINING) ")
_SCRIPT_OF_WORD = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana"}
_SYMBOLS = ("MODIFIER", "SUPERSCRIPT")
_WRITTEN = frozenset(
  script for table in language_tables.LANGUAGES.values() for script in table.scripts
)
# One such character says about as much as this many letters of an alphabet.
_SCRIPT_WEIGHTS = {"Han": 3, "Hiragana": 2, "Katakana": 2, "Hangul": 2}

# Taken out: delimiters of the response format, chat and mark-up tags, LaTeX, code, links. Every
# repetition is bounded and excludes its own first character, so matching is linear.
_NOT_LANGUAGE = re.compile(
  r"</?[A-Za-z_|][A-Za-z0-9_|]{0,40}>"  # <pivot>, </pivot>, <unused0>, <|end|>
  r"|\$\$[^$]{0,400}\$\$"
  r"|\$(?!\s)[^$\n]{0,200}[\\^_=+*/{][^$\n]{0,200}(?<!\s)\$(?![0-9])"  # "$5 + $6" is no formula
  r"|\\\([^\\\n]{0,200}\\\)"
  r"|\\\[[^\[\]]{0,400}\\\]"
  r"|\\(?:text|mathrm|textbf|mbox)\s?(?=\{)"  # keeps the words inside
  r"|\\[A-Za-z]{1,30}"
  r"|https?://\S{1,200}"
)


@functools.lru_cache(maxsize=1 << 14)
def _script(character: str) -> str | None:
  """Script of one letter, or of a mark on letters; None for all else, symbols included."""
  if not character.isalpha() and unicodedata.category(character)[0] != "M":
    return None
  name = _WIDTHS.sub("", unicodedata.name(character, ""), count=1)
  word = name.partition(" ")[0]
  script = _SCRIPT_OF_WORD.get(word, word.capitalize())
  if script in _WRITTEN:
    return script
  # Of other scripts only what is a letter by its name: "DOUBLE-STRUCK CAPITAL R" is none.
  is_letter = " LETTER " in name or " SYLLAB" in name
  return script if is_letter and word not in _SYMBOLS else None


def _sample(text: str) -> str:
  """The text, or its beginning, middle and end if it is longer than `MAX_CHARACTERS`."""
  if len(text) <= MAX_CHARACTERS:
    return text
  part = MAX_CHARACTERS // 3
  middle = (len(text) - part) // 2
  return f"{text[:part]} {text[middle : middle + part]} {text[-part:]}"


def clean(text: str) -> str:
  """Takes out of `text` what belongs to no language: mark-up, LaTeX, digits and symbols."""
  # An accent may be a character of its own, which is no letter.
  text = _NOT_LANGUAGE.sub(" ", unicodedata.normalize("NFC", text))
  kept = (c if c.isalpha() or _script(c) else "'" if c in "'’" else " " for c in text)
  return " ".join("".join(kept).split())


@functools.lru_cache(maxsize=64)
def _detector(codes: tuple[str, ...]) -> "lingua.LanguageDetector":
  """lingua restricted to `codes`. Raises ValueError naming the ones that lingua does not know."""
  import lingua

  known = {entry.iso_code_639_1.name.lower(): entry for entry in lingua.Language.all()}
  missing = [code for code in codes if code not in known]
  if missing:
    names = ", ".join(f"{code!r} ({language_tables.language(code).name})" for code in missing)
    raise ValueError(
      f"cannot tell {', '.join(codes)} apart: they share a script and lingua does not know {names}"
    )
  builder = lingua.LanguageDetectorBuilder.from_languages(*(known[code] for code in codes))
  return builder.build()


@functools.lru_cache(maxsize=64)
def _by_script(codes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """Script -> languages in play that write it. Checks that each pair can be told apart."""
  tables = {code: language_tables.language(code) for code in codes}
  scripts = {script for table in tables.values() for script in table.scripts}
  shared = {
    script: tuple(code for code in codes if script in tables[code].scripts) for script in scripts
  }
  for script, candidates in shared.items():
    if len(candidates) > 1 and script != "Han":
      _detector(candidates)
  return shared


def _scripts(text: str) -> Counter[str]:
  """How many letters of each script."""
  return Counter(script for character in text if (script := _script(character)) is not None)


def _candidates(counts: Counter[str], codes: tuple[str, ...]) -> tuple[tuple[str, ...], int] | None:
  """Languages in play that write the majority script, and its letters; None without a majority."""
  if not counts:
    return None
  weights = {script: count * _SCRIPT_WEIGHTS.get(script, 1) for script, count in counts.items()}
  total = sum(weights.values())
  by_script = _by_script(codes)
  kana = counts["Hiragana"] + counts["Katakana"]
  letters = counts["Han"] + kana
  if sum(weights.get(s, 0) for s in ("Han", "Hiragana", "Katakana")) >= MIN_SCRIPT_SHARE * total:
    if kana >= MIN_KANA_SHARE * letters:
      return by_script.get("Hiragana", ()), letters
    if "zh" in codes:
      return ("zh",), letters
    return by_script.get("Han", ()) if letters < MIN_HAN_WITHOUT_KANA else (), letters
  script, letters = max(counts.items(), key=lambda item: weights[item[0]])
  if weights[script] < MIN_SCRIPT_SHARE * total:
    return None
  return by_script.get(script, ()), letters


@functools.lru_cache(maxsize=1 << 13)
def _identify_one(text: str, codes: tuple[str, ...]) -> str:
  words = clean(text)
  counts = _scripts(words)
  if not counts:
    return UNKNOWN
  # Names may be half of a sentence, and are written as in their own language.
  uncapitalised = " ".join(word for word in words.split() if not word[0].isupper())
  found = _candidates(counts, codes) or _candidates(_scripts(uncapitalised), codes)
  if found is None:
    return OTHER if counts.total() >= MIN_LETTERS_MIXED else UNKNOWN
  candidates, letters = found
  if len(candidates) == 1 and letters >= MIN_LETTERS_BY_SCRIPT:
    return candidates[0]
  if len(candidates) == 1 or letters < MIN_LETTERS_BY_LINGUA:
    return UNKNOWN
  if not candidates:
    return OTHER
  if len(uncapitalised) - uncapitalised.count(" ") >= MIN_LETTERS_WITHOUT_NAMES:
    words = uncapitalised
  first, second = _detector(candidates).compute_language_confidence_values(words)[:2]
  if first.value - second.value < LEAD_TIMES_LETTERS / letters:
    return UNKNOWN
  return first.language.iso_code_639_1.name.lower()


def identify(texts: Sequence[str], languages: tuple[str, ...]) -> list[str]:
  """Names the language of each text, among `languages`.

  Args:
    texts: any strings; at most `MAX_CHARACTERS` characters of each are read.
    languages: codes of `languages.LANGUAGES` that are in play.

  Returns:
    For each text one code of `languages`; 'unknown' if it is too short or too alike to tell, or
    'other' if it is in a script that none of them writes, or half in one and half in another.

  Raises:
    ValueError: a code is unknown, or two languages in play share a script and lingua does not know
      one of them.
  """
  codes = tuple(dict.fromkeys(languages))
  _by_script(codes)
  return [_identify_one(_sample(text), codes) for text in texts]
