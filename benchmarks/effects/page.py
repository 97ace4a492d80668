"""Writes a study down: `study.md` with its charts, and all of it as `study.json`.

`write` narrates it: the table of every arm, then one question after the other, each with a chart,
its numbers and a sentence that follows from the intervals alone; then what was compared for leaks,
what was searched, saturation, speed and settings. Only finished arms are in it; what is missing is
said to be missing.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.effects.leakage import Leakage
from benchmarks.effects.markdown import table
from benchmarks.effects.plan import Study
from benchmarks.effects.questions import (
  CALLED,
  POINTS,
  Answer,
  answers,
  percent,
  trained,
  verdict,
)
from benchmarks.effects.results import (
  SIGNALS,
  Gap,
  Results,
  machines,
  signals,
  throughput,
)
from pasmr_jax.experiment.comparison import MIN_DIFFERING
from pasmr_jax.experiment.origins import base_model
from pasmr_jax.experiment.reliability.identity import flatten
from pasmr_jax.experiment.result_files import DECODINGS


def main_table(results: Results) -> str:
  """Every finished arm: accuracy by set, decoding and group, and what pivot feedback has more."""
  columns = [
    (tested, decoding, group)
    for tested in results.sets
    for decoding in DECODINGS
    for group in results.groups
    if any(results.accuracy(name, tested, decoding, group) for name in results.arms)
  ]
  heads = [f"{tested}, {decoding}, {group}" for tested, decoding, group in columns]
  ahead = [f"pivot feedback is ahead by, {decoding}" for decoding in DECODINGS]
  rows = []
  for name in results.arms:
    cells = [percent(results.accuracy(name, *column)) for column in columns]
    for decoding in DECODINGS:
      gap = None
      if name != "pivot":
        gap = results.gap(name, "pivot", results.sets[0], decoding, trained(results))
      cells.append("" if gap is None else str(gap))
    rows.append([CALLED[name], *cells, str(len(results.seeds(name)))])
  return table(["arm", *heads, *ahead, "seeds"], rows)


def _asked(results: Results) -> str:
  """How many questions of each set the arms were asked, and which were asked of others."""
  counted, others = [], []
  for tested in results.sets:
    asked = results.asked(tested)
    counts, differing = [], {}
    for code in sorted({code for found in asked.values() for code in found}):
      ids = {arm: found.get(code, frozenset()) for arm, found in asked.items()}
      fewest, most = (choose(len(one) for one in ids.values()) for choose in (min, max))
      counts.append(f"{code} {most}" if fewest == most else f"{code} {fewest} to {most}")
      if len(set(ids.values())) > 1:
        differing.setdefault(_by_questions(ids), []).append(code)
    if counts:
      counted.append(f"{tested}: {', '.join(counts)}")
    others += [f"{tested}, {', '.join(codes)}: {told}" for told, codes in differing.items()]
  told = f"Questions a language: {'; '.join(counted)}.\n" if counted else ""
  if others:
    told += (
      f"\nAsked of other questions: {'. '.join(others)}. Accuracies are of what each arm was asked,"
      " differences of what both were.\n"
    )
  return told


def _by_questions(ids: Mapping[tuple[str, int], frozenset[str]]) -> str:
  """How many questions were asked of which arms, and how many of all."""
  by_ids: dict[frozenset[str], list[tuple[str, int]]] = {}
  for arm, found in ids.items():
    by_ids.setdefault(found, []).append(arm)
  told = []
  for found, arms in by_ids.items():
    names = []
    for name in dict.fromkeys(name for name, _ in arms):
      seeds = [seed for other, seed in arms if other == name]
      every = len(seeds) == sum(other == name for other, _ in ids)
      names.append(CALLED[name] + ("" if every else f" (seed {', '.join(map(str, seeds))})"))
    told.append(f"{len(found)} for {' and '.join(names)}")
  return f"{'; '.join(told)}; the same for all {len(frozenset.intersection(*by_ids))}"


def _differences(rows: Mapping[str, Gap]) -> str:
  """The numbers of a question's chart."""
  heads = ["", "of", "to", f"{POINTS}, 95 % interval", "questions", "that differ", ""]
  cells = []
  for label, gap in rows.items():
    shares = [f"{100 * share:.1f}" for share in (gap.first, gap.second)]
    cells.append([label, *shares, str(gap), str(gap.questions), str(gap.differing), verdict(gap)])
  return table(heads, cells)


def _responses(results: Results) -> str:
  """What the greedy answers to the first set's target-language questions are like."""
  shares = {
    "well_formed_rate": "well-formed",
    "truncated/target": "cut short",
    "rule/none": "no answer",
    "language/translation/target": "translation in the pivot",
    "number_recall/target": "numbers kept",
  }
  asked_of_all = ("truncated/target", "rule/none", "tokens/target")
  rows = []
  for name in results.arms:
    scales = dict.fromkeys(shares, 100.0) | {"chrf/target": 1.0, "tokens/target": 1.0}
    cells = [
      percent(results.mean(name, results.sets[0], "greedy", measure), scale)
      if name != "base" or measure in asked_of_all
      else ""
      for measure, scale in scales.items()
    ]
    rows.append([CALLED[name], *cells])
  if not rows:
    return "No arm is finished."
  return (
    f"{results.sets[0]}, greedy, target languages, in %; no answer also over the pivot's questions."
    " The base model was not asked for a translation. Numbers of the question are counted where"
    " there is a translation, chrF++ (0 to 100) with a missing one as empty.\n\n"
    + table(["arm", *shares.values(), "chrF++", "tokens"], rows)
  )


def _signals(rows: Sequence[Mapping[str, Any]]) -> str:
  if not rows:
    return "No arm of self-feedback is finished."
  heads = [key.replace("_", " ") for key in SIGNALS]
  lines = []
  for row in rows:
    cells = ["" if row[key] is None else f"{100 * row[key]:.1f}" for key in SIGNALS]
    lines.append([CALLED[row["arm"]], str(row["steps"]), *cells])
  return (
    "Means over the training steps, in %. Where all responses to a question are rewarded alike"
    " (zero variance) nothing is learned from it.\n\n" + table(["arm", "steps", *heads], lines)
  )


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
  if not rows:
    return "No arm that trains is finished."
  columns = [
    ("time/step", "s a step"),
    ("time/rollout", "rollout, s"),
    ("time/pivot", "pivot, s"),
    ("time/score", "score, s"),
    ("time/update", "update, s"),
    ("throughput/rollout_tokens_per_second", "sampled tokens/s"),
    ("throughput/update_tokens_per_second", "learned tokens/s"),
    ("roofline/sampled", "sampled, share of the roofline"),
    ("roofline/learned", "learned, share of the roofline"),
    ("memory/peak_bytes", "peak device GB"),
  ]
  known = [(key, head) for key, head in columns if any(key in row for row in rows)]
  lines = []
  for row in rows:
    scaled = {
      key: row[key] * (1e-9 if key == "memory/peak_bytes" else 1) for key, _ in known if key in row
    }
    cells = [f"{scaled[key]:.4g}" if key in scaled else "" for key, _ in known]
    lines.append([CALLED[row["arm"]], str(row["steps"]), *cells])
  return table(["arm", "steps", *(head for _, head in known)], lines)


def _searched(search: Mapping[str, Any] | None, study: Study) -> str:
  if search is None:
    return (
      "No search was run in this folder: the settings are the configuration's own. Started with"
      " `--search`, the study tries its grid on the development questions first."
    )
  rows = []
  for stage, found in search["stages"].items():
    for one in found["tried"]:
      settings = ", ".join(f"{key} = {value}" for key, value in one["settings"].items())
      mark = "chosen" if one["settings"] == found["chosen"] else ""
      rows.append([stage, settings, f"{100 * one['accuracy']:.1f}", mark])
  return (
    f"By {search['metric']} at a stage's last step, {search['questions_a_language']} questions a"
    f" language; stage 2 with pivot feedback, and all arms take what was found{_but(search, study)}"
    ".\n\n" + table(["stage", "settings", "development accuracy, %", ""], rows)
  )


def _but(search: Mapping[str, Any], study: Study) -> str:
  """What the arms have otherwise than the search found."""
  chosen = {key: value for one in search["stages"].values() for key, value in one["chosen"].items()}
  flat = flatten(study.configuration())
  told = [f"--set has {key} = {flat[key]}" for key, value in chosen.items() if flat[key] != value]
  if "pam.steps" in chosen:
    told.append("continued PAM has steps of its own")
  return f", but {' and '.join(told)}" if told else ""


def _saturation(results: Results) -> str:
  points = results.saturation()
  if not points:
    return "PAM is not finished."
  told = ", ".join(f"{100 * value:.1f} at step {step}" for step, value in points)
  return (
    f"PAM's greedy accuracy on the development questions, target languages, in %: {told}. What more"
    " of it is worth stands in the rows of continued PAM."
  )


def _time(results: Results) -> str:
  rows = []
  for name, arms in results.arms.items():
    for arm in arms:
      legs = sum(len(program.legs()) for program in arm.programs)
      taken = [f"{seconds / 60:.1f}" for seconds in (arm.seconds(), arm.cpu_seconds())]
      rows.append([CALLED[name], str(arm.seed), *taken, str(legs)])
  everything = [arm for arms in results.arms.values() for arm in arms]
  if everything:
    wall = sum(arm.seconds() for arm in everything) / 60
    cpu = sum(arm.cpu_seconds() for arm in everything) / 60
    rows.append(["all", "", f"{wall:.1f}", f"{cpu:.1f}", ""])
  return table(["arm", "seed", "minutes", "CPU-minutes", "starts"], rows)


def _missing(results: Results, names: Sequence[str], seeds: int) -> str:
  """What was asked for and is not there, and what is there and does not belong to the rest."""
  missing = [
    f"{CALLED[name]} (seed {seed})"
    for name in names
    for seed in range(seeds)
    if seed not in results.seeds(name) and (name, seed) not in results.refused
  ]
  told = f"Not finished, and not in the table: {', '.join(missing)}.\n\n" if missing else ""
  for (name, seed), reason in results.refused.items():
    told += f"Not in the table: {CALLED[name]} (seed {seed}): {reason}.\n\n"
  return told


def write(
  study: Study,
  results: Results,
  leakage: Leakage,
  search: Mapping[str, Any] | None,
  *,
  names: Sequence[str],
  seeds: int,
  command: str,
) -> pathlib.Path:
  """Writes study.md, study.json and the charts; returns the first's path."""
  workdir = study.workdir
  found = answers(results)
  speed = throughput(results, study.configuration())
  learned_from, weights, asked = signals(results), _weights(study), _asked(results)
  for one in found:
    if one.chart:
      (workdir / "charts").mkdir(exist_ok=True)
      (workdir / "charts" / f"{one.anchor}.svg").write_text(one.chart, "utf-8")
  sections = [
    "# The effect on a real model\n",
    f"`{command}`, accuracy in %, mean ± standard error over seeds. Groups of languages: "
    + "; ".join(f"{name}: {', '.join(codes)}" for name, codes in results.groups.items())
    + f". Differences are in {POINTS} with 95 % intervals over questions, paired by question and"
    f" seed, greedy, on {results.sets[0]} unless they say otherwise. One is called shown if its"
    f" interval leaves out 0 and at least {MIN_DIFFERING} questions differ, each counted once in"
    " all its languages: fewer may all differ to one side by chance. Each measures these runs: with"
    " few seeds it does not say what other seeds would give.\n",
    _missing(results, names, seeds) + main_table(results) + "\n" + f"\n{asked}" * bool(asked),
  ]
  for one in found:
    sections.append(f"## {one.question}\n\n{one.sentence}\n")
    if one.rows:
      sections.append(_differences(one.rows) + "\n")
    if one.chart:
      sections.append(f"![{one.question}](charts/{one.anchor}.svg)\n")
  sections += [
    f"## What are the responses like?\n\n{_responses(results)}\n",
    f"## What was there to learn from?\n\n{_signals(learned_from)}\n",
    f"## Are test questions in training?\n\n{leakage.told()}\n",
    f"## How the settings were chosen\n\n{_searched(search, study)}\n",
    f"## Is PAM saturated?\n\n{_saturation(results)}\n",
    "## Speed\n\nMedians over steps; response tokens only. Rooflines are those of"
    f" benchmarks/effects/roofline.py, for the devices that it knows.\n\n{_speed(speed)}\n",
    f"## Time\n\n{_time(results)}\n",
    "## Machine\n\n" + ("\n".join(f"- {one}" for one in machines(results)) or "None yet.") + "\n",
    "## Settings\n\n`" + study.config + "` with " + _settings(study) + "\n",
    f"Weights: {weights}\n",
  ]
  path = workdir / "study.md"
  path.write_text("\n".join(sections), "utf-8")
  measured = {"signals": learned_from, "throughput": speed, "weights": weights}
  _write_json(workdir / "study.json", study, results, found, leakage, search, measured, command)
  return path


def _settings(study: Study) -> str:
  places = ("data.root", "model.pretrained")
  own = {key: value for key, value in study.settings.items() if key not in places}
  return ", ".join(f"`{key}={value}`" for key, value in own.items()) or "nothing changed."


def _weights(study: Study) -> str:
  """What the runs begin with, by name; a file also by its content."""
  config = study.configuration()
  path = pathlib.Path(config.model.pretrained)
  if not config.model.pretrained:
    return "random" if not study.scale.few_shot else "not known: no run here says them"
  if not path.is_file():
    return base_model(config)
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return f"{path.name}, {path.stat().st_size:,} bytes, SHA-256 {digest}"


def _write_json(
  path: pathlib.Path,
  study: Study,
  results: Results,
  found: Sequence[Answer],
  leakage: Leakage,
  search: Mapping[str, Any] | None,
  measured: Mapping[str, Any],
  command: str,
) -> None:
  values = {
    "command": command,
    "config": study.config,
    "machines": machines(results),
    "configuration": json.loads(study.configuration().to_json_best_effort()),
    "groups": results.groups,
    "arms": {
      name: {
        "seeds": [arm.seed for arm in arms],
        "seconds": [arm.seconds() for arm in arms],
        "cpu_seconds": [arm.cpu_seconds() for arm in arms],
        "starts": [sum(len(program.legs()) for program in arm.programs) for arm in arms],
        "measures": {
          tested: {decoding: results.measures(name, tested, decoding) for decoding in DECODINGS}
          for tested in results.sets
        },
      }
      for name, arms in results.arms.items()
    },
    "answers": [
      {
        "question": one.question,
        "sentence": one.sentence,
        "differences": {label: dataclasses.asdict(gap) for label, gap in one.rows.items()},
      }
      for one in found
    ],
    "leakage": dataclasses.asdict(leakage),
    "search": search,
    "saturation": results.saturation(),
    **measured,
  }
  path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
