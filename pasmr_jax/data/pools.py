"""The pools of questions a configuration names.

A pool, such as `config.data.triplets`, is a tuple of sources `FORMAT:LOCATION[START:STOP]`:

    synthetic:300                               300 problems of the built-in corpus a language
    mgsm:{root}/mgsm/mgsm_{language}.tsv        a file a language
    parallel:{root}/{language}.jsonl[:2000]     its first 2,000 questions
    huggingface:openai/gsm8k,main,test          id, subset, split; columns by data.columns
    huggingface:{root}/{language}               a folder of CSV, Parquet or JSON files a language
    msvamp[:100]                                a published evaluation set (data/sets.py)

FORMAT is `synthetic` or one of `questions.FORMATS`. `{language}` stands for every language of the
pool: the pivot for `pivot`, all languages for `development` and `test`, the targets otherwise;
`{target}` for the targets only, and `{root}` for `config.data.root`. A source with neither language
is read once, and of its questions those in the pool's languages are kept. [START:STOP] must take
some questions of whatever is read. What language such a file is in it says itself: gsm8k is
English, mgsm and msvamp name it at the end of the file's name, and for json and huggingface
data.columns.language does (one data.columns holds for all of these). Where nothing says it, the
pool does if it has but one language.

In development and test an id is of one question a language, since answers are told apart by both.
Sources without ids of their own (json and huggingface without data.columns.id) count theirs from 1,
so that there can be one a language. Elsewhere an id, and a question, may come again.

A pool carries only what its use may know: solutions for supervised pools, answers for development
and test, and for `srl` nothing, unless feedback.source is gold. An evaluation set is read by
development and test only, so that nothing is trained on it by its name.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from pasmr_jax import Config
from pasmr_jax.data import sets, synthetic
from pasmr_jax.data.questions import FORMATS, Question, language_in_name, read_questions
from pasmr_jax.text.answers import LAST_NUMBER, read_answer

# What supervised pools teach from, besides the question.
TAUGHT = {
  "pivot": ("solution",),
  "translation": ("pivot_text",),
  "target": ("solution",),
  "triplets": ("pivot_text", "solution"),
}
EVALUATED = ("development", "test")
NAMES = (*TAUGHT, "srl", *EVALUATED)
_SOLVED = tuple(name for name, fields in TAUGHT.items() if "solution" in fields)
_TRANSLATED = (*(name for name, fields in TAUGHT.items() if "pivot_text" in fields), *EVALUATED)
_SOURCE = re.compile(r"(?P<format>\w+):(?P<location>.*?)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")
_SET = re.compile(r"(?P<name>\w+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")
_ENGLISH = ("synthetic", "msvamp")  # formats whose references are
_NAMED = ("mgsm", "msvamp")  # formats of files that name their language


def read_pool(
  name: str,
  config: Config,
  references: bool = False,
  say: Callable[[str], None] = lambda text: None,
) -> list[Question]:
  """The questions of `config.data.NAME`, source after source, language after language.

  Args:
    name: one of `NAMES`.
    config: the whole configuration.
    references: also the pivot texts that the pool has and does not use.
    say: is told what one may not expect of the pool's evaluation sets.

  Raises:
    ValueError: a malformed source or one that nothing is taken of, naming its key; evaluation sets
      without a target language; two questions of one id and language in development or test; one
      without what the pool teaches; what the
      readers raise.
    FileNotFoundError: a file that is not there.
  """
  languages = pool_languages(name, config)
  answers = name in EVALUATED or (name == "srl" and config.feedback.source == "gold")
  questions = []
  for source in config.data[name]:
    key = f"data.{name}: source {source!r}"
    if set_name(source) is not None:
      questions += _read_set(name, source, languages, config, key, say)
      continue
    match = _SOURCE.fullmatch(source)
    if match is None or match["format"] not in ("synthetic", *FORMATS):
      raise ValueError(
        f"{key}: expected FORMAT:LOCATION or FORMAT:LOCATION[START:STOP] with FORMAT one of"
        f" {', '.join(('synthetic', *FORMATS))}, or one of the sets {', '.join(sets.SETS)}"
      )
    foreign = match["format"] in _ENGLISH and config.pivot != "en"
    if foreign and "pivot_text" in TAUGHT.get(name, ()):
      raise ValueError(f"{key}: its references are English; expected pivot 'en' or another source")
    if match["format"] == "synthetic":
      pieces = [_synthetic(name, match["location"], language, config) for language in languages]
    else:
      pieces = _read(
        name, match["format"], match["location"], languages, config, answers, references, key
      )
    taken = _taken(pieces, match, key)
    if foreign:
      taken = [dataclasses.replace(question, pivot_text=None) for question in taken]
    questions += taken
  if name in EVALUATED:
    _check_ids(name, questions)
    _check_targets(name, questions, config)
  check_taught(name, questions)
  return [
    question if answers else dataclasses.replace(question, answer=None) for question in questions
  ]


def set_name(source: str) -> str | None:
  """The evaluation set that a source stands for, if it is one by name."""
  match = _SET.fullmatch(source)
  return match["name"] if match is not None and match["name"] in sets.SETS else None


def _taken(pieces: Iterable[Sequence[Question]], match: re.Match[str], key: str) -> list[Question]:
  """What [START:STOP] takes of each piece of a source."""
  begin, end = (int(match[side]) if match[side] else None for side in ("start", "stop"))
  taken = []
  for piece in pieces:
    if not piece[begin:end]:
      languages = ", ".join(sorted({question.language for question in piece}))
      raise ValueError(f"{key}: takes none of {len(piece)} questions ({languages})")
    taken += piece[begin:end]
  return taken


def _check_ids(name: str, questions: Sequence[Question]) -> None:
  first: dict[tuple[str, str], Question] = {}
  for question in questions:
    other = first.setdefault((question.language, question.id), question)
    if other is not question:
      raise ValueError(
        f"data.{name}: two of its sources have a question {question.id!r} ({question.language}):"
        f" {other.text[:40]!r} and {question.text[:40]!r}; expected ids of their own"
      )


def _check_targets(name: str, questions: Sequence[Question], config: Config) -> None:
  """Sets that have other languages than the pivot are not for it alone; gsm8k, for one, is."""
  if any(question.language in config.languages for question in questions):
    return
  for source in config.data[name]:
    found = set_name(source)
    if found is not None and set(has := sets.SETS[found].languages) != {config.pivot}:
      raise ValueError(
        f"data.{name}: no source has a question in {', '.join(config.languages)}; {found} has"
        f" {', '.join(has)}"
      )


def check_taught(name: str, questions: Iterable[Question]) -> None:
  """Raises ValueError naming a question that lacks what its pool teaches."""
  for question in questions:
    for field in TAUGHT.get(name, ()):
      if getattr(question, field) is None:
        raise ValueError(
          f"data.{name}: question {question.id!r} ({question.language}) has no {field}"
        )


def unmarked(questions: Iterable[Question]) -> list[Question]:
  """The questions whose solution does not state its answer, as "#### 7", a box or a phrase do."""

  def states(solution: str, language: str) -> bool:
    found = read_answer(solution, language)
    return found is not None and found.rule != LAST_NUMBER

  return [
    question
    for question in questions
    if question.solution is not None and not states(question.solution, question.language)
  ]


def _read_set(
  name: str,
  source: str,
  languages: Sequence[str],
  config: Config,
  key: str,
  say: Callable[[str], None],
) -> list[Question]:
  match = _SET.fullmatch(source)
  if match is None or name not in EVALUATED:
    raise ValueError(f"{key}: an evaluation set is for data.development and data.test only")

  def told(text: str) -> None:
    say(f"data.{name}: {text}")

  lacking = [code for code in languages if code not in sets.SETS[match["name"]].languages]
  if lacking:
    told(f"{match['name']} has no questions in {', '.join(lacking)}")
  found = sets.read_set(match["name"], languages, config.data.root, config.pivot, told)
  return _taken(found.values(), match, key)


def pool_languages(name: str, config: Config) -> tuple[str, ...]:
  """Languages a pool may hold."""
  if name == "pivot":
    return (config.pivot,)
  if name in EVALUATED:
    return (config.pivot, *config.languages)
  return tuple(config.languages)


def _synthetic(name: str, location: str, language: str, config: Config) -> list[Question]:
  if not location.isdecimal():
    raise ValueError(f"data.{name}: found synthetic:{location}, expected a number of problems")
  # Languages have problems of their own, so that more is seen; test sets are parallel.
  stream = name if name in EVALUATED else f"{name}/{language}"
  split = name if name in EVALUATED else "train"
  problems = synthetic.problems(split, config.data.seed, stream, int(location))
  solved = name in _SOLVED
  return synthetic.questions(problems, language, prefix=name, with_solution=solved)


def _read(
  name: str,
  format: str,
  location: str,
  languages: Sequence[str],
  config: Config,
  answers: bool,
  references: bool,
  key: str,
) -> list[list[Question]]:
  columns = None
  if format in ("json", "huggingface"):
    columns = {field: column for field, column in config.data.columns.items() if column}
    if not answers:
      columns.pop("answer", None)
    if name not in _TRANSLATED and not references:
      columns.pop("pivot_text", None)
  path, *place = location.replace("{root}", config.data.root).split(",")
  if len(place) > 2 or (place and format != "huggingface"):
    raise ValueError(f"{key}: a comma is for huggingface:ID,SUBSET,SPLIT only")
  subset, split = place[0] if place else None, place[1] if len(place) > 1 else "train"

  def read(path: str, subset: str | None, language: str | None) -> list[Question]:
    named = columns
    if columns and language == config.pivot:  # a file of pivot questions has no translations
      named = {field: column for field, column in columns.items() if field != "pivot_text"}
    return read_questions(
      path,
      format,
      language,
      named,
      solutions=name in _SOLVED,
      answers=answers,
      subset=subset,
      split=split,
      optional=() if name in _TRANSLATED else ("pivot_text",),
    )

  if "{target}" in location:
    location, path = (text.replace("{target}", "{language}") for text in (location, path))
    languages = config.languages
  if "{language}" not in location:
    if columns is not None:
      untold = "language" not in columns
    else:
      untold = format in _NAMED and language_in_name(path) is None
    found = read(path, subset, languages[0] if untold and len(languages) == 1 else None)
    kept = [question for question in found if question.language in languages]
    if not kept:
      has = sorted({question.language for question in found})
      raise ValueError(
        f"{key}: no question in {', '.join(languages)}; it has {', '.join(has)}. A file that is in"
        " another language than it says needs {language} in its location"
      )
    return [kept]
  pieces = {
    language: read(
      path.replace("{language}", language),
      subset.replace("{language}", language) if subset else None,
      language,
    )
    for language in languages
  }
  if name in EVALUATED and format == "mgsm":
    pieces = sets.with_references(pieces, config.pivot)
  return list(pieces.values())
