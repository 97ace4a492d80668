"""A small work directory written by hand, with model text that tries to break out of the page."""

import json
import pathlib
from typing import Any

HOSTILE = (
  "</script><script>window.attacked = 1; document.title = 'attacked'</script>"
  '<img src="http://attacker.invalid/a.png" onerror="window.attacked = 2">'
  '<svg onload="window.attacked = 3"></svg>{{7*7}}<!-- <b> &lt;i&gt; &#x3c; ]]> \'" \\'
  "\u2028window.attacked = 4\u2029\x00\x07\x1b[31m\x7f\x85\ufeff\ud800 \udfff\u202etxt.exe"
)
ARABIC = "لدى سارة ١٢ تفاحة. كم تفاحة لديها الآن؟"


def response(answer: str | None, reward: float, **changes: Any) -> dict[str, Any]:
  """One response as stages/self_feedback.py records it; the label is 15."""
  return {
    "translation": "Sara has 12 apples. How many now?",
    "reasoning": f"Lösung: 12 und 3 ergibt {answer}.\n#### {answer}",
    "answer": answer,
    "well_formed": True,
    "truncated": False,
    "reasoning_consistent": True,
    "translation_consistent": True,
    "tokens": 20,
    "pivot_solutions": ["12 plus 3 is 15.", "12 plus 3 is 15.", "12 and 4 is 16."],
    "pivot_answers": ["15", "15", "16"],
    "label": "15",
    "confidence": 2 / 3,
    "labelled": True,
    "reward": reward,
    "agreement": float(answer == "15"),
    "understanding": 2 / 3,
    "format": 1.0,
    "language": 1.0,
    "length": -0.3125,
    "advantage": reward - 0.5,
    "understanding_advantage": 0.125,
  } | changes


UNFORMED = {"translation": None, "well_formed": False, "pivot_solutions": [], "pivot_answers": []}


def question(step: int, language: str, text: str, responses: list[dict]) -> dict[str, Any]:
  return {
    "stage": "srl",
    "step": step,
    "id": f"{language}-{step}",
    "language": language,
    "pivot": "en",
    "question": text,
    "pooled_label": "15",
    "pooled_confidence": 2 / 3,
    "responses": responses,
  }


ROLLOUTS = [
  question(1, "de", "Sara hat 12 Äpfel. Wie viele?", [response("15", 1.0), response("16", 0.0)]),
  question(
    1,
    "ar",
    ARABIC,
    [
      response("15", 1.0, reasoning="الحل: ١٢ زائد ٣ يساوي ١٥.\n#### ١٥"),
      response("15", 0.0, reasoning="Solution: 15", language=0.5, reasoning_consistent=False),
    ],
  ),
  question(
    21,
    "de",
    HOSTILE,
    [
      response(HOSTILE, 0.0, reasoning=HOSTILE, translation=HOSTILE, pivot_solutions=[HOSTILE] * 3),
      response(None, -0.25, reasoning="und so weiter", truncated=True, labelled=False, **UNFORMED),
    ],
  ),
]


def metrics() -> list[dict[str, Any]]:
  lines: list[dict[str, Any]] = [
    {"stage": "pam", "step": step, "loss": 8.0 / step, "gradient_norm": 1.0}
    for step in range(1, 11)
  ]
  for step in range(1, 201):
    lines.append(
      {
        "stage": "srl",
        "step": step,
        "reward": step / 200,
        "reward/agreement": step / 200,
        "kl": 0.01,
        "response_length": 40 + step % 3,
        "language/reasoning": 0.99,
        "throughput/rollout_tokens_per_second": 17744.4,
      }
    )
    if step % 100 == 0:
      found = {"development/target_accuracy": step / 400, "development/accuracy/de": 0.5}
      lines.append({"stage": "srl", "step": step, **found})
  return lines


RESULTS = {
  "pam": {"greedy": {"accuracy/de": 0.25, "target_accuracy": 0.25, "pivot_accuracy": 0.975}},
  "srl": {
    "greedy": {
      "accuracy/de": 0.625,
      "target_accuracy": 0.625,
      "pivot_accuracy": 0.985,
      "tokens": 41.5,
    },
    "sampled": {"accuracy/de": 0.5, "target_accuracy": 0.5},
  },
}


def write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of a finished run; returns its folder."""
  (folder / "results").mkdir(parents=True)
  write_lines(folder / "metrics.jsonl", metrics())
  write_lines(folder / "rollouts.jsonl", ROLLOUTS)
  for name, ways in RESULTS.items():
    (folder / "results" / f"{name}.json").write_text(json.dumps(ways))
  return folder
