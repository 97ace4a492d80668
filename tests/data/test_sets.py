"""Evaluation sets by name: from local files, from a copy of the hub, and what they lack."""

import json

import pytest

from configs import base as base_config
from pasmr_jax.data import sets
from pasmr_jax.data.pools import read_pool, set_name
from pasmr_jax.data.questions import Question
from pasmr_jax.text.languages import LANGUAGES


def _write(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
  _write(tmp_path / "mgsm" / "mgsm_en.tsv", "How many pens?\t1,234", "How many balls?\t2")
  _write(tmp_path / "mgsm" / "mgsm_de.tsv", "Wie viele Stifte?\t1234", "Wie viele Hunde?\t3")
  rows = [
    {"query": "how many ?", "m_query": text, "response": "8.0"}
    for text in ("কতগুলি কলম আছে?", "কতগুলি কল")
  ]
  _write(tmp_path / "msvamp" / "test_Bengali.json", *map(json.dumps, rows))
  english = [row | {"m_query": "how many ?"} for row in rows]
  _write(tmp_path / "msvamp" / "test_English.json", *map(json.dumps, english))
  for language, text in (("en", "Find $x$."), ("ko", "$x$를 구하라.")):
    rows = [{"question": text, "answer": answer, "gid": 0} for answer in ("204", "$\\frac{1}{2}$")]
    _write(tmp_path / "mmath" / f"{language}.json", json.dumps(rows))
  _write(
    tmp_path / "gsm8k" / "test.jsonl",
    json.dumps({"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}),
  )
  return str(tmp_path)


def _config(root, test, languages=("de", "bn", "ko")):
  config = base_config.get_config()
  config.languages, config.data.root, config.data.test = languages, root, test
  return config


def test_local_files_are_read_for_the_languages_that_the_set_has(root):
  found = read_pool("test", _config(root, ("mgsm",), ("de", "vi")))
  assert found == [
    Question("mgsm-001", "en", "How many pens?", answer="1,234"),
    Question("mgsm-002", "en", "How many balls?", answer="2"),
    Question("mgsm-001", "de", "Wie viele Stifte?", "How many pens?", answer="1234"),
    # Another answer: it is not the same question, so the English one is no reference.
    Question("mgsm-002", "de", "Wie viele Hunde?", answer="3"),
  ]


def test_blank_lines_shift_no_reference(root, tmp_path):
  german = (tmp_path / "mgsm" / "mgsm_de.tsv").read_text("utf-8")
  (tmp_path / "mgsm" / "mgsm_de.tsv").write_text(f"\n\n{german}", "utf-8")
  files = _config(root, ("mgsm:{root}/mgsm/mgsm_{language}.tsv",), ("de",))
  for config in (files, _config(root, ("mgsm",), ("de",))):
    asked = {(q.id, q.language): q.pivot_text for q in read_pool("test", config)}
    assert asked["mgsm-001", "de"] == "How many pens?"


def test_the_name_of_a_set_may_be_sliced(root):
  found = read_pool("test", _config(root, ("mgsm[1:2]", "gsm8k"), ("de",)))
  assert [(q.language, q.id) for q in found] == [
    ("en", "mgsm-002"),
    ("de", "mgsm-002"),
    ("en", "gsm8k-test-00000"),
  ]
  assert found[-1].answer == "2"


def test_golds_in_latex_are_boxed(root):
  found = read_pool("test", _config(root, ("mmath",)))
  assert [q.language for q in found] == ["en", "en", "ko", "ko"]
  assert [q.answer for q in found[2:]] == ["\\boxed{204}", "\\boxed{\\frac{1}{2}}"]
  assert found[2].pivot_text == "Find $x$."


def test_cut_off_questions_of_msvamp(root):
  found = read_pool("test", _config(root, ("msvamp",), ("bn",)))
  assert [sets.is_cut_off(question) for question in found] == [False, False, False, True]
  # Neither other languages nor other sets are judged.
  assert not sets.is_cut_off(Question("msvamp-0001", "th", "กี่คน"))
  assert not sets.is_cut_off(Question("mgsm-001", "bn", "কতগুলি কল"))


def test_references_of_a_format_with_parallel_files(root):
  config = _config(root, ("mgsm:{root}/mgsm/mgsm_{language}.tsv",), ("de",))
  assert [q.pivot_text for q in read_pool("test", config)] == [None, None, "How many pens?", None]


def test_references_are_in_the_pivot(root):
  """MSVAMP's files have an English original beside every question."""
  config = _config(root, ("msvamp",), ("en",))
  config.pivot = "bn"
  assert [(q.language, q.pivot_text) for q in read_pool("test", config)] == [
    ("bn", None),
    ("bn", None),
    ("en", "কতগুলি কলম আছে?"),
    ("en", "কতগুলি কল"),
  ]
  config.pivot, config.languages = "en", ("bn",)
  assert [q.pivot_text for q in read_pool("test", config)] == [
    None,
    None,
    "how many ?",
    "how many ?",
  ]


def test_a_folder_may_be_a_copy_of_the_hub(tmp_path, monkeypatch):
  monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
  folder = tmp_path / "polymath"
  head = ["---", "configs:"]
  for language in ("en", "ko"):
    head += [f"- config_name: {language}", "  data_files:"]
    for level in ("low", "medium", "high", "top"):
      head += [f"  - split: {level}", f"    path: {language}/{level}.jsonl"]
      row = {"id": level, "question": f"{language} {level}?", "answer": "$2\\sqrt{3}$"}
      _write(folder / language / f"{level}.jsonl", json.dumps(row))
  _write(folder / "README.md", *head, "---")
  found = read_pool("test", _config(str(tmp_path), ("polymath",), ("ko",)))
  levels = ["low", "medium", "high", "top"]
  assert [q.id for q in found] == [f"polymath-{level}-001" for level in levels] * 2
  assert [q.text for q in found[4:]] == [f"ko {level}?" for level in levels]
  assert found[4].pivot_text == "en low?"
  assert found[0].answer == "\\boxed{2\\sqrt{3}}"
  one = read_pool("test", _config(str(tmp_path), ("polymath_top",), ("ko",)))
  assert [q.id for q in one] == ["polymath-top-001"] * 2


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("mgsm", ("juletxara/mgsm", "de", "test", ["question", "answer_number"])),
    ("mgsm_rev2", ("lightonai/mgsm-rev2", "de", "test", ["question", "answer_number"])),
    ("msvamp", ("Mathoctopus/MSVAMP", "de", "test", ["m_query", "response"])),
    ("global_mgsm", ("CohereLabs/global-mgsm", "de", "test", ["question", "answer"])),
    ("polymath_high", ("Qwen/PolyMath", "de", "high", ["question", "answer"])),
  ],
)
def test_what_is_asked_of_the_hub(monkeypatch, name, expected):
  asked = []

  def load_dataset(path, subset, split):
    import datasets

    text, answer = expected[3]
    asked.append((path, subset, split))
    return datasets.Dataset.from_dict({text: ["Frage?"], answer: [7], "other": ["x"]})

  monkeypatch.setattr("datasets.load_dataset", load_dataset)
  found = sets.read_set(name, ["de"], "", "en")
  assert asked == [expected[:3]]
  assert [q.text for q in found["de"]] == ["Frage?"]


def test_afrimgsm_has_codes_of_three_letters(monkeypatch):
  asked = []

  def load_dataset(path, subset, split):
    import datasets

    asked.append((path, subset))
    return datasets.Dataset.from_dict({"question": ["?"], "answer_number": [7]})

  monkeypatch.setattr("datasets.load_dataset", load_dataset)
  found = sets.read_set("afrimgsm", ["yo", "de", "en"], "", "en")
  assert asked == [("masakhane/afrimgsm", "yor"), ("masakhane/afrimgsm", "eng")]
  assert found["yo"][0].id == "afrimgsm-001"


def test_every_set_is_in_languages_that_the_project_knows():
  for kind in sets.SETS.values():
    assert set(kind.languages) <= set(LANGUAGES)
    assert kind.hub or kind.files


def test_what_is_wrong_is_named(root, tmp_path):
  with pytest.raises(ValueError, match=r"'msvamp' has none of ko, vi; it has bn, de, en"):
    sets.read_set("msvamp", ["ko", "vi"], root, "en")
  with pytest.raises(FileNotFoundError, match=r"'mmath' is not on the .*github.com/RUCAIBox/MMATH"):
    sets.read_set("mmath", ["ko"], str(tmp_path / "mgsm"), "en")
  with pytest.raises(FileNotFoundError, match=r"mgsm_sw.tsv: no such file"):
    sets.read_set("mgsm", ["sw"], root, "en")
  config = _config(root, ())
  config.data.srl = ("mgsm",)
  with pytest.raises(ValueError, match=r"is for data.development and data.test only"):
    read_pool("srl", config)
  with pytest.raises(ValueError, match=r"data.test: source 'mgsn': .* or one of the sets mgsm, "):
    read_pool("test", _config(root, ("mgsn",)))


def test_a_root_that_is_no_folder_is_named(tmp_path):
  nowhere = str(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match=rf"data.root is '{nowhere}'; expected a folder, or"):
    read_pool("test", _config(nowhere, ("msvamp",)))


def test_it_is_told_that_the_hub_is_read_and_not_a_folder(root, monkeypatch):
  def load_dataset(path, subset, split):
    import datasets

    return datasets.Dataset.from_dict({"question": [f"{subset}?"], "answer_number": [7]})

  said = []
  monkeypatch.setattr("datasets.load_dataset", load_dataset)
  found = read_pool("test", _config(root, ("mgsm_rev2", "msvamp"), ("bn",)), say=said.append)
  assert [q.text for q in found[:2]] == ["en?", "bn?"]
  reason = f"there is no folder {root}/mgsm_rev2"
  assert said == [
    f"data.test: mgsm_rev2 is read from the Hugging Face hub (lightonai/mgsm-rev2): {reason}"
  ]
  read_pool("test", _config("", ("mgsm_rev2",), ("bn",)), say=said.append)  # as it says
  assert len(said) == 1

  def unreachable(path, subset, split):
    raise ConnectionError("nobody listens")

  monkeypatch.setattr("datasets.load_dataset", unreachable)
  for folder, why in ((root, reason), ("", "data.root is ''")):
    with pytest.raises(ValueError, match=rf"nobody listens.*; {why}, from which mgsm_rev2 would"):
      read_pool("test", _config(folder, ("mgsm_rev2",), ("bn",)))


def test_languages_that_a_set_lacks_are_told(root):
  said = []
  read_pool("test", _config(root, ("mgsm", "gsm8k"), ("de", "tr", "yo")), say=said.append)
  assert said == [
    "data.test: mgsm has no questions in tr, yo",
    "data.test: gsm8k has no questions in de, tr, yo",
  ]


def test_a_pool_is_not_left_with_the_pivot_alone(root, tmp_path):
  config = _config(root, ("mgsm",), ("tr", "yo", "ar"))
  said = r"^data.test: no source has a question in tr, yo, ar; mgsm has bn, de, en, es"
  with pytest.raises(ValueError, match=said):
    read_pool("test", config)
  # Unless another source has some, or the set is one of the pivot.
  _write(tmp_path / "own_tr.tsv", "Kaç?\t3")
  config.languages = ("tr",)
  config.data.test = ("mgsm", f"mgsm:{tmp_path}/own_tr.tsv")
  assert [q.language for q in read_pool("test", config)] == ["en", "en", "tr"]
  config.data.test = ("gsm8k",)
  assert [q.language for q in read_pool("test", config)] == ["en"]


def test_names_of_sources():
  assert set_name("mgsm[:5]") == "mgsm"
  assert set_name("mgsm:{root}/x_{language}.tsv") is None
  assert set_name("nowhere") is None


@pytest.mark.shared_data
def test_the_published_files(shared_data):
  languages = ["en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"]
  mgsm = sets.read_set("mgsm", languages, str(shared_data), "en")
  assert {code: len(own) for code, own in mgsm.items()} == dict.fromkeys(languages, 250)
  assert all(q.pivot_text for code, own in mgsm.items() if code != "en" for q in own)
  msvamp = sets.read_set("msvamp", languages, str(shared_data), "en")
  english = [question.text for question in msvamp["en"]]
  assert all([q.pivot_text for q in own] == english for code, own in msvamp.items() if code != "en")
  assert list(msvamp) == [code for code in languages if code != "te"]
  # Of the first 100 of 1,000 questions.
  assert sum(map(sets.is_cut_off, msvamp["bn"])) == 10
  assert not any(map(sets.is_cut_off, msvamp["de"]))
  assert len(sets.read_set("gsm8k", languages, str(shared_data), "en")["en"]) == 1319
