"""From answered questions to the numbers of `results/NAME.json`.

`judge` makes an `Item` of each response, by every scoring rule. `summarize` gives the few numbers
that a run watches while it trains; `measure` gives all of them, as docs/evaluation.md lists them.
Averages over languages weigh languages alike; those over targets leave the pivot out.
"""

import collections
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pasmr_jax.data.questions import Question
from pasmr_jax.data.sets import is_cut_off
from pasmr_jax.experiment.asking import answer_language
from pasmr_jax.experiment.items import Item, Response
from pasmr_jax.experiment.scoring import SCORINGS, Gold, score
from pasmr_jax.experiment.statistics import Bootstrap, Interval, majority_share
from pasmr_jax.feedback import language_id
from pasmr_jax.feedback.rewards import number_recall
from pasmr_jax.text.answers import RULES, read_answer
from pasmr_jax.text.resources import HIGH_RESOURCE, LOW_RESOURCE


def gold_answer(question: Question) -> Gold:
  """The question's gold answer. Data sets write it in English style (1,234.5) in every language.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  gold = Gold.read(question.answer)
  if gold is None:
    raise ValueError(
      f"question {question.id!r} ({question.language}): gold answer {question.answer!r} cannot be"
      " read; expected a number"
    )
  return gold


def reads_otherwise(question: Question) -> bool:
  """Whether the gold answer would be another number in the style of the question's language.

  "57.500" is 57.5 here, and 57,500 to who writes German.
  """
  own = read_answer(question.answer or "", question.language)
  return own is not None and own.value != gold_answer(question).answer.value


def has_unreadable_formula(question: Question) -> bool:
  """Whether the gold answer is a formula without an exact value: an interval, a set, words.

  Answers to such a question cannot be judged by any rule here.
  """
  return "\\boxed" in (question.answer or "") and Gold.read(question.answer) is None


def judge(
  responses: Sequence[Response],
  questions: Sequence[Question],
  *,
  way: str,
  scoring: str,
  pivot: str,
  languages: tuple[str, ...] | None,
) -> list[Item]:
  """Judges each response to the question of the same place.

  Args:
    responses: what the model gave.
    questions: as many, with gold answers.
    way: how they were asked, one of `asking.WAYS`.
    scoring: the rule of `Item.correct`, one of `scoring.SCORINGS`.
    pivot: the pivot language.
    languages: that texts may be in; None identifies none.
  """
  expected = [answer_language(way, question.language, pivot) for question in questions]
  reasoning = _consistent([r.reasoning for r in responses], expected, languages)
  translation = _consistent(
    [r.translation or "" for r in responses], [pivot] * len(responses), languages
  )
  items = []
  for place, (response, question) in enumerate(zip(responses, questions, strict=True)):
    gold = gold_answer(question)
    verdicts = {
      rule: score(
        rule,
        response.reasoning,
        gold,
        language=expected[place],
        question_language=question.language,
        direct=way == "direct",
      )
      for rule in SCORINGS
    }
    answer = read_answer(response.reasoning, expected[place])
    solution = response.pivot_solution
    pivot_answer = None if solution is None else read_answer(solution, pivot)
    target = question.language != pivot
    translated = response.translation if target else None
    items.append(
      Item(
        **vars(response),
        gold=question.answer or "",
        answer=verdicts[scoring].answer,
        correct=verdicts[scoring].correct,
        rule=None if answer is None else answer.rule,
        scores={rule: verdict.correct for rule, verdict in verdicts.items()},
        reasoning_consistent=reasoning[place],
        translation_consistent=None if translated is None else translation[place],
        number_recall=None if translated is None else number_recall(question.text, translated),
        pivot_answer=None if pivot_answer is None else str(pivot_answer.value),
        agrees=None
        if solution is None
        else answer is not None and pivot_answer is not None and answer.value == pivot_answer.value,
        cut_off=is_cut_off(question),
      )
    )
  return items


def _consistent(
  texts: Sequence[str], expected: Sequence[str], languages: tuple[str, ...] | None
) -> Sequence[bool | None]:
  """Whether each text is in its language, or too short to tell."""
  if languages is None:
    return [None] * len(texts)
  found = language_id.identify(texts, languages)
  return [
    language in (wanted, language_id.UNKNOWN)
    for language, wanted in zip(found, expected, strict=True)
  ]


def _by_language(items: Sequence[Item]) -> dict[str, list[Item]]:
  groups: dict[str, list[Item]] = collections.defaultdict(list)
  for item in items:
    groups[item.language].append(item)
  return dict(sorted(groups.items()))


def _mean(values: Sequence[float | bool]) -> float:
  return float(np.mean(values))


def summarize(items: Sequence[Item], pivot: str) -> dict[str, float]:
  """Accuracy per language (`accuracy/de`), their mean over targets, and well-formed share.

  `target_accuracy` weighs languages alike; `pivot_accuracy` is there if the pivot was asked.
  """
  groups = _by_language(items)
  accuracy = {
    language: _mean([item.correct for item in group]) for language, group in groups.items()
  }
  targets = [language for language in accuracy if language != pivot]
  summary = {f"accuracy/{language}": value for language, value in accuracy.items()}
  if targets:
    summary["target_accuracy"] = _mean([accuracy[language] for language in targets])
    asked = [item for language in targets for item in groups[language]]
    summary["well_formed_rate"] = _mean([item.well_formed for item in asked])
    summary["truncation_rate"] = _mean([item.truncated for item in asked])
  if pivot in accuracy:
    summary["pivot_accuracy"] = accuracy[pivot]
  return summary


def averaged(languages: Sequence[str], pivot: str) -> dict[str, list[str]]:
  """The averages that there are: name -> languages."""
  targets = [language for language in languages if language != pivot]
  sets = {
    "target": targets,
    "high_resource": [language for language in targets if language in HIGH_RESOURCE],
    "low_resource": [language for language in targets if language in LOW_RESOURCE],
    "all": list(languages),
  }
  return {name: chosen for name, chosen in sets.items() if chosen}


def question_table(
  items: Sequence[Item], value: Callable[[list[Item]], float]
) -> tuple[np.ndarray, list[str]]:
  """One value a question and language, float [Q, L] with NaN where it was not asked.

  Args:
    items: of all languages, with all samples.
    value: of the samples of one question in one language.

  Returns:
    The table, its questions in the order of their ids, and its languages.
  """
  samples: dict[tuple[str, str], list[Item]] = collections.defaultdict(list)
  for item in items:
    samples[item.id, item.language].append(item)
  ids = {name: row for row, name in enumerate(sorted({name for name, _ in samples}))}
  languages = sorted({language for _, language in samples})
  table = np.full((len(ids), len(languages)), np.nan)
  for (name, language), group in samples.items():
    table[ids[name], languages.index(language)] = value(group)
  return table, languages


def measure(
  items: Sequence[Item], references: Mapping[tuple[str, str], str], pivot: str, scoring: str
) -> dict[str, float]:
  """Everything that is reported of one evaluation, by name; docs/evaluation.md lists the names.

  Args:
    items: all answers.
    references: (language, id) -> reference translation, where there is one.
    pivot: the pivot language.
    scoring: the rule of `Item.correct`.
  """
  found = summarize(items, pivot)
  groups = _by_language(items)
  correct, languages = question_table(items, lambda group: _mean([i.correct for i in group]))
  bootstrap = Bootstrap(correct)
  averages = averaged(languages, pivot)
  for name, chosen in {**{code: [code] for code in languages}, **averages}.items():
    columns = [languages.index(language) for language in chosen]
    found |= _named(f"interval/{name}", bootstrap.share_interval(columns))
    if name in averages:
      found[f"{name}_accuracy"] = _mean([found[f"accuracy/{language}"] for language in chosen])

  samples = 1 + max(item.sample for item in items)
  if samples > 1:
    majority, _ = question_table(
      items, lambda group: majority_share([(i.answer, i.correct) for i in group])
    )
    shares = dict(zip(languages, np.nanmean(majority, axis=0), strict=True))
    mean_at = {language: found[f"accuracy/{language}"] for language in languages}
    found |= _averaged_too(f"mean@{samples}", mean_at, averages)
    found |= _averaged_too(f"maj@{samples}", shares, averages)

  for rule in SCORINGS:
    if rule != scoring:
      values = {
        code: _mean([item.scores[rule] for item in group]) for code, group in groups.items()
      }
      found |= _averaged_too(f"scoring/{rule}", values, averages)

  everywhere: dict[str, Callable[[Item], float | bool | None]] = {
    "language/reasoning": lambda item: item.reasoning_consistent,
    "language/translation": lambda item: item.translation_consistent,
    "number_recall": lambda item: item.number_recall,
    "pivot_agreement": lambda item: item.agrees,
    "truncated": lambda item: item.truncated,
    "tokens": lambda item: item.tokens,
  }
  for name, value in everywhere.items():
    found |= _where_known(name, groups, value, averages)
  found |= _averaged_too("chrf", _chrf(groups, references, pivot), averages)
  for rule in (*RULES, None):
    found[f"rule/{rule or 'none'}"] = _mean([item.rule == rule for item in items])
  found |= {f"questions/{code}": len({i.id for i in group}) for code, group in groups.items()}
  return found | _without_cut_off(items, pivot)


def _named(name: str, interval: Interval) -> dict[str, float]:
  return {f"{name}/low": interval.low, f"{name}/high": interval.high}


def _averaged_too(
  name: str, values: Mapping[str, float], averages: Mapping[str, Sequence[str]]
) -> dict[str, float]:
  """Values by language with their averages, as `NAME/de` and `NAME/target`."""
  found = {f"{name}/{language}": float(value) for language, value in values.items()}
  for average, languages in averages.items():
    known = [values[language] for language in languages if language in values]
    if known:
      found[f"{name}/{average}"] = _mean(known)
  return found


def _where_known(
  name: str,
  groups: Mapping[str, Sequence[Item]],
  value: Callable[[Item], float | bool | None],
  averages: Mapping[str, Sequence[str]],
) -> dict[str, float]:
  """A mean over the items that have the value, by language and averaged."""
  means = {}
  for language, group in groups.items():
    known = [number for item in group if (number := value(item)) is not None]
    if known:
      means[language] = _mean(known)
  return _averaged_too(name, means, averages)


def _chrf(
  groups: Mapping[str, Sequence[Item]], references: Mapping[tuple[str, str], str], pivot: str
) -> dict[str, float]:
  """chrF++ of the translations, 0 to 100, by language; a missing translation is an empty one.

  A language without a reference has none, nor has the pivot, from which nothing is translated, nor
  any where nobody was asked for a translation.
  """
  if not any(item.translation for group in groups.values() for item in group):
    return {}
  from sacrebleu.metrics.chrf import CHRF

  found = {}
  for language, group in groups.items():
    pairs = [
      (item.translation or "", references[language, item.id])
      for item in group
      if (language, item.id) in references and language != pivot
    ]
    if pairs:
      translations, originals = zip(*pairs, strict=True)
      found[language] = CHRF(word_order=2).corpus_score(translations, [originals]).score
  return found


def _without_cut_off(items: Sequence[Item], pivot: str) -> dict[str, float]:
  """Accuracy without the questions that the data set cuts off, where there are any."""
  hurt = sorted({item.language for item in items if item.cut_off})
  whole = [item for item in items if not item.cut_off]
  if not hurt or not {item.language for item in whole}.issuperset(hurt):
    return {}
  summary = summarize(whole, pivot)
  found = {f"whole_questions/{language}": summary[f"accuracy/{language}"] for language in hurt}
  if "target_accuracy" in summary:
    found["whole_questions/target"] = summary["target_accuracy"]
  cut = {(item.language, item.id) for item in items if item.cut_off}
  return found | {
    f"cut_off_questions/{language}": sum(code == language for code, _ in cut) for language in hurt
  }
