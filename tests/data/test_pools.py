"""Sources of pools: placeholders, slices, what a pool may know, and what is wrong with a source."""

import json
import pathlib

import pytest

from configs import base as base_config
from pasmr_jax.data.pools import read_pool


def _config(**pools):
  config = base_config.get_config()
  config.languages = ("de", "sw")
  for name, value in pools.items():
    config.data[name] = value
  return config


@pytest.fixture
def root(tmp_path):
  for language in ("de", "sw", "en"):
    lines = [
      {
        "id": f"x{number}",
        "language": language,
        "question": f"{language} question {number}",
        "pivot_question": f"question {number}",
        "pivot_solution": f"so <<{number}+1={number + 1}>>{number + 1}\n#### {number + 1}",
        "answer": str(number + 1),
      }
      for number in range(4)
    ]
    (tmp_path / f"{language}.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return str(tmp_path)


def _read(name, source, root="", source_of_feedback="pivot"):
  config = _config(**{name: (source,)})
  config.data.root = root
  config.feedback.source = source_of_feedback
  return read_pool(name, config)


def test_a_location_is_read_for_each_language_and_sliced(root):
  found = _read("srl", "parallel:{root}/{language}.jsonl[1:3]", root)
  assert [(q.language, q.id) for q in found] == [
    ("de", "x1"),
    ("de", "x2"),
    ("sw", "x1"),
    ("sw", "x2"),
  ]
  everywhere = _read("test", "parallel:{root}/{language}.jsonl[:1]", root)
  assert [q.language for q in everywhere] == ["en", "de", "sw"]
  targets = _read("test", "parallel:{root}/{target}.jsonl[3:]", root)
  assert [(q.language, q.id) for q in targets] == [("de", "x3"), ("sw", "x3")]


def test_srl_questions_carry_answers_for_gold_only(root):
  source = "parallel:{root}/{language}.jsonl"
  hidden, known = _read("srl", source, root), _read("srl", source, root, "gold")
  assert all(q.answer is None and q.solution is None for q in hidden)
  assert [q.answer for q in known[:2]] == ["1", "2"]
  assert all(q.answer is None for q in _read("srl", "synthetic:5"))
  assert all(q.solution is None for q in _read("srl", "synthetic:5", "", "gold"))


def test_supervised_pools_carry_solutions_and_no_answers(root):
  for source in ("parallel_equations:{root}/{language}.jsonl", "synthetic:3"):
    triplets = _read("triplets", source, root)
    assert all(q.solution and q.pivot_text and q.answer is None for q in triplets)


def test_a_pool_reads_the_columns_that_it_uses(tmp_path):
  """A file of bare questions has no translations, nor has one in the pivot language."""
  rows = {
    "bare_de": {"question": "Wie viele?"},
    "full_de": {"question": "Wie viele?", "english": "How many?", "answer": "3"},
    "full_en": {"question": "How many?", "answer": "3"},
  }
  for name, row in rows.items():
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
  config = _config(
    srl=(f"json:{tmp_path}/bare_{{language}}.jsonl",),
    test=(f"json:{tmp_path}/full_{{language}}.jsonl",),
    triplets=(f"json:{tmp_path}/bare_{{language}}.jsonl",),
  )
  config.languages, config.data.columns.pivot_text = ("de",), "english"
  assert [(q.text, q.pivot_text) for q in read_pool("srl", config)] == [("Wie viele?", None)]
  found = [(q.language, q.pivot_text, q.answer) for q in read_pool("test", config)]
  assert found == [("en", None, "3"), ("de", "How many?", "3")]
  with pytest.raises(ValueError, match="no column 'english'"):
    read_pool("triplets", config)


def test_synthetic_pools_differ_by_language_except_where_they_are_compared():
  training = _read("srl", "synthetic:20")
  assert {q.pivot_text for q in training[:20]} != {q.pivot_text for q in training[20:]}
  test = _read("test", "synthetic:20")
  assert [q.text for q in test[:20]] == [q.pivot_text for q in test[20:40]]


@pytest.mark.parametrize(
  ("source", "said"),
  [
    ("tsv:somewhere", "expected FORMAT:LOCATION"),
    ("synthetic:many", "found synthetic:many, expected a number of problems"),
    ("mgsm:/nowhere/mgsm_de.tsv", "/nowhere/mgsm_de.tsv: no such file"),
    ("mgsm:a,b", "a comma is for huggingface"),
  ],
)
def test_bad_sources_are_named(source, said):
  with pytest.raises((ValueError, FileNotFoundError), match=said):
    _read("srl", source)


def test_a_file_without_the_languages_is_an_error(root):
  with pytest.raises(ValueError, match="no question in de, sw"):
    _read("srl", "parallel:{root}/en.jsonl", root)


def test_two_sources_of_a_pool_have_ids_of_their_own(tmp_path):
  """Answers are told apart by language and id, also those of an interrupted evaluation."""
  for name in ("easy", "hard"):
    for language in ("en", "de"):
      path = tmp_path / f"{name}_{language}.jsonl"
      path.write_text(json.dumps({"question": f"{name} {language}", "answer": "1", "key": name}))
  config = _config(
    test=tuple(f"json:{tmp_path}/{name}_{{language}}.jsonl" for name in ("easy", "hard"))
  )
  config.languages = ("de",)
  with pytest.raises(
    ValueError,
    match=r"data.test: two of its sources have a question '000001' \(en\): 'easy en' and 'hard en'",
  ):
    read_pool("test", config)
  config.data.columns.id = "key"
  assert [(q.language, q.id) for q in read_pool("test", config)] == [
    ("en", "easy"),
    ("de", "easy"),
    ("en", "hard"),
    ("de", "hard"),
  ]


def test_what_is_trained_on_may_have_an_id_again(tmp_path):
  """Shards, slices of a file that overlap, and a source named twice for its weight."""
  for name in ("easy", "hard"):
    rows = [{"question": f"{name} {number}", "solution": "#### 1"} for number in range(3)]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
  shards = (f"json:{tmp_path}/easy.jsonl", f"json:{tmp_path}/hard.jsonl")
  slices = (f"json:{tmp_path}/easy.jsonl[:2]", f"json:{tmp_path}/easy.jsonl[1:]")
  for name in ("pivot", "target", "srl"):
    for sources, texts in ((shards, 6), (slices, 3), (shards[:1] * 2, 3)):
      config = _config(**{name: sources})
      config.languages, config.data.columns.solution = ("de",), "solution"
      found = read_pool(name, config)
      assert len({q.text for q in found}) == texts
      assert len({q.id for q in found}) == 3


@pytest.mark.parametrize(
  ("source", "said"),
  [
    ("parallel:{root}/{language}.jsonl[4:]", r"\[4:\]': takes none of 4 questions \(en\)"),
    ("synthetic:20[50:]", r"data.test: source 'synthetic:20\[50:\]': takes none of 20 questions"),
    ("synthetic:0", "takes none of 0 questions"),
    ("mgsm[9:]", "takes none of 2 questions"),
  ],
)
def test_a_slice_takes_something_of_every_language(root, source, said):
  (pathlib.Path(root) / "mgsm").mkdir()
  for language in ("en", "de", "sw"):
    (pathlib.Path(root) / "mgsm" / f"mgsm_{language}.tsv").write_text("a?\t1\nb?\t2\n")
  with pytest.raises(ValueError, match=said):
    _read("test", source, root)


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("srl", "mgsm:{root}/mgsm_en.tsv"),
    ("srl", "gsm8k:{root}/train.jsonl"),
    ("srl", "msvamp:{root}/test_Swahili.json"),
    ("srl", "parallel:{root}/sw.jsonl"),
    ("pivot", "mgsm:{root}/mgsm_sw.tsv"),
    ("pivot", "gsm8k:{root}/train.jsonl"),
  ],
)
def test_one_language_does_not_make_a_file_of_another_one_its_own(root, name, source):
  """gsm8k is English and the others tell their language, also where only one is asked for."""
  folder = pathlib.Path(root)
  for language in ("en", "sw"):
    (folder / f"mgsm_{language}.tsv").write_text("How many?\t1\n")
  (folder / "train.jsonl").write_text(json.dumps({"question": "How many?", "answer": "#### 1"}))
  row = {"query": "how many ?", "m_query": "Ngapi?", "response": "1"}
  (folder / "test_Swahili.json").write_text(json.dumps(row))
  config = _config(**{name: (source,)})
  config.data.root, config.languages = root, ("de",)
  if name == "pivot":
    config.pivot = "fr"
  with pytest.raises(
    ValueError, match=f"data.{name}: .*: no question in .* needs {{language}} in its location"
  ):
    read_pool(name, config)


@pytest.mark.parametrize(
  ("format", "file"),
  [("mgsm", "fragen.tsv"), ("mgsm", "mgsm_de_v2.tsv"), ("msvamp", "fragen.json")],
)
def test_a_file_whose_name_tells_no_language_has_that_of_the_pool(tmp_path, format, file):
  row = {"query": "How many?", "m_query": "Wie viele?", "response": "1"}
  (tmp_path / file).write_text("Wie viele?\t1" if format == "mgsm" else json.dumps(row))
  config = _config(srl=(f"{format}:{tmp_path}/{file}",))
  with pytest.raises(ValueError, match=r"the file name, or \{language\} in its location"):
    read_pool("srl", config)
  config.languages = ("de",)
  assert [(q.language, q.text) for q in read_pool("srl", config)] == [("de", "Wie viele?")]


def test_a_file_may_name_its_languages_in_a_column(tmp_path):
  rows = [
    {"question": "Ngapi?", "lang": "sw"},
    {"question": "Wie viele?", "lang": "German"},
    {"question": "How many?", "lang": "en"},
  ]
  path = tmp_path / "mixed.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  config = _config(srl=(f"json:{path}",))
  with pytest.raises(
    ValueError, match=r"expected data.columns.language, or {language} or {target} in"
  ):
    read_pool("srl", config)
  config.data.columns.language = "lang"
  assert [(q.language, q.text) for q in read_pool("srl", config)] == [
    ("sw", "Ngapi?"),
    ("de", "Wie viele?"),
  ]
  config.languages = ("de",)  # the column is believed, whatever is asked for
  assert [(q.language, q.id, q.text) for q in read_pool("srl", config)] == [
    ("de", "000002", "Wie viele?")
  ]
  config.languages = ("fr",)
  with pytest.raises(ValueError, match="no question in fr; it has de, en, sw"):
    read_pool("srl", config)


def test_a_file_of_one_language_needs_no_column_that_another_pool_has(tmp_path):
  rows = [{"question": "Ngapi?", "lang": "sw"}, {"question": "Wie viele?", "lang": "German"}]
  (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "plain_en.jsonl").write_text(json.dumps({"question": "How many?", "solution": "1"}))
  config = _config(
    srl=(f"json:{tmp_path}/mixed.jsonl",), pivot=(f"json:{tmp_path}/plain_{{language}}.jsonl",)
  )
  config.data.columns.update({"language": "lang", "solution": "solution"})
  assert [q.language for q in read_pool("srl", config)] == ["sw", "de"]
  assert [(q.language, q.text) for q in read_pool("pivot", config)] == [("en", "How many?")]
  # where the file has the column, it is believed
  (tmp_path / "plain_en.jsonl").write_text(json.dumps({**rows[0], "solution": "1"}))
  with pytest.raises(ValueError, match="found no question in language 'en'"):
    read_pool("pivot", config)


@pytest.mark.parametrize("name", ["triplets", "translation"])
@pytest.mark.parametrize("source", ["synthetic:3", "msvamp:{root}/test_{language}.json"])
def test_english_references_are_not_taught_for_another_pivot(name, source):
  config = _config(**{name: (source,)})
  config.languages, config.pivot = ("sw",), "de"
  with pytest.raises(
    ValueError, match=f"data.{name}: .*: its references are English; .* pivot 'en'"
  ):
    read_pool(name, config)


def test_another_pivot_has_no_english_references(tmp_path):
  row = {"query": "How many?", "m_query": "Ngapi?", "response": "1"}
  for language in ("de", "sw"):
    (tmp_path / f"test_{language}.json").write_text(json.dumps(row))
  config = _config()
  config.languages, config.pivot, config.data.root = ("sw",), "de", str(tmp_path)
  for name in ("pivot", "target", "srl", "development", "test"):
    config.data[name] = ("synthetic:3",)
    found = read_pool(name, config)
    assert found
    assert all(q.pivot_text is None for q in found)
  for name in ("srl", "test"):
    config.data[name] = ("msvamp:{root}/test_{language}.json",)
    assert {q.pivot_text for q in read_pool(name, config)} == {None}


@pytest.mark.parametrize(
  ("name", "columns", "missing"),
  [
    ("translation", {}, "pivot_text"),
    ("triplets", {"pivot_text": "english"}, "solution"),
    ("triplets", {"solution": "worked"}, "pivot_text"),
    ("target", {"pivot_text": "english"}, "solution"),
    ("pivot", {}, "solution"),
  ],
)
def test_a_pool_has_what_it_teaches(tmp_path, name, columns, missing):
  row = {"question": "Wie viele?", "english": "How many?", "worked": "1 + 1 = 2\n#### 2"}
  path = tmp_path / "own.jsonl"
  path.write_text(json.dumps(row))
  config = _config(**{name: (f"json:{path}",)})
  config.languages = ("de",)
  config.data.columns.update(columns)
  language = "en" if name == "pivot" else "de"
  said = rf"data.{name}: question '000001' \({language}\) has no {missing}"
  with pytest.raises(ValueError, match=said):
    read_pool(name, config)
  config.data.columns.update({"pivot_text": "english", "solution": "worked"})
  assert len(read_pool(name, config)) == 1
