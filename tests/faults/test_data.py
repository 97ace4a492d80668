"""Malformed question files: an error with file and line, whatever is wrong with them."""

import json
import random

import pytest

from pasmr_jax.data.questions import read_questions

pytestmark = pytest.mark.faults

GOOD = {"id": "1", "language": "de", "question": "Wie viele?", "pivot_question": "How many?"}


def _line(**changes) -> bytes:
  return json.dumps(GOOD | changes, ensure_ascii=False).encode() + b"\n"


def _read(path, format="parallel"):
  return read_questions(str(path), format, solutions=False, answers=False)


@pytest.mark.parametrize(
  ("data", "line", "said"),
  [
    (_line() + b"\xff\xfe{}\n", 2, "is no UTF-8"),
    (_line().replace(b"Wie", b"W\xc3("), 1, "is no UTF-8"),
    (_line() + b"{\n", 2, "no JSON"),
    (_line() + _line(id="2")[:-9], 2, "no JSON"),
    (_line() + b"[1]\n", 2, "expected an object"),
    (_line() + _line(), 2, "id '1' was used before, at"),
    (_line() + b'{"id": "2", "language": "de", "question": "x"}\n', 2, "no column"),
    (_line() + _line(id="2", question="  "), 2, "text is empty"),
    (_line() + _line(id="2", question=["x"]), 2, "expected text"),
    (_line() + _line(id="2", question=None), 2, "expected text"),
    (_line() + _line(id="2", language="xx"), 2, "language"),
    (_line() + b'{"id": "2", "language": "de", "question": "\\ud800", "pivot_question": "x"}', 2,
     "no valid Unicode"),
    (_line() + b"\x00\x00\n", 2, "no JSON"),
    (_line() + _line(id="2", question="Wie\0viele?"), 2, "found a NUL at character 4"),
    (_line() + _line(id="2\0"), 2, "found a NUL"),
    (_line() + b"[" * 200_000 + b"\n", 2, "no JSON"),
    (_line() + b"9" * 10_000_000 + b"\n", 2, "expected an object"),
  ],
)  # fmt: skip
def test_an_error_names_file_and_line(tmp_path, data, line, said):
  path = tmp_path / "questions.jsonl"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"questions\.jsonl") as raised:
    _read(path)
  assert f"{path}:{line}: " in str(raised.value)
  assert said in str(raised.value)
  assert len(str(raised.value)) < 1000  # a line of 10 MB is not repeated


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"\r\n"])
def test_an_empty_file_is_named(tmp_path, data):
  path = tmp_path / "empty.jsonl"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"empty\.jsonl: found no question"):
    _read(path)


@pytest.mark.parametrize(
  "change",
  [
    lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: data.rstrip(b"\n"),
    lambda data: data.replace(b"\n", b"\n\n"),
  ],
)
def test_what_editors_do_to_a_file_changes_nothing(tmp_path, change):
  data = _line() + _line(id="2")
  path = tmp_path / "questions.jsonl"
  path.write_bytes(data)
  expected = _read(path)
  path.write_bytes(change(data))
  assert _read(path) == expected


def test_a_line_of_ten_megabytes_and_marks_that_reorder_are_text(tmp_path):
  path = tmp_path / "questions.jsonl"
  long, marked = "Wie viele? " * 900_000, "\u202eكم؟\u202c\u200f 12"
  path.write_bytes(_line(question=long) + _line(id="2", question=marked, language="ar"))
  first, second = _read(path)
  assert (first.text, second.text) == (long, marked)
  assert (first.language, second.language) == ("de", "ar")


def test_mixed_languages_are_told_apart(tmp_path):
  path = tmp_path / "questions.jsonl"
  path.write_bytes(_line() + _line(language="sw") + _line(id="2", language="German"))
  kept = read_questions(str(path), "parallel", "de", solutions=False, answers=False)
  assert [(question.id, question.language) for question in kept] == [("1", "de"), ("2", "de")]


def _json(**values) -> str:
  return json.dumps(values, ensure_ascii=False)


NUMBERS = range(1, 9)
# Each format's file, whole.
FILES = {
  "parallel": ("questions.jsonl", "\n".join(_json(**GOOD | {"id": str(n)}) for n in NUMBERS)),
  "mgsm": ("mgsm_de.tsv", "\n".join(f"Größe {n}?\t{n}" for n in NUMBERS)),
  "msvamp": (
    "test_German.json",
    "\n".join(_json(query=f"How many {n}?", m_query=f"Größe {n}?", response="1") for n in NUMBERS),
  ),
  "gsm8k": (
    "test.jsonl",
    "\n".join(_json(question=f"How many, {n}?", answer=f"It is\n#### {n}") for n in NUMBERS),
  ),
  "mgsm8k_instruct": (
    "train.json",
    json.dumps([{"query": f"Größe {n}?", "response": "x\n#### 1", "lang": "de"} for n in NUMBERS]),
  ),
  "json": ("any.json", json.dumps([{"q": f"Größe {n}?", "a": n} for n in NUMBERS], indent=1)),
}
COLUMNS = {"json": {"text": "q", "answer": "a"}}


def _read_file(path, format):
  columns, language = COLUMNS.get(format), "de" if format == "json" else None
  return read_questions(str(path), format, language, columns, solutions=False, answers=True)


# What is done to the fifth question, and what is said; JSON takes no NUL at all.
BROKEN = (
  ("Größe 5", b"Gr\xf6\xdfe 5", "is no UTF-8"),
  ("many, 5?", b"many, \xff5?", "is no UTF-8"),
  ("Größe 5", b"Gr\x005", "found a NUL|no JSON"),
  ("many, 5?", b"many, \x005?", "no JSON"),
)


@pytest.mark.parametrize(
  ("format", "part", "broken", "said"),
  [
    (format, *case)
    for format, (_, text) in FILES.items()
    for case in BROKEN
    if case[0] in text and format != "parallel"  # whose lines have no answer here
  ],
)
def test_an_error_names_file_and_place_in_every_format(tmp_path, format, part, broken, said):
  name, text = FILES[format]
  path, whole = tmp_path / name, text.encode()
  path.write_bytes(whole)
  assert len(_read_file(path, format)) == len(NUMBERS)
  path.write_bytes(whole.replace(part.encode(), broken))
  with pytest.raises(ValueError, match=said) as raised:
    _read_file(path, format)
  assert str(raised.value).startswith(f"{path}:" if text.startswith("[") else f"{path}:5: ")


@pytest.mark.parametrize("format", FILES)
def test_any_damage_is_an_error_that_names_the_file(tmp_path, format):
  name, text = FILES[format]
  path, whole = tmp_path / name, text.encode()
  rng = random.Random(3)
  refused = 0
  for _ in range(400):
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
      place = rng.randrange(len(data))
      match rng.randrange(3):
        case 0:
          data[place] = rng.randrange(256)
        case 1:
          del data[place : place + rng.randrange(40)]
        case _:
          data[place:place] = rng.randbytes(3)
    path.write_bytes(data)
    try:
      found = _read(path) if format == "parallel" else _read_file(path, format)
    except ValueError as error:
      refused += 1
      assert str(path) in str(error)  # noqa: PT017 (it need not be raised)
    else:
      assert found
  assert refused > 60  # in a table of tabs most damage is only another text
