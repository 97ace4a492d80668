"""Evaluation sets by name.

A source of a pool that is a bare name, `mgsm` or `msvamp[:100]`, stands for a published evaluation
set. Where its questions come from:

1. the set's folder in `data.root`, if it is there: its own files as published (`files`), or a
   copy of the hub's data set;
2. else the Hugging Face hub (`hub`), which is told where there is a `data.root`.

Of the languages asked for, those that the set has are read; it is an error if it has none of them.
In a set that is parallel, questions of all languages share their ids, and each one carries the
pivot question as its reference translation.

The names of columns, subsets and splits are those of the data cards; docs/evaluation.md says which
of them were checked.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from pasmr_jax.data.questions import Question, read_questions
from pasmr_jax.text.languages import LANGUAGES, MGSM_CODES


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
  """One published set: where it lies and how it is written."""

  paper: str  # arXiv number
  home: str  # where its files can be fetched
  languages: Mapping[str, str]  # our code -> the name of its subset or in its file names
  folder: str  # below data.root
  files: tuple[str, str] | None = None  # format and file of a language: ("mgsm", "mgsm_{name}.tsv")
  hub: str = ""  # Hugging Face id; "" if it is not there
  subset: str = "{name}"  # of the hub's data set
  splits: tuple[str, ...] = ("test",)
  columns: Mapping[str, str]  # of the hub's data set, and of json files
  number: str  # a question's id by its place: "mgsm-{place:03d}"
  first: int = 1  # place of the first question
  latex: bool = False  # golds are LaTeX, which is read as if boxed

  def names(self, languages: Sequence[str]) -> dict[str, str]:
    """The set's own name of each of the languages that it has."""
    return {code: self.languages[code] for code in languages if code in self.languages}


def _same(*codes: str) -> dict[str, str]:
  return {code: code for code in codes}


_MGSM_COLUMNS = {"text": "question", "answer": "answer_number"}
_POLYMATH_LEVELS = ("low", "medium", "high", "top")


def _polymath(*levels: str) -> EvaluationSet:
  return EvaluationSet(
    paper="2504.18428",
    home="https://huggingface.co/datasets/Qwen/PolyMath",
    folder="polymath",
    languages=_same(
      "ar", "bn", "de", "en", "es", "fr", "id", "it", "ja", "ko", "pt", "ru", "sw", "te", "th",
      "vi", "zh",
    ),  # and ms, of which the project has no table
    hub="Qwen/PolyMath",
    splits=levels,
    columns={"text": "question", "answer": "answer"},
    number="polymath-{split}-{place:03d}",
    latex=True,
  )  # fmt: skip


SETS: Mapping[str, EvaluationSet] = {
  "mgsm": EvaluationSet(
    paper="2210.03057",
    home="https://github.com/google-research/url-nlp",
    folder="mgsm",
    languages=_same(*MGSM_CODES),
    files=("mgsm", "mgsm_{name}.tsv"),
    hub="juletxara/mgsm",
    columns=_MGSM_COLUMNS,
    number="mgsm-{place:03d}",
  ),
  "mgsm_rev2": EvaluationSet(
    paper="2511.05162",
    home="https://github.com/google-research-datasets/MGSM-Rev2",
    folder="mgsm_rev2",
    languages=_same(*MGSM_CODES),
    files=("mgsm", "mgsm_{name}.tsv"),
    hub="lightonai/mgsm-rev2",  # a copy: the authors publish on GitHub only
    columns=_MGSM_COLUMNS,
    number="mgsm-{place:03d}",
  ),
  "msvamp": EvaluationSet(
    paper="2310.20246",
    home="https://github.com/microsoft/MathOctopus",
    folder="msvamp",
    languages={code: LANGUAGES[code].name for code in MGSM_CODES if code != "te"},  # bn -> Bengali
    files=("msvamp", "test_{name}.json"),
    hub="Mathoctopus/MSVAMP",
    subset="{code}",
    columns={"text": "m_query", "answer": "response"},
    number="msvamp-{place:04d}",
  ),
  "global_mgsm": EvaluationSet(
    paper="2210.03057",  # MGSM's questions in more languages
    home="https://huggingface.co/datasets/CohereLabs/global-mgsm",
    folder="global_mgsm",
    languages=_same(*MGSM_CODES, "am", "ar", "ha", "ko", "vi", "yo", "zu"),
    hub="CohereLabs/global-mgsm",
    columns={"text": "question", "answer": "answer"},
    number="mgsm-{place:03d}",
  ),
  "afrimgsm": EvaluationSet(
    paper="2406.03368",
    home="https://huggingface.co/datasets/masakhane/afrimgsm",
    folder="afrimgsm",
    languages={
      "am": "amh",
      "en": "eng",
      "fr": "fra",
      "ha": "hau",
      "sw": "swa",
      "yo": "yor",
      "zu": "zul",
    },
    hub="masakhane/afrimgsm",
    columns=_MGSM_COLUMNS,
    number="afrimgsm-{place:03d}",
  ),
  "polymath": _polymath(*_POLYMATH_LEVELS),
  **{f"polymath_{level}": _polymath(level) for level in _POLYMATH_LEVELS},
  "mmath": EvaluationSet(
    paper="2505.19126",
    home="https://github.com/RUCAIBox/MMATH",
    folder="mmath",
    languages=_same("ar", "en", "es", "fr", "ja", "ko", "pt", "th", "vi", "zh"),
    files=("json", "{name}.json"),
    columns={"text": "question", "answer": "answer"},
    number="mmath-{place:03d}",
    latex=True,
  ),
  "gsm8k": EvaluationSet(
    paper="2110.14168",
    home="https://github.com/openai/grade-school-math",
    folder="gsm8k",
    languages=_same("en"),
    files=("gsm8k", "test.jsonl"),
    hub="openai/gsm8k",
    subset="main",
    columns={"text": "question", "answer": "answer"},
    number="gsm8k-test-{place:05d}",
    first=0,
  ),
}


def read_set(
  name: str,
  languages: Sequence[str],
  root: str,
  pivot: str,
  say: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Question]]:
  """The questions of a set with their gold answers, by language.

  Args:
    name: a key of `SETS`.
    languages: codes; those that the set lacks are left out.
    root: folder in which the set's own may lie; "" looks at the hub at once.
    pivot: language of the reference translations of a parallel set.
    say: is told that the hub is read instead of a folder.

  Raises:
    ValueError: the set has none of the languages, or what the readers raise, with the folder that
      is not there where they read the hub.
    FileNotFoundError: `root` is no folder; the set is not on the hub and its folder or a file in it
      is not there.
  """
  kind = SETS[name]
  named = kind.names(languages)
  if not named:
    raise ValueError(
      f"evaluation set {name!r} has none of {', '.join(languages)}; it has"
      f" {', '.join(kind.languages)}"
    )
  if root and not os.path.isdir(root):
    raise FileNotFoundError(f"data.root is {root!r}; expected a folder, or '' to read from the hub")
  folder = os.path.join(root, kind.folder) if root else ""
  looked = f"there is no folder {folder}" if root else "data.root is ''"
  if not os.path.isdir(folder):
    folder = ""
  if not folder and not kind.hub:
    expected = os.path.join(root or "DATA", kind.folder, (kind.files or ("", ""))[1])
    raise FileNotFoundError(
      f"evaluation set {name!r} is not on the Hugging Face hub; expected its files as {expected}"
      f" (data.root), which {kind.home} has"
    )
  if root and not folder:
    say(f"{name} is read from the Hugging Face hub ({kind.hub}): {looked}")
  try:
    read = {code: _read(kind, folder, code, own) for code, own in named.items()}
  except ValueError as error:
    if folder:
      raise
    raise ValueError(f"{error}; {looked}, from which {name} would be read instead") from error
  return with_references(read, pivot)


def with_references(
  questions: Mapping[str, Sequence[Question]], pivot: str
) -> dict[str, list[Question]]:
  """Questions with the pivot question of the same id as their reference translation.

  Where the two have different gold answers they are not the same question, and there is none.
  """
  originals = {question.id: question for question in questions.get(pivot, ())}

  def referring(question: Question) -> Question:
    original = originals.get(question.id)
    if question.pivot_text or original is None or question.language == pivot:
      return question
    same = _digits(question.answer) == _digits(original.answer)
    return dataclasses.replace(question, pivot_text=original.text) if same else question

  return {code: [referring(question) for question in own] for code, own in questions.items()}


def _digits(answer: str | None) -> str:
  """An answer without grouping: MGSM writes some golds with a comma in some languages only."""
  return (answer or "").replace(",", "")


def _read(kind: EvaluationSet, folder: str, code: str, own: str) -> list[Question]:
  """The set's questions in one language, numbered by their place."""
  questions = []
  for split in kind.splits:
    if folder and kind.files and any(_has(folder, kind, name) for name in kind.languages.values()):
      format, file = kind.files
      path = os.path.join(folder, file.replace("{name}", own))
      columns = kind.columns if format == "json" else None
      read = read_questions(path, format, code, columns, solutions=False, answers=True)
    else:
      subset = kind.subset.replace("{name}", own).replace("{code}", code)
      read = read_questions(
        folder or kind.hub,
        "huggingface",
        code,
        kind.columns,
        solutions=False,
        answers=True,
        subset=subset,
        split=split,
      )
    for place, question in enumerate(read, start=kind.first):
      number = kind.number.format(place=place, split=split)
      answer = _gold(question.answer or "", kind.latex)
      # No reference but the pivot's own question: those in MSVAMP's files are English.
      questions.append(dataclasses.replace(question, id=number, answer=answer, pivot_text=None))
  return questions


def _has(folder: str, kind: EvaluationSet, own: str) -> bool:
  return kind.files is not None and os.path.isfile(
    os.path.join(folder, kind.files[1].replace("{name}", own))
  )


def _gold(answer: str, latex: bool) -> str:
  """The answer alone: GSM8K's hub column holds a solution that ends in "#### 5"."""
  answer = answer.rpartition("####")[2].strip()
  if latex and "\\boxed" not in answer:
    return f"\\boxed{{{answer.strip('$ ')}}}"
  return answer


# What ends a sentence in the languages of MSVAMP that use such marks.
_SENTENCE_ENDS = ("?", "!", ".", "।", "？", "。", "！", '"', "'", "”", "’", ")")


def is_cut_off(question: Question) -> bool:
  """Whether the question is one of MSVAMP's Bengali ones that break off in the middle.

  The rule: no mark ends its last sentence. Of the first 100 it names 10, and each of them breaks
  off before its question is asked; of the other languages it names none, but for Thai, which is
  written without such marks and is not judged.
  """
  if question.language != "bn" or not question.id.startswith("msvamp-"):
    return False
  return not question.text.rstrip().endswith(_SENTENCE_ENDS)
