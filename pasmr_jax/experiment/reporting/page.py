"""Lays a report out as one self-contained HTML page.

`page` narrates it: test accuracy (charts and table), curves stage by stage, numbers of the end of
training, sampled answers. Charts and tables are HTML, so that they need no script. The sampled
answers are model text and therefore hostile: they travel as JSON in a data block (`json_block`) and
report.js puts them on the page as text nodes. The page's own policy forbids everything else: no
network, no script or style but the two whose hashes it names, no HTML made from strings.
"""

import base64
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from pasmr_jax.experiment.reporting.accuracy import accuracy
from pasmr_jax.experiment.reporting.elements import escape, json_block, language_name, nothing
from pasmr_jax.experiment.reporting.reading import FAILURES, TERMS, Run
from pasmr_jax.experiment.reporting.training import curves, numbers

# The sampled answers of a page, as JSON: beyond it every n-th question is shown.
MAX_ROLLOUT_CHARACTERS = 6_000_000


def page(runs: Sequence[Run]) -> str:
  """The whole page."""
  style, script = asset("report.css"), asset("report.js")
  readable: list[dict[str, Any]] = []  # what the script needs of each line chart, in order
  sections = [
    ("accuracy", "Test accuracy", accuracy(runs)),
    ("training", "Training", curves(runs, readable)),
    ("numbers", "End of training", numbers(runs)),
    ("answers", "Sampled answers", _answers(runs)),
  ]
  names = ", ".join(run.name for run in runs)
  policy = (
    f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}';"
    " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
  )
  links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in sections)
  body = "".join(
    f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
    f'<h2 id="{anchor}-title">{title}</h2>{content}</section>'
    for anchor, title, content in sections
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="referrer" content="no-referrer">\n'
    f"<title>{escape(names)} - PASMR report</title>\n<style>{style}</style></head>\n"
    '<body><a class="skip" href="#content">Skip to the content</a>'
    f"<header><h1>PASMR report: {escape(names)}</h1>"
    f'{_told(runs)}{_notices(runs)}</header><nav aria-label="Sections"><ul>{links}</ul></nav>\n'
    f'<main id="content">{body}</main>\n'
    f"{json_block('chart-data', readable)}\n{json_block('answer-data', _answer_data(runs))}\n"
    f"<script>{script}</script></body></html>\n"
  )


def asset(name: str) -> str:
  """The text of a file that stands beside this one."""
  return pathlib.Path(__file__).with_name(name).read_text("utf-8")


def _hash(text: str) -> str:
  return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _told(runs: Sequence[Run]) -> str:
  """What each run consists of, in a line."""
  lines = []
  for run in runs:
    steps = [
      f"{stage} {max(points[-1][0] for points in metrics.values())} steps"
      for stage, metrics in run.curves.items()
    ]
    told = [*steps, f"{len(run.results)} test results", f"{len(run.rollouts)} sampled questions"]
    name = f"{run.name}: " if len(runs) > 1 else ""
    lines.append(f'<p class="subtitle">{escape(name + ", ".join(told))}</p>')
  return "".join(lines)


def _notices(runs: Sequence[Run]) -> str:
  notices = [f"{run.name}: {notice}" for run in runs for notice in run.notices]
  items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
  return f'<ul class="notices" aria-label="Notices">{items}</ul>' if notices else ""


# Sampled answers.


def _answers(runs: Sequence[Run]) -> str:
  if not any(run.rollouts for run in runs):
    return nothing(
      "No answers have been sampled yet: rollouts.jsonl is written by the stage srl, every"
      " log.rollouts_every steps."
    )
  return (
    '<noscript><p class="nothing">This browser needs scripts turned on to show them.</p></noscript>'
    '<div id="answer-browser"></div>'
  )


def _answer_data(runs: Sequence[Run]) -> dict[str, Any]:
  questions = [{"run": place, **one} for place, run in enumerate(runs) for one in run.rollouts]
  size = sum(len(json.dumps(question, ensure_ascii=False)) for question in questions)
  every = max(1, math.ceil(size / MAX_ROLLOUT_CHARACTERS))
  shown = questions[::every]
  codes = {code for question in shown for code in (question["language"], question["pivot"])}
  return {
    "runs": [run.name for run in runs],
    "terms": [term.replace("_", " ") for term in TERMS],
    "failures": FAILURES,
    "languages": {code: language_name(code) for code in sorted(codes)},
    "left_out": len(questions) - len(shown),
    "questions": shown,
  }
