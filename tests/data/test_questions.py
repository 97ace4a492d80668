"""Readers: each format by hand, what is withheld, every error by file and line, the real files."""

import json

import pytest

from pasmr_jax.data.questions import Question, read_questions
from pasmr_jax.text.answers import read_answer

SOLUTION = "3 + 4 = <<3+4=7>>7 pens.\nThen 7 * 2 = <<7*2=14>>14.\n#### 14"
PARALLEL = {
  "id": "pens-0",
  "language": "de",
  "question": "Drei und vier Stifte?",
  "pivot_question": "Three and four pens?",
  "pivot_solution": SOLUTION,
  "answer": "14",
}


def lines(path, *rows):
  texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
  path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
  return str(path)


def read(path, format, solutions=True, answers=True, **options):
  return read_questions(path, format, solutions=solutions, answers=answers, **options)


def test_mgsm(tmp_path):
  path = lines(tmp_path / "mgsm_sw.tsv", 'Kalamu "ngapi"?\t1,450', "Ngapi\u2028tena?\t7")
  assert read(path, "mgsm") == [
    Question("mgsm-001", "sw", 'Kalamu "ngapi"?', answer="1,450"),
    Question("mgsm-002", "sw", "Ngapi\u2028tena?", answer="7"),
  ]
  assert read(path, "mgsm", answers=False)[0].answer is None
  # The argument wins over the name of the file.
  assert read(path, "mgsm", language="yo")[0].language == "yo"


def test_mgsm_with_byte_order_mark_and_windows_lines(tmp_path):
  path = tmp_path / "mgsm_de.tsv"
  path.write_bytes("\ufeffWie viele?\t7\r\nWie?\t8\r\n".encode())
  assert [(q.text, q.answer) for q in read(str(path), "mgsm")] == [
    ("Wie viele?", "7"),
    ("Wie?", "8"),
  ]


def test_msvamp(tmp_path):
  row = {"query": "how many pens ?", "m_query": "Wie viele Stifte?", "response": "8.0"}
  path = lines(tmp_path / "test_German.json", row)
  assert read(path, "msvamp") == [
    Question("msvamp-0001", "de", "Wie viele Stifte?", "how many pens ?", answer="8.0")
  ]
  path = lines(tmp_path / "test_English.json", row | {"m_query": "how many pens ?"})
  assert read(path, "msvamp")[0].pivot_text is None


def test_gsm8k(tmp_path):
  path = lines(tmp_path / "train.jsonl", {"question": "Pens?", "answer": SOLUTION})
  assert read(path, "gsm8k") == [
    Question(
      "gsm8k-train-00000",
      "en",
      "Pens?",
      solution="3 + 4 = 7 pens.\nThen 7 * 2 = 14.\n#### 14",
      answer="14",
    )
  ]
  assert read(path, "gsm8k", solutions=False, answers=False) == [
    Question("gsm8k-train-00000", "en", "Pens?")
  ]


@pytest.mark.parametrize(
  ("format", "name", "row", "bad", "ids"),
  [
    ("mgsm", "x_de.tsv", "Wie viele?\t7", "Wie?", ["mgsm-001", "mgsm-002"]),
    (
      "msvamp",
      "test_German.json",
      {"query": "how ?", "m_query": "Wie?", "response": "8.0"},
      "{",
      ["msvamp-0001", "msvamp-0002"],
    ),
    (
      "gsm8k",
      "test.jsonl",
      {"question": "Pens?", "answer": SOLUTION},
      "{",
      ["gsm8k-test-00000", "gsm8k-test-00001"],
    ),
    (
      "mgsm8k_instruct",
      "x.json",
      {"query": "Wie?", "response": SOLUTION, "lang": "German"},
      "{",
      ["mgsm8k-000001", "mgsm8k-000002"],
    ),
    ("json", "x.jsonl", {"question": "Wie?"}, "{", ["000001", "000002"]),
  ],
)
def test_blank_lines_have_no_number(tmp_path, format, name, row, bad, ids):
  """So that a file with some has the ids of its translation without; messages count all lines."""
  options = {"language": "de", "columns": {"text": "question"}} if format == "json" else {}
  for written in ([row, row], ["", " ", row, "", row, ""]):
    found = read(lines(tmp_path / name, *written), format, **options)
    assert [question.id for question in found] == ids
  with pytest.raises(ValueError, match=rf"{name}:4: "):
    read(lines(tmp_path / name, "", "", row, bad), format, **options)


def test_parallel(tmp_path):
  path = lines(tmp_path / "de.jsonl", PARALLEL)
  plain = Question("pens-0", "de", PARALLEL["question"], PARALLEL["pivot_question"], answer="14")
  assert read(path, "parallel") == [plain]
  (question,) = read(path, "parallel_equations", answers=False)
  assert question.solution == "3+4=7\n7*2=14\n#### 14"
  assert question.answer is None


def test_equations_end_in_an_answer_without_commas(tmp_path):
  """In German "1,080" is 27/25."""
  row = PARALLEL | {"pivot_solution": "It is 2 * 540 = <<2*540=1080>>1,080.\n#### 1,080"}
  (question,) = read(lines(tmp_path / "de.jsonl", row), "parallel_equations")
  assert question.solution == "2*540=1080\n#### 1080"


def test_equations_leave_out_rows_without_marks(tmp_path):
  bare = PARALLEL | {"id": "pens-1", "pivot_solution": "It is 14.\n#### 14"}
  path = lines(tmp_path / "de.jsonl", bare, PARALLEL)
  assert [q.id for q in read(path, "parallel_equations")] == ["pens-0"]
  withheld = read(path, "parallel_equations", solutions=False, answers=False)
  assert [(q.id, q.solution) for q in withheld] == [("pens-1", None), ("pens-0", None)]


@pytest.mark.parametrize("as_list", [False, True])
def test_mgsm8k_instruct(tmp_path, as_list):
  rows = [
    {"query": "Stifte?", "response": "Es sind <<3+4=7>>7.\n#### 7", "lang": "German"},
    {"query": "Kalamu?", "response": "Ni 7.\n#### 7", "lang": "sw"},
  ]
  path = lines(tmp_path / "train.json", *([json.dumps(rows, indent=1)] if as_list else rows))
  assert read(path, "mgsm8k_instruct") == [
    Question("mgsm8k-000001", "de", "Stifte?", solution="Es sind 7.\n#### 7", answer="7"),
    Question("mgsm8k-000002", "sw", "Kalamu?", solution="Ni 7.\n#### 7", answer="7"),
  ]
  assert [q.id for q in read(path, "mgsm8k_instruct", language="sw")] == ["mgsm8k-000002"]


def test_json_by_columns(tmp_path):
  path = lines(tmp_path / "own.jsonl", {"q": "Stifte?", "a": 8.0, "n": 3, "l": "Swahili"})
  columns = {"text": "q", "answer": "a", "id": "n", "language": "l"}
  assert read(path, "json", columns=columns) == [Question("3", "sw", "Stifte?", answer="8.0")]
  named = read(path, "json", columns={"text": "q"}, language="de")
  assert named == [Question("000001", "de", "Stifte?")]


def test_huggingface_by_columns(tmp_path, monkeypatch):
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
  rows = [{"q": "Stifte?", "a": 7, "junk": "x"}, {"q": "Bälle?", "a": 8, "junk": "y"}]
  folder = tmp_path / "pens"
  folder.mkdir()
  lines(folder / "train.jsonl", *rows)
  columns = {"text": "q", "answer": "a"}
  assert read(str(folder), "huggingface", columns=columns, language="de") == [
    Question("000001", "de", "Stifte?", answer="7"),
    Question("000002", "de", "Bälle?", answer="8"),
  ]
  told = columns | {"language": "l"}  # a file of a known language need not tell it
  assert len(read(str(folder), "huggingface", columns=told, language="de")) == 2
  with pytest.raises(ValueError, match=r"no column 'l'; it has q, a, junk"):
    read(str(folder), "huggingface", columns=told)
  with pytest.raises(ValueError, match=r"no column 'question'; it has q, a, junk"):
    read(str(folder), "huggingface", columns={"text": "question"}, language="de")
  with pytest.raises(ValueError, match=r"nowhere.* datasets cannot load it"):
    read(str(tmp_path / "nowhere"), "huggingface", columns=columns, language="de")


def test_a_folder_of_csv_or_parquet_files(tmp_path, monkeypatch):
  import datasets

  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
  columns = {"text": "q", "answer": "a"}
  csv, parquet = tmp_path / "csv", tmp_path / "parquet"
  csv.mkdir()
  lines(csv / "train-1.csv", "q,a", '"Stifte, wie viele?",7')
  datasets.Dataset.from_dict({"q": ["Stifte, wie viele?"], "a": [7]}).to_parquet(
    parquet / "train.parquet"
  )
  for folder in (csv, parquet):
    found = read(str(folder), "huggingface", columns=columns, language="de")
    assert found == [Question("000001", "de", "Stifte, wie viele?", answer="7")]
  lines(csv / "train-2.csv", "frage", "Bälle?")  # an error of the library's own kind
  with pytest.raises(ValueError, match=rf"{csv} .default, train.: (?s:.*)frage"):
    read(str(csv), "huggingface", columns=columns, language="de")


@pytest.mark.parametrize(
  ("format", "name", "row", "garbage", "options"),
  [
    ("mgsm", "mgsm_de.tsv", "Stifte?\t7", "Stifte?\t?\t!", {}),
    (
      "msvamp",
      "test_German.json",
      {"query": "pens", "m_query": "Stifte?", "response": "7"},
      {"query": "pens", "m_query": "Stifte?", "response": None},
      {},
    ),
    (
      "gsm8k",
      "train.jsonl",
      {"question": "Pens?", "answer": SOLUTION},
      {"question": "Pens?", "answer": [1]},
      {},
    ),
    ("parallel", "de.jsonl", PARALLEL, PARALLEL | {"answer": {}, "pivot_solution": 0}, {}),
    ("parallel_equations", "de.jsonl", PARALLEL, PARALLEL | {"pivot_solution": ""}, {}),
    (
      "mgsm8k_instruct",
      "train.json",
      {"query": "Stifte?", "response": SOLUTION, "lang": "de"},
      {"query": "Stifte?", "lang": "de"},
      {},
    ),
    (
      "json",
      "own.jsonl",
      {"q": "Stifte?", "a": "7", "s": SOLUTION},
      {"q": "Stifte?", "a": "\ud800"},
      {"language": "de", "columns": {"text": "q", "answer": "a", "solution": "s"}},
    ),
  ],
)
def test_withheld_answers_and_solutions_cannot_matter(
  tmp_path, format, name, row, garbage, options
):
  """With answers and solutions withheld, garbage in their place reads as the same questions."""
  (tmp_path / "true").mkdir()
  (tmp_path / "garbage").mkdir()
  if isinstance(garbage, dict):
    garbage = json.dumps(garbage)
  true_path = lines(tmp_path / "true" / name, row)
  withheld = read(true_path, format, solutions=False, answers=False, **options)
  assert [(q.solution, q.answer) for q in withheld] == [(None, None)]
  assert withheld == read(
    lines(tmp_path / "garbage" / name, garbage), format, solutions=False, answers=False, **options
  )
  # The same file does hold an answer for who may read it.
  assert read(true_path, format, **options)[0].answer in ("7", "14")


GOOD = {"question": "Pens?", "answer": "#### 7"}


@pytest.mark.parametrize(
  ("format", "name", "rows", "message"),
  [
    ("mgsm", "mgsm_de.tsv", ["Wie?\t7", "Wie?"], r"mgsm_de\.tsv:2: found 1 columns, expected 2"),
    ("mgsm", "mgsm_de.tsv", ["Wie?\t7\t8"], r"mgsm_de\.tsv:1: found 3 columns, expected 2"),
    ("mgsm", "mgsm_de.tsv", [" \t7"], r"mgsm_de\.tsv:1: text is empty, expected text"),
    ("mgsm", "mgsm_de.tsv", ["Wie?\t "], r"mgsm_de\.tsv:1: answer is empty"),
    ("mgsm", "mgsm_de.tsv", [], r"mgsm_de\.tsv: found no question in language 'de'"),
    ("mgsm", "mgsm_xx.tsv", ["?\t7"], r"mgsm_xx\.tsv: language expected after .*unknown language"),
    ("gsm8k", "t.jsonl", [GOOD, '{"question": '], r"t\.jsonl:2: no JSON .*found '\{\"question\""),
    ("gsm8k", "t.jsonl", [GOOD, "[" * 100000], r"t\.jsonl:2: no JSON"),
    ("gsm8k", "t.jsonl", ["7"], r"t\.jsonl:1: found str, expected an object with 'question'"),
    ("gsm8k", "t.jsonl", [{"q": 1}], r"t\.jsonl:1: no column 'question'; it has 'q'"),
    (
      "gsm8k",
      "t.jsonl",
      [GOOD | {"answer": "7"}],
      r"t\.jsonl:1: found '7' at the end, expected '#",
    ),
    ("gsm8k", "t.jsonl", [GOOD | {"question": None}], r"t\.jsonl:1: text: found None, expected"),
    ("gsm8k", "t.jsonl", [GOOD | {"question": True}], r"t\.jsonl:1: text: found True, expected"),
    (
      "gsm8k",
      "t.jsonl",
      ['{"question": "\\ud800?", "answer": "#### 7"}'],
      r"t\.jsonl:1: text: .* is no valid Unicode",
    ),
    ("parallel", "p.jsonl", [PARALLEL, PARALLEL], r"p\.jsonl:2: id 'pens-0' .* at .*p\.jsonl:1"),
    (
      "parallel",
      "p.jsonl",
      [PARALLEL | {"language": "grman"}],
      r"p\.jsonl:1: language: unknown language code 'grman'; nearest: de",
    ),
    (
      "mgsm8k_instruct",
      "m.json",
      ['[{"query": "?", "response": "#### 7", "lang": 1}]'],
      r"m\.json: item 1: language",
    ),
    ("mgsm8k_instruct", "m.json", ["", "[", "", "{?}]"], r"m\.json: no JSON .*: line 4 column 2"),
  ],
)
def test_errors_name_file_and_line(tmp_path, format, name, rows, message):
  with pytest.raises(ValueError, match=message):
    read(lines(tmp_path / name, *rows), format)


def test_bad_utf8_names_the_line(tmp_path):
  path = tmp_path / "mgsm_de.tsv"
  path.write_bytes("Bälle?\t7\n".encode() + "Bälle?\t8\n".encode("latin-1"))
  with pytest.raises(ValueError, match=r"mgsm_de\.tsv:2: byte 0xe4 at column 2 is no UTF-8"):
    read(str(path), "mgsm")


def test_bad_arguments(tmp_path):
  path = lines(tmp_path / "own.jsonl", {"q": "Stifte?"})
  with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such file"):
    read(str(tmp_path / "absent.jsonl"), "gsm8k")
  with pytest.raises(ValueError, match="unknown format 'msgm', expected one of mgsm, msvamp"):
    read(path, "msgm")
  with pytest.raises(ValueError, match="language: unknown language code 'german1'"):
    read(path, "gsm8k", language="german1")
  with pytest.raises(ValueError, match="columns are fixed for format 'gsm8k'"):
    read(path, "gsm8k", columns={"text": "q"})
  with pytest.raises(ValueError, match="columns has key 'question', expected some of id, language"):
    read(path, "json", columns={"question": "q"})
  with pytest.raises(ValueError, match="columns has no key 'text'"):
    read(path, "json", language="de")
  said = r"have no language, expected data\.columns\.language, or {language} or {target} in its"
  with pytest.raises(ValueError, match=said):
    read(path, "json", columns={"text": "q"})
  with pytest.raises(ValueError, match=r"own\.jsonl:1: no column 'a'; it has 'q'"):
    read(path, "json", columns={"text": "q", "answer": "a"}, language="de")
  path = lines(tmp_path / "null.jsonl", {"q": "Stifte?"}, "null")
  with pytest.raises(ValueError, match=r"null\.jsonl:2: found NoneType, expected an object with"):
    read(path, "json", columns={"language": "l", "text": "q"}, language="de")


@pytest.mark.shared_data
def test_real_files(shared_data):
  codes = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
  grouped = {}
  for code in codes:
    questions = read(str(shared_data / "mgsm" / f"mgsm_{code}.tsv"), "mgsm")
    assert len(questions) == 250
    assert {q.language for q in questions} == {code}
    grouped[code] = [q.answer.replace(",", "") for q in questions]
    assert all(answer.isascii() and answer.isdigit() for answer in grouped[code])
  assert all(answers == grouped["en"] for answers in grouped.values())

  names = {"German": "de", "Swahili": "sw", "Thai": "th", "Bengali": "bn", "English": "en"}
  for name, code in names.items():
    questions = read(str(shared_data / "msvamp" / f"test_{name}.json"), "msvamp")
    assert (len(questions), {q.language for q in questions}) == (100, {code})

  for split, rows in (("train", 7473), ("test", 1319)):
    questions = read(str(shared_data / "gsm8k" / f"{split}.jsonl"), "gsm8k")
    assert len(questions) == rows
    assert not any("<<" in q.solution for q in questions)
    if split == "train":
      english = {q.id: q for q in questions}

  path = str(shared_data / "gsm8k_parallel" / "ru.jsonl")
  questions = read(path, "parallel")
  assert len(questions) == 7360
  assert all(q.pivot_text == english[q.id].text for q in questions)
  assert all(q.answer == english[q.id].answer.replace(",", "") for q in questions)


@pytest.mark.shared_data
@pytest.mark.parametrize("language", ["de", "ru", "zh"])
def test_real_chains_of_equations_end_in_the_gold_answer(shared_data, language):
  """Read as the language writes numbers: "1,080" would be 1.08 in German."""
  chains = read(str(shared_data / "gsm8k_parallel" / f"{language}.jsonl"), "parallel_equations")
  assert 7200 < len(chains) < 7473
  for question in chains:
    said, gold = read_answer(question.solution, language), read_answer(question.answer, "en")
    assert said.value == gold.value, question
