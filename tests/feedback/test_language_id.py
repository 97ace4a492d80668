"""Naming the language of a text: by script, by lingua, or not at all."""

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasmr_jax.feedback.language_id import MAX_CHARACTERS, OTHER, UNKNOWN, clean, identify
from pasmr_jax.text.languages import LANGUAGES, MGSM_CODES

TOY = ("en", "de", "es", "sw", "ru", "bn")

SENTENCES = {
  "am": "አና ሰባት ፖም አላት ።",
  "ar": "لدى آنا سبع تفاحات وتشتري خمس تفاحات أخرى.",
  "bn": "আনার কাছে ৭টি আপেল আছে।",
  "de": "Anna hat 7 Äpfel und kauft noch 5 Äpfel dazu.",
  "en": "Anna has 7 apples and then she buys 5 more apples.",
  "es": "Ana tiene 7 manzanas y luego compra 5 manzanas más.",
  "fa": "آنا هفت سیب دارد و پنج سیب دیگر می‌خرد.",
  "fr": "Anne a 7 pommes et elle achète encore 5 pommes.",
  "hi": "अन्ना के पास 7 सेब हैं।",
  "id": "Anna mempunyai 7 apel dan membeli 5 apel lagi.",
  "it": "Anna ha 7 mele e poi compra altre 5 mele.",
  "ja": "アンナはりんごを7個持っています。",
  "ko": "안나는 사과를 7개 가지고 있습니다.",
  "pl": "Anna ma 7 jabłek i kupuje jeszcze 5 jabłek.",
  "pt": "A Ana tem 7 maçãs e depois compra mais 5 maçãs.",
  "ru": "У Анны есть 7 яблок, и она покупает ещё 5.",
  "sw": "Anna ana matufaha 7 na kisha ananunua matufaha 5 zaidi.",
  "ta": "அன்னாவிடம் 7 ஆப்பிள்கள் உள்ளன.",
  "te": "అన్నా దగ్గర 7 ఆపిల్స్ ఉన్నాయి.",
  "th": "แอนนามีแอปเปิ้ล 7 ผล",
  "tr": "Anna'nın 7 elması var ve 5 elma daha satın alıyor.",
  "uk": "Анна має 7 яблук і купує ще 5 яблук.",
  "ur": "انا کے پاس سات سیب ہیں اور وہ پانچ سیب اور خریدتی ہے۔",
  "vi": "Anna có 7 quả táo và mua thêm 5 quả táo nữa.",
  "yo": "Anna ní èso ápù méje, ó sì ra márùn-ún sí i.",
  "zh": "安娜有7个苹果，又买了5个。",
  "zu": "U-Anna unama-apula ayisikhombisa futhi uthenga amanye amahlanu.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_of_each_language(code: str):
  assert identify([SENTENCES[code]], tuple(SENTENCES)) == [code]


@pytest.mark.parametrize(
  ("code", "text"),
  [
    ("de", "Anna hat 7 Äpfel . Sie findet 5 Äpfel ."),
    ("de", "Tom hat 7 Bücher . Wie viele Bücher hat er ?"),
    ("de", "7 addiert 5 ergibt 12 ."),
    ("en", "Anna has 7 apples . She finds 5 apples ."),
    ("en", "Tom has 7 books . How many books does he have ?"),
    ("es", "Ana tiene 7 manzanas . Ella encuentra 5 manzanas ."),
    ("es", "Tom pierde 3 libros . ¿ Cuántos libros tiene ?"),
    ("sw", "Anna ana maapulo 7 . Anapata maapulo 5 ."),
    ("sw", "7 jumlisha 5 ni 12 ."),
    ("ru", "У Анны 7 яблок . Она находит 5 яблок ."),
    ("bn", "আনার ৭টি আপেল আছে । সে ৫টি আপেল পায় ।"),
  ],
)
def test_short_templates(code: str, text: str):
  assert identify([text], TOY) == [code]


@pytest.mark.parametrize(
  "text",
  ["", " ", "12", "7 + 5 = 12", "#### 12", "<pivot></pivot>", "$x^2$", "a", "Tom", "?!", "\ud800"],
)
def test_too_little_to_tell(text: str):
  assert identify([text], MGSM_CODES) == [UNKNOWN]


def test_what_belongs_to_no_language_is_taken_out():
  assert clean("<pivot>Anna</pivot> 7") == "Anna"
  assert clean("<unused0> hat <unused1>") == "hat"
  assert clean(r"so $\frac{a}{b} = \sqrt{c}$ und \boxed{12} Äpfel") == "so und Äpfel"
  assert clean(r"es sind \text{Äpfel}") == "es sind Äpfel"
  assert clean("kostet $5 und 3 + 4, also $6") == "kostet und also"
  assert clean("#### 12\nsiehe https://example.com/the/english/page") == "siehe"


def test_markup_does_not_change_the_language():
  german = SENTENCES["de"]
  marked = (
    rf"<pivot>{german}</pivot> $\text{{the answer is}} = \frac{{7}}{{5}}$ \boxed{{12}} #### 12"
  )
  assert identify([marked], MGSM_CODES) == ["de"]


def test_script_decides_alone_and_only_among_the_languages_in_play():
  assert identify([SENTENCES["ru"]], ("en", "bn")) == [OTHER]
  assert identify([SENTENCES["uk"]], ("en", "ru")) == ["ru"]  # the world is closed
  assert identify([SENTENCES["bn"]], ("bn",)) == ["bn"]


def test_han_without_kana():
  chinese = SENTENCES["zh"] * 2
  assert identify([chinese], ("ja", "zh")) == ["zh"]
  assert identify([chinese], ("ja", "en")) == [OTHER]
  assert identify(["三個"], ("ja", "en")) == ["ja"]
  assert identify([SENTENCES["ja"]], ("zh", "en")) == [OTHER]


@pytest.mark.parametrize(
  "text",
  [
    SENTENCES["zh"],
    SENTENCES["am"],
    "અન્ના પાસે સાત સફરજન છે",  # Gujarati and Georgian: no language of ours writes them
    "ანას აქვს შვიდი ვაშლი",
    "Աննան ունի յոթ խնձոր",
    "Η Άννα έχει εφτά μήλα",
    "ꦲꦤꦢꦮꦺꦏꦥꦶꦠꦸꦲꦥꦼꦭ꧀",  # Javanese
    "ꆈꌠꉙꆈꌠꁱꂷꆈꌠ",  # Yi
  ],
)
def test_a_script_of_no_language_in_play_is_another_language(text: str):
  assert identify([text], ("de", "en", "bn")) == [OTHER]
  assert identify([text[:5]], ("de", "en", "bn")) == [UNKNOWN]  # too little
  assert identify([f"{SENTENCES['de']} {text[:9]}"], ("de", "en", "bn")) == ["de"]


def test_symbols_that_are_letters_are_of_no_script():
  assert identify(["𝐓𝐡𝐞 𝐚𝐧𝐬𝐰𝐞𝐫 𝐢𝐬 ℝ ʰʲʷ ℵ"], ("de", "en")) == [UNKNOWN]


def test_accents_that_stand_apart_are_of_their_letters():
  text = unicodedata.normalize("NFD", "Für fünf Äpfel müssen wir zwölf Körbe öffnen")
  assert clean(text) == "Für fünf Äpfel müssen wir zwölf Körbe öffnen"
  assert identify([text], ("de", "es", "sw")) == ["de"]


def test_a_mixture_without_a_majority_is_in_no_language():
  mixed = "Anna has seven apples and У Анны есть семь яблок"
  assert identify([mixed], ("en", "ru")) == [OTHER]
  assert identify(["nine apples семь груш"], ("en", "ru")) == [UNKNOWN]  # too little
  named = "ที่คาบูสมีนกสี่ตัว Sally Two แก่กว่า Granny Red และ Sally Four Sally Thirtytwo"
  assert identify([named], ("en", "th")) == ["th"]  # names are of no language
  assert identify(["Анна купила семь яблок в магазине ALDI"], ("en", "ru")) == ["ru"]


def test_the_end_of_a_long_text_counts():
  drifted = SENTENCES["bn"] * 20 + SENTENCES["en"] * 60
  assert len(SENTENCES["bn"] * 20) < MAX_CHARACTERS < len(drifted) // 2
  assert identify([drifted], ("bn", "en")) == ["en"]


def test_languages_that_lingua_does_not_know():
  assert identify([SENTENCES["am"]], ("am", "en")) == ["am"]  # its script decides alone
  assert identify(["Amsa ita ce biyar"], ("ha", "ru")) == ["ha"]
  with pytest.raises(ValueError, match=r"'ha' \(Hausa\)"):
    identify([], ("en", "ha"))


def test_unknown_code_is_named():
  with pytest.raises(ValueError, match="'xx'"):
    identify(["Anna"], ("en", "xx"))


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.lists(st.text(st.characters(), max_size=60), max_size=4))
def test_any_text_gets_a_language_in_play_or_none(texts: list[str]):
  found = identify(texts, MGSM_CODES)
  assert len(found) == len(texts)
  assert set(found) <= {*MGSM_CODES, UNKNOWN, OTHER}


def test_hostile_texts_are_quick():
  for fragment in ("$", "$x^", "\\(", "\\[", "<a", "\\text{", "a ", "я", "http://", "</pivot>"):
    text = fragment * (10**6 // len(fragment))
    begin = time.process_time()
    identify([text], MGSM_CODES)
    assert time.process_time() - begin < 0.1, fragment


def questions(shared_data: Path, code: str) -> list[str]:
  path = shared_data / "mgsm" / f"mgsm_{code}.tsv"
  return [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.shared_data
@pytest.mark.parametrize("code", MGSM_CODES)
def test_questions_of_mgsm(shared_data: Path, code: str):
  texts = questions(shared_data, code)
  whole = identify(texts, MGSM_CODES)
  assert whole.count(code) / len(texts) >= 0.99
  assert set(whole) <= {code, UNKNOWN}
  start = identify([text[:40] for text in texts], MGSM_CODES)
  assert start.count(code) / len(texts) >= 0.97
  assert sum(found not in (code, UNKNOWN) for found in start) / len(texts) <= 0.02


@pytest.mark.shared_data
def test_short_texts_are_rather_unknown_than_wrong(shared_data: Path):
  for length in (10, 15, 25):
    wrong = total = 0
    for code in MGSM_CODES:
      found = identify([text[:length] for text in questions(shared_data, code)], MGSM_CODES)
      wrong += sum(name not in (code, UNKNOWN) for name in found)
      total += len(found)
    assert wrong / total < 0.01


@pytest.mark.shared_data
def test_questions_of_msvamp(shared_data: Path):
  for name, code in (("Bengali", "bn"), ("German", "de"), ("Swahili", "sw"), ("Thai", "th")):
    path = shared_data / "msvamp" / f"test_{name}.json"
    texts = [json.loads(line)["m_query"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert set(identify(texts, MGSM_CODES)) == {code}


@pytest.mark.shared_data
def test_a_text_takes_less_than_a_millisecond(shared_data: Path):
  texts = [text for code in MGSM_CODES for text in questions(shared_data, code)[:40]]
  identify(["Anna has seven apples and buys five more."], MGSM_CODES)  # loads lingua's models
  best = float("inf")
  for attempt in range(3):
    fresh = [f"{text} {'!' * attempt}" for text in texts]  # not in the cache
    begin = time.process_time()
    identify(fresh, MGSM_CODES)
    best = min(best, (time.process_time() - begin) / len(texts))
  assert best < 1e-3


def test_every_language_of_the_tables_can_stand_beside_english():
  for code in LANGUAGES:
    if code not in ("ha", "en"):
      assert identify([""], (code, "en")) == [UNKNOWN]
