"""The built-in corpus: disjoint splits, stable streams, right answers, one piece a word."""

import itertools
import pathlib
import re
import unicodedata

import pytest
import sentencepiece

from pasmr_jax.data import synthetic
from pasmr_jax.data.synthetic import Distractor, Event, Problem

POOL = synthetic.problems("train", seed=3, stream="pam", size=2000)
EXAMPLE = Problem(
  person=0,
  item=0,
  start=21,
  events=(Event("buy", 12), Event("lose", 5)),
  distractor=Distractor(person=1, item=3, amount=4, first=True),
)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("tokenizer") / "synthetic.model"
  synthetic.train_tokenizer(path)
  return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
  return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))


def structure(problem: Problem) -> tuple[int, ...]:
  return (problem.start, *(event.change for event in problem.events))


def texts(language: str, pool: list[Problem]) -> list[str]:
  wordings = (synthetic.question, synthetic.solution)
  return [wording(problem, language) for problem in pool for wording in wordings]


@pytest.mark.parametrize(
  ("language", "question", "solution"),
  [
    (
      "en",
      "Emma has 4 boxes. Tom has 21 apples, then buys 12 more, then loses 5. "
      "How many apples does Tom have now?",
      "Solution: 21 plus 12 is 33. 33 minus 5 is 28.\n#### 28",
    ),
    (
      "de",
      "Greta hat 4 Kisten. Hans hat 21 Äpfel, kauft dann noch 12, verliert dann 5. "
      "Wie viele Äpfel hat Hans jetzt?",
      "Lösung: 21 und 12 ergibt 33. 33 weniger 5 ergibt 28.\n#### 28",
    ),
    (
      "es",
      "Lucía tiene 4 cajas. Pablo tiene 21 manzanas, luego compra 12 más, luego pierde 5. "
      "¿Cuántas manzanas tiene Pablo ahora?",
      "Solución: 21 más 12 son 33. 33 menos 5 son 28.\n#### 28",
    ),
    (
      "sw",
      "Amina ana masanduku 4. Juma ana matufaha 21, kisha ananunua mengine 12, kisha "
      "anapoteza 5. Sasa Juma ana matufaha mangapi?",
      "Suluhisho: 21 jumlisha 12 ni 33. 33 toa 5 ni 28.\n#### 28",
    ),
    (
      "ru",
      "У Ольги 4 коробки. У Ивана 21 яблоко, потом он покупает ещё 12, потом он теряет 5. "
      "Сколько яблок теперь у Ивана?",
      "Решение: 21 прибавить 12 будет 33. 33 отнять 5 будет 28.\n#### 28",
    ),
    (
      "bn",
      "মিতার ৪টি বাক্স আছে। রহিমের ২১টি আপেল আছে, পরে আরও ১২টি কেনে, পরে ৫টি হারায়। "
      "এখন রহিমের কতটি আপেল আছে?",
      "সমাধান: ২১ যোগ ১২ সমান ৩৩। ৩৩ বিয়োগ ৫ সমান ২৮।\n#### ২৮",
    ),
  ],
)
def test_wording_of_a_problem(language: str, question: str, solution: str):
  assert synthetic.question(EXAMPLE, language) == question
  assert synthetic.solution(EXAMPLE, language) == solution


@pytest.mark.parametrize(
  ("count", "noun"),
  [(2, "камня"), (5, "камней"), (11, "камней"), (12, "камней"), (21, "камень"), (34, "камня")],
)
def test_russian_nouns_agree_with_their_number(count: int, noun: str):
  problem = Problem(person=0, item=4, start=count, events=())
  assert synthetic.question(problem, "ru").startswith(f"У Ивана {count} {noun}.")


def test_a_distractor_told_last_stands_before_the_question():
  problem = Problem(0, 0, 7, (Event("find", 5),), Distractor(1, 3, 9, first=False))
  assert synthetic.question(problem, "en") == (
    "Tom has 7 apples, then finds 5 more. Emma has 9 boxes. How many apples does Tom have now?"
  )


def test_impossible_problems_are_refused():
  with pytest.raises(ValueError, match=r"within 0\.\.99, found \(3, -2\)"):
    Problem(0, 0, 3, (Event("sell", 5),))
  with pytest.raises(ValueError, match=r"within 0\.\.99, found \(60, 100, 90\)"):
    Problem(0, 0, 60, (Event("buy", 40), Event("lose", 10)))
  with pytest.raises(ValueError, match="another person and another item"):
    Problem(0, 0, 3, (), Distractor(person=0, item=1, amount=4, first=True))


def test_unknown_names_and_sizes_are_refused():
  with pytest.raises(ValueError, match="en, de, es, sw, ru, bn; found 'fr'"):
    synthetic.question(EXAMPLE, "fr")
  with pytest.raises(ValueError, match="train, development, test; found 'dev'"):
    synthetic.problems("dev", 0, "pam", 1)
  with pytest.raises(ValueError, match="found -1"):
    synthetic.problems("train", 0, "pam", -1)


def test_the_stream_never_changes():
  # A golden value: results published with one version must be reproducible with the next.
  assert synthetic.problems("test", seed=0, stream="evaluation", size=1) == [
    Problem(5, 3, 9, (Event("sell", 7), Event("find", 6)))
  ]


def test_a_pool_depends_on_its_own_seed_and_stream_only():
  again = synthetic.problems("train", seed=3, stream="pam", size=2000)
  assert again == POOL
  assert synthetic.problems("train", seed=3, stream="pam", size=500) == POOL[:500]
  for seed, stream in ((4, "pam"), (3, "srl")):
    other = synthetic.problems("train", seed=seed, stream=stream, size=500)
    assert len(set(other) & set(POOL)) < 50


def test_problems_of_a_pool_are_distinct_and_within_bounds():
  assert len(set(POOL)) == len(POOL) == 2000
  had = [p.start for p in POOL]
  had += [p.distractor.amount for p in POOL if p.distractor is not None]
  changes = [event.amount for p in POOL for event in p.events]
  assert (min(had), max(had)) == (2, 45)
  assert (min(changes), max(changes)) == (2, 9)
  results = [amount for p in POOL for amount in p.amounts]
  assert min(results) == 0
  assert 55 < max(results) <= 45 + 9 + 9
  two_events = sum(len(p.events) == 2 for p in POOL)
  distracted = sum(p.distractor is not None for p in POOL)
  gains = [event.change > 0 for p in POOL for event in p.events]
  assert 900 < two_events < 1100
  assert 900 < distracted < 1100
  assert 0.45 < sum(gains) / len(gains) < 0.55


def test_splits_share_no_numbers_whatever_seed_and_stream():
  found = {
    split: {
      structure(problem)
      for seed, stream in itertools.product((0, 7), ("pam", "other"))
      for problem in synthetic.problems(split, seed, stream, 1500)
    }
    for split in synthetic.SPLITS
  }
  for first, second in itertools.combinations(synthetic.SPLITS, 2):
    assert not found[first] & found[second]
  # Enough of them: a test pool of a thousand is not a few sums said again and again.
  assert len(found["test"]) > 900


def test_the_split_ignores_words_and_distractors():
  plain = Problem(0, 0, 20, (Event("buy", 7), Event("lose", 3)))
  dressed = Problem(4, 5, 20, (Event("find", 7), Event("sell", 3)), Distractor(1, 1, 40, True))
  assert plain.split == dressed.split
  splits = [
    Problem(0, 0, start, (Event("buy", amount),)).split
    for start, amount in itertools.product(range(2, 46), repeat=2)
  ]
  assert 0.75 < splits.count("train") / len(splits) < 0.85
  assert 0.07 < splits.count("test") / len(splits) < 0.13
  assert 0.07 < splits.count("development") / len(splits) < 0.13


@pytest.mark.parametrize("language", synthetic.LANGUAGES)
def test_answers_follow_from_the_texts(language: str):
  for record in synthetic.questions(POOL[:500], language, prefix="train-pam"):
    assert record.solution is not None
    assert record.answer is not None
    assert record.answer.isascii()
    *steps, last = record.solution.split("\n")
    assert last.startswith("#### ")
    # `int` and `\d` read the digits of every script.
    assert int(last.removeprefix("#### ")) == int(record.answer)
    numbers = [int(number) for number in re.findall(r"\d+", " ".join(steps))]
    told = [int(number) for number in re.findall(r"\d+", record.text)]
    for left, right, result in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
      assert result in (left + right, left - right)
      assert right in told
    assert numbers[0] in told
    assert numbers[3:4] in ([], numbers[2:3])
    assert numbers[-1] == int(record.answer)


def test_bengali_uses_bengali_digits_only():
  written = "".join(texts("bn", POOL))
  assert set(re.findall(r"\d", written)) == set("০১২৩৪৫৬৭৮৯")
  for language in ("en", "de", "es", "sw", "ru"):
    assert set(re.findall(r"\d", "".join(texts(language, POOL)))) == set("0123456789")


def test_languages_share_no_word():
  for first, second in itertools.combinations(synthetic.LANGUAGES, 2):
    ours = {word.casefold() for word in synthetic.words(first)}
    assert not ours & {word.casefold() for word in synthetic.words(second)}


@pytest.mark.parametrize("language", synthetic.LANGUAGES)
def test_words_lists_what_the_texts_use(language: str):
  written = set(re.sub(r"[\d.,:?¿।#]", " ", " ".join(texts(language, POOL))).split())
  assert written == synthetic.words(language)
  assert 20 <= len(written) <= 60


def test_records_share_ids_across_languages():
  german = synthetic.questions(POOL[:13], "de", prefix="train-pam")
  english = synthetic.questions(POOL[:13], "en", prefix="train-pam", with_solution=False)
  assert [record.id for record in german] == [record.id for record in english]
  assert german[12].id == "train-pam-000012"
  assert german[12].language == "de"
  assert german[12].text == synthetic.question(POOL[12], "de")
  assert german[12].pivot_text == english[12].text == synthetic.question(POOL[12], "en")
  assert german[12].solution == synthetic.solution(POOL[12], "de")
  assert german[12].answer == english[12].answer == str(POOL[12].answer)
  assert english[12].pivot_text is None
  assert english[12].solution is None


def test_the_tokenizer_is_the_same_every_time_and_silent(
  tokenizer_path: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
):
  synthetic.train_tokenizer(tmp_path / "again.model")
  assert (tmp_path / "again.model").read_bytes() == tokenizer_path.read_bytes()
  captured = capfd.readouterr()
  assert (captured.out, captured.err) == ("", "")


def test_special_pieces(tokenizer: sentencepiece.SentencePieceProcessor):
  ids = (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.bos_id(), tokenizer.unk_id())
  assert ids == (0, 1, 2, 3)
  assert 600 <= tokenizer.get_piece_size() <= synthetic.VOCABULARY_SIZE
  assert sum(tokenizer.is_byte(i) for i in range(tokenizer.get_piece_size())) == 256
  text = "<pivot>Tom has 21 apples.</pivot>\n#### 45"
  pieces = ["<pivot>", "Tom", "▁has", "▁2", "1", "▁apples", ".", "</pivot>", "\n", "####"]
  assert tokenizer.encode(text, out_type=str) == [*pieces, "▁4", "5"]
  assert tokenizer.encode(" ২১টি", out_type=str) == ["▁২", "১", "টি"]


@pytest.mark.parametrize("language", synthetic.LANGUAGES)
def test_texts_survive_the_tokenizer(
  language: str, tokenizer: sentencepiece.SentencePieceProcessor
):
  for text in texts(language, POOL[:500]):
    assert unicodedata.normalize("NFC", text) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_foreign_text_falls_back_to_bytes(tokenizer: sentencepiece.SentencePieceProcessor):
  text = "  Qué? 漢字 🙂\t"
  assert tokenizer.unk_id() not in tokenizer.encode(text)
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("language", synthetic.LANGUAGES)
def test_a_word_is_one_piece_and_texts_are_short(
  language: str, tokenizer: sentencepiece.SentencePieceProcessor
):
  in_place = re.findall(r" ?[^\s\d.,:?¿।#]+", " ".join(texts(language, POOL)))
  pieces = [len(tokenizer.encode(word)) for word in in_place]
  assert sum(pieces) / len(pieces) <= 1.1
  asked = [len(tokenizer.encode(synthetic.question(p, language))) for p in POOL]
  solved = [len(tokenizer.encode(synthetic.solution(p, language))) for p in POOL]
  assert sum(asked) / len(asked) < 26
  assert max(asked) <= 35
  assert sum(solved) / len(solved) < 19
  assert max(solved) <= 25


def test_fewer_languages_make_a_smaller_tokenizer(tmp_path: pathlib.Path):
  synthetic.train_tokenizer(tmp_path / "two.model", languages=("en", "bn"))
  small = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "two.model"))
  assert small.get_piece_size() < 560
  text = synthetic.solution(EXAMPLE, "bn")
  assert small.decode(small.encode(text)) == text
  with pytest.raises(ValueError, match="found 'fr'"):
    synthetic.train_tokenizer(tmp_path / "none.model", languages=("en", "fr"))
