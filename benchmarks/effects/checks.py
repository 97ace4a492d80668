"""What the programs of a study would refuse when they start, refused before the first of them.

`check` builds the configuration of every program that is not finished and asks what train.py and
eval.py ask of it; then it reads what one arm alone reads. Weights and tokenizers are not read: the
first program does that at once.
"""

from collections.abc import Iterator, Sequence

from benchmarks.effects.arms import configuration
from benchmarks.effects.plan import Study
from pasmr_jax import Config
from pasmr_jax.data.pools import read_pool
from pasmr_jax.experiment.questions import read_pools
from pasmr_jax.text.exemplars import read_exemplars


def check(study: Study, names: Sequence[str], seeds: int, devices: int) -> None:
  """Checks the arms `names` of so many seeds.

  Args:
    study: which study.
    names: of the arms.
    seeds: how many.
    devices: that its programs will see.

  Raises:
    ValueError: arms that cannot be run, naming them with the keys of their configuration.
    OSError: a file of questions or worked examples cannot be read.
  """
  config = study.configuration()
  problems: dict[str, list[str]] = {}
  if "continued_pam" in names:
    problems = {problem: ["continued_pam"] for problem in _ending_early(config)}
  for name in names:
    for seed in range(seeds):
      # How many tokens there will be to match is not known yet, and changes nothing else.
      for program in study.arm(name, seed, steps=config.srl.steps).programs:
        try:
          if not program.ended_well():
            program.check(devices)
        except ValueError as error:
          problems.setdefault(str(error), []).append(name)
  if not problems:
    problems = dict(_unread(study, names))
  if problems:
    told = (f"{', '.join(dict.fromkeys(of))}: {problem}" for problem, of in problems.items())
    raise ValueError("\n".join(f"--arms: {one}" for one in told))


def _ending_early(config: Config) -> Iterator[str]:
  """What may end the pivot's arm before it has the steps that continued PAM has too."""
  expected = "as many steps as the pivot's arm are those of the configuration, if none is left out"
  if config.srl.patience > 0:
    yield f"srl.patience is {config.srl.patience}; expected 0: {expected}"
  if config.guard.collapse_action != "continue":
    found = config.guard.collapse_action
    yield f"guard.collapse_action is {found!r}; expected 'continue': {expected}"


def _unread(study: Study, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
  """Problems of what only gold's arm reads, its answers, and only base: examples in a language."""
  for name in ("base", "gold"):
    for program in study.arm(name, 0).programs if name in names else ():
      if program.ended_well():
        continue
      config = configuration(program.config, program.settings)
      try:
        if name == "gold" and program.script == "train.py":
          read_pools(config, ("srl",))
        elif name == "base" and config.evaluation.exemplars:
          asked = sorted({question.language for question in read_pool("test", config)})
          count = config.evaluation.exemplars
          read_exemplars(config.evaluation.exemplar_file, count, asked)
      except ValueError as error:
        yield str(error), [name]
