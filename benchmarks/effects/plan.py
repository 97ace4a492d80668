"""What the study of a real model runs: its scales, and the programs of each arm.

    WORKDIR/seed0/base     the model before anything: worked examples in the prompt (eval.py)
    WORKDIR/seed0/pam      stage 1; every arm below starts from its last parameters
    WORKDIR/seed0/pivot    stage 2, and one folder for each other arm of arms.ARMS

A folder is tested on every set of its scale: on the first by train.py itself when its last stage
ends, on the others by eval.py. `Study.arm` gives an arm's programs in order and where it leaves
its answers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.effects.arms import ARMS, CONTINUED, Program, after_pam, configuration
from pasmr_jax import Config

BEFORE = ("base", "pam")  # what every seed has besides its arms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
  """How large a study is; its numbers of steps and questions are in the configuration."""

  arms: tuple[str, ...]
  seeds: int
  sets: Mapping[str, str]  # name -> data.test; the first is the configuration's own
  platforms: str  # JAX_PLATFORMS, so that a missing accelerator is an error
  few_shot: Mapping[str, Any]  # how the base model is asked; {}: as its stage `base` was trained
  arm_settings: Mapping[str, Any]  # of all arms after PAM; --set goes before it
  # Stage -> key -> values, tried on the development questions by --search.
  grid: Mapping[str, Mapping[str, Sequence[Any]]]


_SETS = {"mgsm": "", "msvamp": "('msvamp[:250]',)"}
_EIGHT_SHOT = {  # answers may be as long as those of the arms
  "evaluation.ask": "native_cot",
  "evaluation.exemplars": 8,
  "evaluation.max_prompt_length": 4096,
  "evaluation.batch_size": 64,
}
_GRID = {
  "pam": {
    "pam.optimizer.learning_rate": (1e-5, 3e-5, 1e-4),
    "pam.steps": (750, 1500),
  },
  "srl": {"srl.optimizer.learning_rate": (1e-6, 3e-6, 1e-5)},
}

_WHOLE: Mapping[str, Any] = {
  "arms": ARMS,
  "seeds": 3,
  "sets": _SETS,
  "few_shot": _EIGHT_SHOT,
  "arm_settings": {"evaluation.every": 50},
  "grid": _GRID,
}

SCALES: Mapping[str, Scale] = {
  "smoke": Scale(
    arms=ARMS,
    seeds=2,
    sets={"held_out": "", "second": "('synthetic:6',)"},
    platforms="cpu",
    few_shot={},
    arm_settings={"evaluation.every": 4},
    grid={
      "pam": {"pam.optimizer.learning_rate": (1e-2, 3e-2)},
      "srl": {"srl.optimizer.learning_rate": (1e-4, 5e-4)},
    },
  ),
  "cpu": Scale(
    arms=("pivot", "gold", "target_majority", "continued_pam"),
    seeds=1,
    sets={"msvamp": "", "mgsm": "('mgsm[:24]',)"},
    platforms="cpu",
    few_shot=_EIGHT_SHOT
    | {
      "evaluation.exemplars": 2,
      "evaluation.sampled": False,
      "evaluation.max_prompt_length": 1536,
      "evaluation.batch_size": 32,
      "rollout.prompt_bucket": 128,
    },
    arm_settings={"evaluation.every": 4},
    grid={
      "pam": {"pam.optimizer.learning_rate": (1e-3, 3e-4)},
      "srl": {"srl.optimizer.learning_rate": (3e-4, 1e-4)},
    },
  ),
  "gpu": Scale(platforms="cuda,cpu", **_WHOLE),
  "tpu": Scale(platforms="tpu,cpu", **_WHOLE),
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """An arm of one seed."""

  name: str
  seed: int
  programs: tuple[Program, ...]  # in this order
  answers: Mapping[str, pathlib.Path]  # set -> its results, without '.json' and '_greedy.jsonl'

  @property
  def folder(self) -> pathlib.Path:
    return self.programs[-1].folder

  def finished(self) -> bool:
    return all(program.finished() for program in self.programs)

  def seconds(self) -> float:
    return sum(program.seconds() for program in self.programs)

  def cpu_seconds(self) -> float:
    return sum(program.cpu_seconds() for program in self.programs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """One study: a configuration at a scale, in a folder."""

  workdir: pathlib.Path  # absolute
  config: str  # configs/FILE.py:SCALE
  scale: Scale
  settings: Mapping[str, Any]  # keys set for all its runs: places, --set, what the search chose
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key -> file that says it

  def configuration(self) -> Config:
    """The configuration with the settings of all runs."""
    return configuration(self.config, self.settings)

  def whole(self) -> "Study":
    """The same with every set of its scale."""
    return dataclasses.replace(self, scale=SCALES[self.config.partition(":")[2]])

  def seeds(self) -> list[int]:
    """Those that have a folder."""
    names = (folder.name.removeprefix("seed") for folder in self.workdir.glob("seed*"))
    return sorted(int(name) for name in names if name.isdecimal())

  def arm(self, name: str, seed: int, *, steps: int | None = None) -> Arm:
    """The programs of `base`, `pam` or one of `ARMS`.

    Args:
      name: of the arm.
      seed: of its runs.
      steps: of one of `ARMS`; None is as many as it has to have.

    Raises:
      ValueError: how long the arm is depends on a run that is not there yet, or no such arm.
    """
    folder = self.workdir / f"seed{seed}"
    settings = {**self.settings, "seed": seed, "data.seed": seed}
    if name == "base":
      return self._base(folder, seed, settings)
    config = self.configuration()
    if name != "pam":
      if steps is None and name == "continued_pam_tokens":
        if not self.arm("pivot", seed).programs[0].finished():
          raise ValueError(f"{folder / 'pivot'} is not finished; {name} has as many tokens as it")
        steps = equal_token_steps(folder / "pam", folder / "pivot")
      settings = {
        **self.scale.arm_settings,
        **settings,
        **after_pam(name, folder / "pam", config.srl.steps if steps is None else steps, config),
      }
    stage = "pam" if name == "pam" or name in CONTINUED else "srl"
    first, *others = self.scale.sets
    programs = [
      Program(folder=folder / name, config=self.config, settings=settings, sources=self.sources)
    ]
    programs += [self._test(folder / name, settings, one, stage, one) for one in others]
    answers = {one: folder / name / "results" / one for one in others}
    answers[first] = folder / name / "results" / stage
    return Arm(name, seed, tuple(programs), {one: answers[one] for one in self.scale.sets})

  def _base(self, folder: pathlib.Path, seed: int, settings: Mapping[str, Any]) -> Arm:
    """The model before PAM: as downloaded, or the stage `base` of the built-in corpus."""
    stage = "pretrained" if self.scale.few_shot else "base"
    folder = folder / ("base" if self.scale.few_shot else "pam")
    asked = {**settings, **self.scale.few_shot}
    if "evaluation.exemplars" in asked:
      asked["evaluation.exemplar_file"] = f"{settings['data.root']}/mgsm/exemplars.json"
    names = {one: f"base_{one}" for one in self.scale.sets}
    programs = [self._test(folder, asked, one, stage, name) for one, name in names.items()]
    answers = {one: folder / "results" / name for one, name in names.items()}
    return Arm("base", seed, tuple(programs), answers)

  def _test(
    self, folder: pathlib.Path, settings: Mapping[str, Any], tested: str, stage: str, name: str
  ) -> Program:
    """Answers a set's questions by the last checkpoint of a stage."""
    sources = self.scale.sets[tested]
    return Program(
      folder=folder,
      config=self.config,
      settings={**settings, **({"data.test": sources} if sources else {})},
      name=name,
      script="eval.py",
      flags=(f"--stage={stage}", f"--name={name}"),
      sources=self.sources,
    )


def metric_lines(folder: pathlib.Path, stage: str) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl of one stage, in order; none if there is no such file."""
  path = folder / "metrics.jsonl"
  lines = path.read_text("utf-8").splitlines() if path.exists() else []
  return [line for line in map(json.loads, lines) if line["stage"] == stage]


def srl_tokens(folder: pathlib.Path) -> int:
  """Tokens that a run of SRL sampled (responses and pivot solutions) and learned from, rehearsed
  ones included, in all steps that it made.

  Where not every step was written down (log.every), those that were stand for the others.

  Raises:
    ValueError: the run has no such step, or was made by code that did not count them.
  """
  lines = metric_lines(folder, "srl")
  steps = [line for line in lines if "trained_tokens" in line]
  if not steps:
    raise ValueError(f"{folder} has no step of srl; the arm continued_pam_tokens follows the pivot")
  if any("learned_tokens" not in line for line in steps):
    raise ValueError(
      f"{folder} has steps of srl without learned_tokens, which older code did not count; the arm"
      " continued_pam_tokens follows the pivot: run it again in another --workdir"
    )
  sampled = [
    round(
      line["throughput/rollout_tokens_per_second"] * (line["time/rollout"] + line["time/pivot"])
    )
    for line in steps
  ]
  counted = sum(sampled) + sum(line["learned_tokens"] for line in steps)
  made = max(line["step"] for line in lines)
  return counted if made == len(steps) else round(counted * made / len(steps))


def equal_token_steps(pam: pathlib.Path, pivot: pathlib.Path) -> int:
  """PAM steps that learn from as many response tokens as the arm `pivot` sampled and learned from.

  That is more than SRL's optimizer sees, and so the harder control. Prompts count on neither side.

  Args:
    pam: folder of the PAM run, whose steps say how many tokens one has.
    pivot: folder of the arm.
  """
  learned = [
    line["trained_tokens"] for line in metric_lines(pam, "pam") if "trained_tokens" in line
  ]
  if not learned:
    raise ValueError(f"{pam} has no step of pam")
  return -(-srl_tokens(pivot) * len(learned) // sum(learned))  # rounded up
