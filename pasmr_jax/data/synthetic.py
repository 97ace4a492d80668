"""The built-in corpus: templated word problems in six languages, written for this project.

The path: a `Problem` is drawn without any words (who, what, how many, what happens), its split
follows from its numbers alone, and it is then worded in any language. English is the pivot:

  problems('train', seed, 'pam', 2000) -> [Problem, ...]
  questions(pool, 'de', prefix='train-pam') -> [Question(text=German, pivot_text=English, ...), ...]
  train_tokenizer(path) -> a small SentencePiece model in which each word is one piece

Nothing is read from disk or network, so tests and the benchmark run anywhere. No two languages
share a word (names are localised too, Bengali has digits of its own): a model cannot solve the
other languages' questions from English alone, it has to learn to translate them.

Events keep the running amount within 0..99 and every amount told is at least 2, so that a plural
is always right; only Russian then needs the number to pick the form of a noun.
"""

import dataclasses
import hashlib
import io
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import sentencepiece

from pasmr_jax.data.questions import Question

LANGUAGES: tuple[str, ...] = ("en", "de", "es", "sw", "ru", "bn")
PIVOT = "en"
SPLITS: tuple[str, ...] = ("train", "development", "test")

EventKind = Literal["buy", "find", "sell", "lose"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)
GAINS: frozenset[EventKind] = frozenset({"buy", "find"})

SMALLEST, LARGEST = 2, 45  # of the amounts that somebody has
# An event changes the amount by one digit: after 600 steps of 2,048 tokens a model of 0.5 M
# parameters answers nine English questions in ten, with changes up to 20 only three.
LARGEST_CHANGE = 9
LARGEST_RESULT = 99
LARGEST_POOL = 1_000_000  # far below the number of distinct problems, so drawing always ends

OPEN, CLOSE, ANSWER_MARK = "<pivot>", "</pivot>", "####"
VOCABULARY_SIZE = 768  # about 330 words, 30 symbols, 256 bytes and the letters


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
  """What happens to the amount."""

  kind: EventKind
  amount: int

  @property
  def change(self) -> int:
    return self.amount if self.kind in GAINS else -self.amount


@dataclasses.dataclass(frozen=True, slots=True)
class Distractor:
  """Somebody else who has something else: a number that must not be used."""

  person: int  # index into the people of a language
  item: int  # index into the items of a language
  amount: int
  first: bool  # told before the story, else after it


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
  """A word problem without its words.

  Raises:
    ValueError: the amount leaves 0..99, or the distractor is about the same person or item.
  """

  person: int  # index into the people of a language
  item: int  # index into the items of a language
  start: int
  events: tuple[Event, ...]
  distractor: Distractor | None = None

  def __post_init__(self) -> None:
    for amount in self.amounts:
      if not 0 <= amount <= LARGEST_RESULT:
        raise ValueError(f"amounts must stay within 0..{LARGEST_RESULT}, found {self.amounts}")
    other = self.distractor
    if other is not None and (other.person == self.person or other.item == self.item):
      raise ValueError(f"a distractor needs another person and another item, found {other}")

  @property
  def amounts(self) -> tuple[int, ...]:
    """The amount at the start and after each event."""
    return tuple(itertools.accumulate((event.change for event in self.events), initial=self.start))

  @property
  def answer(self) -> int:
    return self.amounts[-1]

  @property
  def split(self) -> str:
    """The one split this problem may be in: 80 % train, 10 % development, 10 % test.

    Only the start and the signed changes count. Who, what, the verb and the distractor do not: a
    test problem never differs from a training problem by its words alone.
    """
    changes = " ".join(f"{event.change:+d}" for event in self.events)
    digest = hashlib.blake2b(f"{self.start} {changes}".encode(), digest_size=8).digest()
    tenth = int.from_bytes(digest, "little") % 10
    return "test" if tenth == 0 else "development" if tenth == 1 else "train"


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
  """Words and sentence patterns of one language. Fields in braces are filled in."""

  people: tuple[str, ...]  # in the case that `has` and `ask` need
  items: tuple[tuple[str, ...], ...]  # the plural; or the forms after 1, after 2 and after 5
  has: str
  events: dict[EventKind, str]
  ask: str
  plus: str
  minus: str
  opening: str  # of a solution
  stop: str = "."
  digits: str = "0123456789"
  pronouns: tuple[str, ...] = ()  # one a person, where an event needs a subject


GRAMMARS: dict[str, Grammar] = {
  "en": Grammar(
    people=("Tom", "Emma", "Jack", "Lucy", "Sam", "Kate"),
    items=(("apples",), ("oranges",), ("flowers",), ("boxes",), ("stones",), ("pineapples",)),
    has="{person} has {count} {item}",
    events={
      "buy": "then buys {count} more",
      "find": "then finds {count} more",
      "sell": "then sells {count}",
      "lose": "then loses {count}",
    },
    ask="How many {items} does {person} have now?",
    plus="{left} plus {right} is {result}",
    minus="{left} minus {right} is {result}",
    opening="Solution:",
  ),
  "de": Grammar(
    people=("Hans", "Greta", "Jürgen", "Heike", "Uwe", "Anke"),
    items=(("Äpfel",), ("Orangen",), ("Blumen",), ("Kisten",), ("Steine",), ("Ananas",)),
    has="{person} hat {count} {item}",
    events={
      "buy": "kauft dann noch {count}",
      "find": "findet dann noch {count}",
      "sell": "verkauft dann {count}",
      "lose": "verliert dann {count}",
    },
    ask="Wie viele {items} hat {person} jetzt?",
    plus="{left} und {right} ergibt {result}",
    minus="{left} weniger {right} ergibt {result}",
    opening="Lösung:",
  ),
  "es": Grammar(
    people=("Pablo", "Lucía", "Diego", "Carmen", "Jorge", "Inés"),
    # All feminine, for "cuántas".
    items=(("manzanas",), ("naranjas",), ("flores",), ("cajas",), ("piedras",), ("piñas",)),
    has="{person} tiene {count} {item}",
    events={
      "buy": "luego compra {count} más",
      "find": "luego encuentra {count} más",
      "sell": "luego vende {count}",
      "lose": "luego pierde {count}",
    },
    ask="¿Cuántas {items} tiene {person} ahora?",
    plus="{left} más {right} son {result}",
    minus="{left} menos {right} son {result}",
    opening="Solución:",
  ),
  "sw": Grammar(
    people=("Juma", "Amina", "Baraka", "Zawadi", "Musa", "Neema"),
    # All of the ma- class, for "mengine" and "mangapi".
    items=(("matufaha",), ("machungwa",), ("maua",), ("masanduku",), ("mawe",), ("mananasi",)),
    has="{person} ana {item} {count}",
    events={
      "buy": "kisha ananunua mengine {count}",
      "find": "kisha anapata mengine {count}",
      "sell": "kisha anauza {count}",
      "lose": "kisha anapoteza {count}",
    },
    ask="Sasa {person} ana {items} mangapi?",
    plus="{left} jumlisha {right} ni {result}",
    minus="{left} toa {right} ni {result}",
    opening="Suluhisho:",
  ),
  "ru": Grammar(
    people=("Ивана", "Ольги", "Бориса", "Нины", "Олега", "Светы"),
    items=(
      ("яблоко", "яблока", "яблок"),
      ("апельсин", "апельсина", "апельсинов"),
      ("цветок", "цветка", "цветков"),
      ("коробка", "коробки", "коробок"),
      ("камень", "камня", "камней"),
      ("ананас", "ананаса", "ананасов"),
    ),
    has="У {person} {count} {item}",
    events={
      "buy": "потом {pronoun} покупает ещё {count}",
      "find": "потом {pronoun} находит ещё {count}",
      "sell": "потом {pronoun} продаёт {count}",
      "lose": "потом {pronoun} теряет {count}",
    },
    ask="Сколько {items} теперь у {person}?",
    plus="{left} прибавить {right} будет {result}",
    minus="{left} отнять {right} будет {result}",
    opening="Решение:",
    pronouns=("он", "она", "он", "она", "он", "она"),
  ),
  "bn": Grammar(
    people=("রহিমের", "মিতার", "রাজুর", "সীমার", "আনিসের", "লীনার"),
    items=(("আপেল",), ("কমলা",), ("ফুল",), ("বাক্স",), ("পাথর",), ("আনারস",)),
    has="{person} {count}টি {item} আছে",
    events={
      "buy": "পরে আরও {count}টি কেনে",
      "find": "পরে আরও {count}টি পায়",
      "sell": "পরে {count}টি বেচে",
      "lose": "পরে {count}টি হারায়",
    },
    ask="এখন {person} কতটি {items} আছে?",
    plus="{left} যোগ {right} সমান {result}",
    minus="{left} বিয়োগ {right} সমান {result}",
    opening="সমাধান:",
    stop="।",
    digits="০১২৩৪৫৬৭৮৯",
  ),
}


def _grammar(language: str) -> Grammar:
  if language not in GRAMMARS:
    raise ValueError(f"the synthetic corpus has {', '.join(LANGUAGES)}; found {language!r}")
  return GRAMMARS[language]


def _number(grammar: Grammar, value: int) -> str:
  return "".join(grammar.digits[int(digit)] for digit in str(value))


def _counted(forms: tuple[str, ...], count: int) -> str:
  """The form of a noun after a number: 21 яблоко, 22 яблока, 25 and 11 яблок."""
  if len(forms) == 1 or 11 <= count % 100 <= 14:
    return forms[-1]
  last = count % 10
  return forms[0] if last == 1 else forms[1] if 2 <= last <= 4 else forms[2]


def question(problem: Problem, language: str) -> str:
  """Words the problem in `language`, one line.

  Raises:
    ValueError: `language` is not one of `LANGUAGES`.
  """
  grammar = _grammar(language)

  def has(person: int, item: int, amount: int) -> str:
    return grammar.has.format(
      person=grammar.people[person],
      item=_counted(grammar.items[item], amount),
      count=_number(grammar, amount),
    )

  pronoun = grammar.pronouns[problem.person] if grammar.pronouns else ""
  clauses = [has(problem.person, problem.item, problem.start)]
  for event in problem.events:
    pattern = grammar.events[event.kind]
    clauses.append(pattern.format(pronoun=pronoun, count=_number(grammar, event.amount)))
  sentences = [", ".join(clauses) + grammar.stop]
  if problem.distractor is not None:
    other = problem.distractor
    told = has(other.person, other.item, other.amount) + grammar.stop
    sentences.insert(0 if other.first else 1, told)
  person, items = grammar.people[problem.person], grammar.items[problem.item][-1]
  sentences.append(grammar.ask.format(person=person, items=items))
  return " ".join(sentences)


def solution(problem: Problem, language: str) -> str:
  """The worked solution in `language`: one short sentence an event, then `#### ` and the answer.

  Raises:
    ValueError: `language` is not one of `LANGUAGES`.
  """
  grammar = _grammar(language)
  steps = [grammar.opening]
  for event, (left, result) in zip(
    problem.events, itertools.pairwise(problem.amounts), strict=True
  ):
    pattern = grammar.plus if event.kind in GAINS else grammar.minus
    numbers = (_number(grammar, value) for value in (left, event.amount, result))
    step = pattern.format(**dict(zip(("left", "right", "result"), numbers, strict=True)))
    steps.append(step + grammar.stop)
  return " ".join(steps) + f"\n{ANSWER_MARK} {_number(grammar, problem.answer)}"


def words(language: str) -> frozenset[str]:
  """Every word of `language` that the corpus uses, case kept, without digits or punctuation.

  Raises:
    ValueError: `language` is not one of `LANGUAGES`.
  """
  grammar = _grammar(language)
  patterns = [grammar.has, *grammar.events.values(), grammar.ask, grammar.plus, grammar.minus]
  patterns += [
    grammar.opening,
    *grammar.people,
    *grammar.pronouns,
    *itertools.chain(*grammar.items),
  ]
  found = set()
  for part in " ".join(patterns).replace("{", " {").replace("}", "} ").split():
    if not part.startswith("{"):
      found.add(part.strip(".,:?¿।"))
  return frozenset(found - {""})


def _raw_numbers(split: str, seed: int, stream: str) -> Iterator[int]:
  """An endless stream of 64-bit numbers that depends on nothing but the three arguments."""
  name = f"{split}/{seed}/{stream}".encode()
  entropy = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
  # Raw output of a bit generator is the one stream that numpy promises not to change.
  generator = np.random.PCG64(np.random.SeedSequence(entropy))
  while True:
    yield from generator.random_raw(4096).tolist()


def _draw(raw: Iterator[int]) -> Problem | None:
  """Draws one problem; None where the first event leaves too little for the second to take."""

  def below(bound: int) -> int:
    return next(raw) % bound

  def among(low: int, high: int) -> int:
    return low + below(high - low + 1)

  people, items = len(GRAMMARS[PIVOT].people), len(GRAMMARS[PIVOT].items)
  person, item = below(people), below(items)
  start = amount = among(SMALLEST, LARGEST)
  events = []
  for _ in range(among(1, 2)):
    kind = EVENT_KINDS[below(len(EVENT_KINDS))]
    largest = LARGEST_CHANGE if kind in GAINS else min(LARGEST_CHANGE, amount)
    if largest < SMALLEST:
      return None
    events.append(Event(kind, among(SMALLEST, largest)))
    amount += events[-1].change
  distractor = None
  if below(2):
    distractor = Distractor(
      person=(person + among(1, people - 1)) % people,
      item=(item + among(1, items - 1)) % items,
      amount=among(SMALLEST, LARGEST),
      first=bool(below(2)),
    )
  return Problem(person, item, start, tuple(events), distractor)


def problems(split: str, seed: int, stream: str, size: int) -> list[Problem]:
  """Draws a pool of `size` distinct problems of `split`.

  Each (split, seed, stream) is a random stream of its own: no pool changes another, and a longer
  pool begins with the shorter one. Two streams of one split may share problems; two splits never.

  Raises:
    ValueError: unknown split, or a size outside 0..1,000,000.
  """
  if split not in SPLITS:
    raise ValueError(f"split must be one of {', '.join(SPLITS)}; found {split!r}")
  if not 0 <= size <= LARGEST_POOL:
    raise ValueError(f"size must be within 0..{LARGEST_POOL}; found {size}")
  raw = _raw_numbers(split, seed, stream)
  pool: dict[Problem, None] = {}  # keeps the order
  while len(pool) < size:
    problem = _draw(raw)
    if problem is not None and problem.split == split:
      pool[problem] = None
  return list(pool)


def questions(
  pool: Sequence[Problem], language: str, *, prefix: str, with_solution: bool = True
) -> list[Question]:
  """Words a pool in `language`. The i-th record has the id `<prefix>-00000i` in every language.

  Args:
    pool: problems, as from `problems`.
    language: one of `LANGUAGES`.
    prefix: begins each id; give each pool its own, for instance `train-pam`.
    with_solution: whether to give the worked solution.

  Returns:
    A record a problem; `pivot_text` is None in English; `answer` has ASCII digits.

  Raises:
    ValueError: `language` is not one of `LANGUAGES`.
  """
  return [
    Question(
      id=f"{prefix}-{index:06d}",
      language=language,
      text=question(problem, language),
      pivot_text=None if language == PIVOT else question(problem, PIVOT),
      solution=solution(problem, language) if with_solution else None,
      answer=str(problem.answer),
    )
    for index, problem in enumerate(pool)
  ]


def sentences(languages: Sequence[str] = LANGUAGES, seed: int = 0, size: int = 1500) -> list[str]:
  """Questions and solutions of `size` training problems in each language, for the tokenizer.

  Raises:
    ValueError: a language that is not one of `LANGUAGES`.
  """
  pool = problems("train", seed, "tokenizer", size)
  return [
    text
    for language in languages
    for problem in pool
    for text in (question(problem, language), solution(problem, language))
  ]


def _glossary(languages: Sequence[str]) -> list[str]:
  """Each word in several surroundings.

  The trainer splits at spaces, drops repeats and considers only strings found at least twice: a
  word that always has the same neighbours would be cut into smaller pieces.
  """
  return [
    f"{word} {word}, {word}. {word}?"
    for language in languages
    for word in sorted(words(language))
    for _ in range(100)
  ]


def train_tokenizer(
  path: pathlib.Path, languages: Sequence[str] = LANGUAGES, seed: int = 0
) -> None:
  """Trains the corpus's SentencePiece model and writes it to `path`, the same bytes every time.

  Padding is 0, end of sequence 1, beginning 2, unknown 3. The delimiters, the answer mark and the
  line break are one piece each. Numbers are split into digits, of which the first takes the space
  before it: " 45" is "▁4", "5". Whatever the corpus does not spell falls back to bytes.

  Raises:
    ValueError: a language that is not one of `LANGUAGES`.
    OSError: `path` cannot be written.
  """
  digits = sorted({digit for language in languages for digit in _grammar(language).digits})
  symbols = [OPEN, CLOSE, ANSWER_MARK, "\n", *digits, *(f"▁{digit}" for digit in digits)]
  model = io.BytesIO()  # a file name would be written into the model
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences(languages, seed) + _glossary(languages)),
    model_writer=model,
    model_type="unigram",
    vocab_size=VOCABULARY_SIZE,
    hard_vocab_limit=False,  # fewer languages have fewer words
    character_coverage=1.0,
    byte_fallback=True,
    split_digits=True,
    user_defined_symbols=symbols,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    num_threads=1,
    minloglevel=2,
  )
  path.write_bytes(model.getvalue())
