"""Questions and the files they come from.

`read_questions` reads one file or data set into a list of `Question`. What a stage may not know is
never put into the record: without `answers` the reader does not look at the column that holds
them, so that a run cannot depend on an answer however it is broken. A solution ends in its answer;
supervised stages ask for `solutions`, self-feedback asks for neither.

    format              file                           columns
    mgsm                question TAB answer            language from mgsm_XX.tsv
    msvamp              JSON lines                     query (English), m_query, response
    gsm8k               JSON lines                     question, answer (solution, "#### n")
    parallel            JSON lines                     id, language, [pivot_]question, answer
    parallel_equations  the same                       pivot_solution's equations as solution
    mgsm8k_instruct     JSON lines or one JSON list    query, response, lang
    json                JSON lines or one JSON list    named by `columns`
    huggingface         id or folder for `datasets`,   named by `columns`
                        also of CSV or Parquet files

Any error names the file and line (or item), what was found and what was expected.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pasmr_jax.text import hub
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.languages import language as language_of

FORMATS = (
  "mgsm",
  "msvamp",
  "gsm8k",
  "parallel",
  "parallel_equations",
  "mgsm8k_instruct",
  "json",
  "huggingface",
)

# "<<48/2=24>>": the calculator marks that GSM8K puts before each result.
_EQUATION = re.compile(r"<<([^<>]*)>>")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
  """One question in one language. What a stage may not read is None."""

  id: str  # unique within a data set and language; parallel questions share it
  language: str  # ISO 639-1 code of `text`, a key of `languages.LANGUAGES`
  text: str
  pivot_text: str | None = None  # reference translation into the pivot language
  solution: str | None = None  # chain of thought in `language` that ends in "#### <answer>"
  answer: str | None = None  # gold final answer as written


# A row on its way to a `Question`: where it stands, and the values of the fields it has.
_Row = tuple[str, dict[str, Any]]


def read_questions(
  path: str,
  format: str,
  language: str | None = None,
  columns: Mapping[str, str] | None = None,
  *,
  solutions: bool,
  answers: bool,
  subset: str | None = None,
  split: str = "train",
  optional: Collection[str] = (),
) -> list[Question]:
  """Reads the questions of one file or data set, in its order.

  Args:
    path: a file; for `huggingface` a hub id or a folder that `datasets.load_dataset` reads.
    format: one of `FORMATS`.
    language: code of the questions, where the file does not tell; where it does, only questions in
      this language are kept (None keeps all).
    columns: for `json` and `huggingface`, from a field of `Question` to the column that holds it;
      `text` is needed, `id` is counted if absent, `language` may be given as code or English name,
      and with `language` given a file may lack its column.
    solutions: whether records carry solutions. `parallel_equations` then leaves out rows without
      equations.
    answers: whether records carry gold answers.
    subset: configuration of a `huggingface` data set.
    split: split of a `huggingface` data set.
    optional: keys of `columns` whose column a file may lack.

  Raises:
    FileNotFoundError: no such file.
    ValueError: unknown format or language, bad UTF-8 or JSON, a missing column, an empty question,
      a repeated id, a value that is no text.
  """
  if format not in FORMATS:
    raise ValueError(f"{path}: unknown format {format!r}, expected one of {', '.join(FORMATS)}")
  if columns and format not in ("json", "huggingface"):
    raise ValueError(f"{path}: columns are fixed for format {format!r}, expected none")
  if language is not None:
    _language_code(language, f"{path}: language")
  lacking = {*optional, *(() if language is None else ("language",))}
  rows: Iterable[_Row]
  match format:
    case "mgsm":
      rows, language = _mgsm(path, answers), language or _named_language(path)
    case "msvamp":
      language = language or _named_language(path)
      rows = _msvamp(path, language, answers)
    case "gsm8k":
      rows, language = _gsm8k(path, solutions, answers), language or "en"
    case "parallel" | "parallel_equations":
      rows = _parallel(path, solutions and format == "parallel_equations", answers)
    case "mgsm8k_instruct":
      rows = _mgsm8k_instruct(path, solutions, answers)
    case "json":
      named = _named_columns(path, columns or {}, solutions, answers)
      rows = _by_column(_json_rows(path), named, lacking)
    case _:
      named = _named_columns(path, columns or {}, solutions, answers)
      rows = _by_column(_huggingface_rows(path, subset, split, named, lacking), named, lacking)
  return _questions(path, rows, language)


# ---- One function a format: file to rows -----------------------------------------------------


def _mgsm(path: str, answers: bool) -> Iterator[_Row]:
  for number, (at, line) in enumerate(_lines(path), start=1):
    where = f"{path}:{at}"
    text, tab, answer = line.partition("\t")
    if not tab or (answers and "\t" in answer):
      raise ValueError(
        f"{where}: found {line.count(chr(9)) + 1} columns, expected 2: question TAB answer"
      )
    row: dict[str, Any] = {"id": f"mgsm-{number:03d}", "text": text}
    if answers:
      row["answer"] = answer.strip()
    yield where, row


def _msvamp(path: str, language: str, answers: bool) -> Iterator[_Row]:
  for where, item, number in _json_rows(path):
    row = {"id": f"msvamp-{number:04d}", "text": _column(item, "m_query", where)}
    if language != "en":
      row["pivot_text"] = _column(item, "query", where)
    if answers:
      row["answer"] = _column(item, "response", where)
    yield where, row


def _gsm8k(path: str, solutions: bool, answers: bool) -> Iterator[_Row]:
  split = os.path.splitext(os.path.basename(path))[0]
  for where, item, number in _json_rows(path):
    # Numbered from 0, as in `gsm8k_parallel`, so that translations share the id.
    row = {"id": f"gsm8k-{split}-{number - 1:05d}", "text": _column(item, "question", where)}
    row |= _solution_and_answer(item, "answer", where, solutions, answers)
    yield where, row


def _parallel(path: str, equations: bool, answers: bool) -> Iterator[_Row]:
  for where, item, _ in _json_rows(path):
    row = {
      "id": _column(item, "id", where),
      "language": _column(item, "language", where),
      "text": _column(item, "question", where),
      "pivot_text": _column(item, "pivot_question", where),
    }
    if equations:
      solution = _text(_column(item, "pivot_solution", where), f"{where}: pivot_solution")
      chain = _EQUATION.findall(solution)
      if not chain:
        continue
      answer = _marked_answer(solution, where).replace(",", "")  # "1,080" is 1.08 in German
      row["solution"] = "\n".join([*chain, f"#### {answer}"])
    if answers:
      row["answer"] = _column(item, "answer", where)
    yield where, row


def _mgsm8k_instruct(path: str, solutions: bool, answers: bool) -> Iterator[_Row]:
  for where, item, number in _json_rows(path):
    row = {
      "id": f"mgsm8k-{number:06d}",
      "language": _column(item, "lang", where),
      "text": _column(item, "query", where),
    }
    row |= _solution_and_answer(item, "response", where, solutions, answers)
    yield where, row


def _by_column(
  rows: Iterable[tuple[str, Any, int]], columns: Mapping[str, str], optional: Collection[str]
) -> Iterator[_Row]:
  """Rows of the named columns; those of optional fields may be absent."""
  for where, item, number in rows:
    row = {
      field: _column(item, column, where)
      for field, column in columns.items()
      if field not in optional or not isinstance(item, Mapping) or column in item
    }
    yield where, {"id": f"{number:06d}", **row}


def _solution_and_answer(
  item: Any, column: str, where: str, solutions: bool, answers: bool
) -> dict[str, str]:
  """Fields from a column that holds a solution with its answer after "####"."""
  if not (solutions or answers):
    return {}
  solution = _text(_column(item, column, where), f"{where}: {column}")
  fields = {"solution": _EQUATION.sub("", solution)} if solutions else {}
  if answers:
    fields["answer"] = _marked_answer(solution, where)
  return fields


def _marked_answer(solution: str, where: str) -> str:
  _, mark, answer = solution.rpartition("####")
  if not mark or not answer.strip():
    raise ValueError(f"{where}: found {solution[-40:]!r} at the end, expected '#### <answer>'")
  return answer.strip()


# ---- Reading and checking --------------------------------------------------------------------


def _questions(path: str, rows: Iterable[_Row], language: str | None) -> list[Question]:
  questions, places = [], {}
  for where, row in rows:
    if "language" in row:
      row["language"] = _language_code(row["language"], f"{where}: language")
      if language is not None and row["language"] != language:
        continue
    elif language is None:
      raise ValueError(
        f"{path}: its questions have no language, expected data.columns.language, or {{language}}"
        " or {target} in its location"
      )
    else:
      row["language"] = language
    question = Question(**{name: _text(value, f"{where}: {name}") for name, value in row.items()})
    for name in ("id", "text", "pivot_text", "solution", "answer"):
      value = getattr(question, name)
      if value is not None and not value.strip():
        raise ValueError(f"{where}: {name} is empty, expected text")
    first = places.setdefault((question.language, question.id), where)
    if first is not where:
      raise ValueError(
        f"{where}: id {question.id!r} was used before, at {first}; expected a new one"
      )
    questions.append(question)
  if not questions:
    wanted = "" if language is None else f" in language {language!r}"
    raise ValueError(f"{path}: found no question{wanted}, expected at least one")
  return questions


def _lines(path: str) -> Iterator[tuple[int, str]]:
  """Lines that are not blank, each with its place, decoded one by one so that errors name it.

  The place is for messages. Questions are numbered without blank lines, which files of two
  languages may have in different places.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: no such file, expected a file of questions")
  with open(path, "rb") as file:
    for number, raw in enumerate(file, start=1):
      try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
      except UnicodeDecodeError as error:
        raise ValueError(
          f"{path}:{number}: byte {raw[error.start]:#04x} at column {error.start + 1} is no UTF-8"
        ) from error
      if line.strip():
        yield number, line


def _json_rows(path: str) -> Iterator[tuple[str, Any, int]]:
  """Place, value and number from 1 of each object of a JSON-lines file or of one JSON list."""
  lines = _lines(path)
  first = next(lines, None)
  if first is None:
    return
  if first[1].lstrip().startswith("["):
    found = dict([first, *lines])
    text = "\n".join(found.get(number, "") for number in range(1, max(found) + 1))
    items = _json(text, path)
    yield from ((f"{path}: item {number}", item, number) for number, item in enumerate(items, 1))
    return
  for number, (at, line) in enumerate(itertools.chain([first], lines), start=1):
    yield f"{path}:{at}", _json(line, f"{path}:{at}"), number


def _json(text: str, where: str) -> Any:
  try:
    # Numbers stay as written: "8.0" is not 8, and no number is too long to read.
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{where}: no JSON ({error}), found {text[:60]!r}") from error


def _huggingface_rows(
  path: str, subset: str | None, split: str, columns: Mapping[str, str], optional: Collection[str]
) -> Iterator[tuple[str, Any, int]]:
  import datasets
  from datasets import config as settings
  from datasets.exceptions import DatasetsError

  where = f"{path} ({subset or 'default'}, {split})"
  silent = "" if os.path.exists(path) else hub.silence()
  offline = settings.HF_HUB_OFFLINE
  try:
    # `datasets` waits long for a hub that does not answer; what it has of it is in its cache.
    settings.HF_HUB_OFFLINE = offline or bool(silent)
    rows = datasets.load_dataset(path, subset, split=split)
  except (OSError, ValueError, DatasetsError) as error:
    # Of a file that cannot be read the library's own error says nothing but that there is one.
    within = f": {error.__cause__}" if isinstance(error, DatasetsError) and error.__cause__ else ""
    reason = f" ({silent})" if silent else ""
    raise ValueError(f"{where}: datasets cannot load it: {error}{within}{reason}") from error
  finally:
    settings.HF_HUB_OFFLINE = offline
  absent = {field: column for field, column in columns.items() if column not in rows.column_names}
  if missing := [column for field, column in absent.items() if field not in optional]:
    raise ValueError(f"{where}: no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
  present = [column for field, column in columns.items() if field not in absent]
  # Only the named columns are read, so that what is not named cannot matter.
  for number, row in enumerate(rows.select_columns(present), start=1):
    yield f"{where}: row {number}", row, number


def _named_columns(
  path: str, columns: Mapping[str, str], solutions: bool, answers: bool
) -> dict[str, str]:
  """The columns to read: those of fields that the caller may not know are left out."""
  fields = [field.name for field in dataclasses.fields(Question)]
  for field in columns:
    if field not in fields:
      raise ValueError(f"{path}: columns has key {field!r}, expected some of {', '.join(fields)}")
  if "text" not in columns:
    raise ValueError(f"{path}: columns has no key 'text', expected the column of the questions")
  withheld = {"solution": not solutions, "answer": not answers}
  return {field: column for field, column in columns.items() if not withheld.get(field, False)}


def _column(item: Any, column: str, where: str) -> Any:
  if not isinstance(item, Mapping):
    raise ValueError(f"{where}: found {type(item).__name__}, expected an object with {column!r}")
  if column not in item:
    raise ValueError(f"{where}: no column {column!r}; it has {', '.join(map(repr, item))}")
  return item[column]


def _text(value: Any, where: str) -> str:
  """A text, or a number as text; valid Unicode, so that every tokenizer takes it."""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise ValueError(f"{where}: found {value!r}, expected text")
  text = str(value)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{where}: {text[:60]!r} is no valid Unicode: {error.reason}") from error
  if "\0" in text:  # left by a writer that was cut off; libraries in C end a text there
    place = text.index("\0")
    raise ValueError(f"{where}: found a NUL at character {place + 1}, expected text")
  return text


def _language_code(name: Any, where: str) -> str:
  """Code of a language given by its code or its English name."""
  text = str(name).strip()
  for entry in LANGUAGES.values():
    if text.lower() in (entry.code, entry.name.lower()):
      return entry.code
  try:
    return language_of(text).code
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def language_in_name(path: str) -> str | None:
  """Language that ends a file name: mgsm_sw.tsv, test_Swahili.json; None if none does."""
  try:
    return _named_language(path)
  except ValueError:
    return None


def _named_language(path: str) -> str:
  stem = os.path.splitext(os.path.basename(path))[0]
  return _language_code(
    stem.rpartition("_")[2],
    f"{path}: language expected after the last '_' of the file name, or {{language}} in its"
    " location",
  )
