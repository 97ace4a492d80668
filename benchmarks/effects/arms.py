"""Arms of an experiment: ordinary runs of train.py and eval.py, each in a folder of its own.

`after_pam` says what an arm changes: it goes on from the last parameters of a PAM run. `run` starts
a program as a process and waits for it. What it prints goes to `FOLDER/NAME.log`; for each start a
line of `FOLDER/NAME.legs.jsonl` says how it ended: its configuration, seconds and exit code. A
program that has ended well is not run again, and one that has not goes on where it stopped, because
train.py and eval.py do. A `Leg` ends all that by asking the running program to stop (SIGTERM), as a
terminal's Ctrl-C does: train.py then saves a checkpoint and leaves.
"""

import ast
import contextlib
import dataclasses
import importlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from ml_collections import ConfigDict

from pasmr_jax import Config
from pasmr_jax.experiment import validation
from pasmr_jax.experiment.questions import expect_told_apart
from pasmr_jax.experiment.reliability import identity
from pasmr_jax.experiment.reliability.storage import write_whole
from pasmr_jax.stages import STAGES

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ("pivot", "gold", "target_majority", "random", "shuffled")  # of self-feedback
_WITHOUT_PIVOT = ("gold", "target_majority", "random")
# More PAM instead: as many steps as SRL has, or as many tokens as it samples and learns from.
# Patience leaves out none of them.
CONTINUED = ("continued_pam", "continued_pam_tokens")
ARMS = (*SOURCES, *CONTINUED)

EXIT_STOPPED = 75  # of train.py, when it was asked to stop; the same command goes on
# Where things lie; a finished program stays finished when they move.
_PLACES = ("init_from", "data.root", "evaluation.exemplar_file")
# How a run is laid out, watched and kept: its tests do not depend on it, or in the last bits alone,
_FREE = (
  *(key for key in identity.FREE if key not in ("evaluation.", "tokenizer.path")),
  *("checkpoint.", "evaluation.development_", "evaluation.label_", "evaluation.batch_size"),
)
# but on what ends a stage at its best checkpoint, and on which one is the best.
_ENDING = ("guard.collapse_", "checkpoint.metric")
# Where a stage may end early, also on what the metric is of.
_MEASURED = "evaluation.development_questions"
_FREE_OF_A_STAGE = tuple(f".{key}" for key in identity.FREE_OF_A_STAGE if key != "patience")
_LOOK = 0.2  # seconds between looks at a running program


class Stopped(Exception):
  """The leg ended before everything was done."""


class Leg:
  """How long this leg may take; as a context manager it also takes SIGTERM and SIGINT for its end.

  Only the main thread can enter it; any thread may ask whether it is over.
  """

  def __init__(self, minutes: float = 0.0):
    """`minutes` from now on; 0 is without end."""
    self._end = time.monotonic() + 60 * minutes if minutes else math.inf
    self._asked = threading.Event()

  @property
  def over(self) -> bool:
    return self._asked.is_set() or time.monotonic() >= self._end

  def end(self) -> None:
    self._asked.set()

  def __enter__(self) -> "Leg":
    self._old = {one: signal.signal(one, self._ask) for one in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.end()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One run of train.py or eval.py."""

  folder: pathlib.Path  # its --workdir
  config: str  # configs/FILE.py[:ARGUMENT], from the checkout's root
  settings: Mapping[str, Any]  # keys of the configuration that it sets; see `configuration`
  name: str = "train"  # of its log and its legs
  script: str = "train.py"
  flags: tuple[str, ...] = ()
  also: tuple[str, ...] = ()  # keys that it is known by besides those that its tests depend on
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key -> file that says it

  def command(self) -> list[str]:
    return [
      sys.executable,
      str(ROOT / self.script),
      f"--config={ROOT / self.config}",
      f"--workdir={self.folder}",
      *self.flags,
      *(f"--config.{key}={value}" for key, value in self.settings.items()),
    ]

  def check(self, devices: int) -> None:
    """Raises ValueError where its script would, before it reads or computes anything.

    Args:
      devices: that it will see.
    """
    config = configuration(self.config, self.settings)
    if self.script == "eval.py":
      validation.check(config, pools=("test",))
      return
    validation.check(config, validation.row_devices(config, devices), workdir=self.folder)
    if "srl" in config.stages:
      expect_told_apart(config)

  @property
  def log(self) -> pathlib.Path:
    return self.folder / f"{self.name}.log"

  @property
  def _legs(self) -> pathlib.Path:
    return self.folder / f"{self.name}.legs.jsonl"

  def legs(self) -> list[dict[str, Any]]:
    """How it has ended so far, each time: with code None if nobody was there to see."""
    return read_legs(self._legs)

  def ended_well(self) -> bool:
    """Whether it has ended well, with whatever settings."""
    return any(leg["code"] == 0 for leg in self.legs())

  def finished(self) -> bool:
    """Whether it has ended well.

    Raises:
      ValueError: it has, with other settings than these.
    """
    done = [leg for leg in self.legs() if leg["code"] == 0]
    if not done:
      return False
    before, now = done[-1]["settings"], self._kept()
    # A key that is not written down is newer than that leg's code, or had its default; of those
    # in `also` and of the model nothing is known where an old leg is silent.
    unset = dataclasses.replace(self, settings={})._flat()
    unknown = {key: now[key] for key in (*self.also, "model.pretrained")}
    before = unset | unknown | before
    for key in sorted(now):
      same = _same_model if key == "model.pretrained" else _alike
      if not same(before[key], now[key]):
        said = f", as {self.sources[key]} has it" if key in self.sources else ""
        raise ValueError(
          f"{self.folder} holds a finished {self.script} with {key} = {before[key]!r}, expected"
          f" {now[key]!r}{said}: name another --workdir, or move the folder away"
        )
    return True

  def seconds(self) -> float:
    """Of all its legs together."""
    return sum(leg["seconds"] for leg in self.legs())

  def cpu_seconds(self) -> float:
    """Of processor time of all its legs together, over all cores."""
    return sum(leg["cpu_seconds"] for leg in self.legs())

  def started(self) -> None:
    """Writes down a leg of which nothing else is known, should nobody see its end."""
    self._write_down([*self.legs(), self._leg(None, 0.0, 0.0)])

  def ended(self, code: int, seconds: float, cpu_seconds: float) -> None:
    """Writes down the end of the leg that started last."""
    legs = self.legs()
    if legs and legs[-1]["code"] is None:
      legs.pop()
    self._write_down([*legs, self._leg(code, seconds, cpu_seconds)])

  def _leg(self, code: int | None, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    measured = {"code": code, "seconds": seconds, "cpu_seconds": cpu_seconds}
    return {"script": self.script, "settings": self._kept(), **measured}

  def _write_down(self, legs: Sequence[Mapping[str, Any]]) -> None:
    write_whole(self._legs, "".join(json.dumps(leg) + "\n" for leg in legs))

  def _kept(self) -> dict[str, Any]:
    """What its results depend on: its whole configuration, however that was typed."""
    flat = self._flat()
    free = {key for key in flat if key.startswith(_FREE) or key.endswith(_FREE_OF_A_STAGE)}
    free = {key for key in free if not key.startswith(_ENDING)}
    if _may_end_early(flat):
      free.discard(_MEASURED)
    free = free.union(_PLACES).difference(self.also)
    return {key: value for key, value in flat.items() if key not in free}

  def _flat(self) -> dict[str, Any]:
    flat = identity.flatten(configuration(self.config, self.settings))
    flat["model.pretrained"] = identity.published(flat["model.pretrained"])
    return flat | {"config": self.config, "flags": " ".join(self.flags)}


def _may_end_early(flat: Mapping[str, Any]) -> bool:
  patient = any(flat[f"{stage}.patience"] > 0 for stage in STAGES)
  return patient or flat["guard.collapse_action"] == "return"


def read_legs(path: pathlib.Path) -> list[dict[str, Any]]:
  """The legs of a file; none if there is no such file.

  A line that a crash of older code cut off is left out.
  """
  found = []
  for line in path.read_text("utf-8").splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      found.append(json.loads(line))
  return found


def configuration(config: str, settings: Mapping[str, Any]) -> Config:
  """A configuration with settings, as train.py will see it.

  Args:
    config: configs/FILE.py[:ARGUMENT], from the checkout's root.
    settings: key -> value; what is given as text is read as on a command line.

  Raises:
    ValueError: a key that is none, or a value that it cannot have.
  """
  path, _, argument = config.partition(":")
  module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
  found: Config = module.get_config(argument) if argument else module.get_config()
  for key, value in settings.items():
    held: Any = found
    for part in key.split("."):
      held = held.get(part) if isinstance(held, ConfigDict) else None
    if held is None or isinstance(held, ConfigDict):
      raise ValueError(f"--set={key}: no such key; configs/base.py declares them all")
    try:
      found.update_from_flattened_dict({key: _value(held, value)})
    except (ValueError, SyntaxError, TypeError) as error:
      raise ValueError(f"--set={key}={value}: expected a value like {held!r}") from error
  return found


def _value(held: Any, value: Any) -> Any:
  if isinstance(held, str):
    return str(value)
  return ast.literal_eval(value) if isinstance(value, str) else value


def _alike(before: Any, now: Any) -> bool:
  """Whether a key has the value that it had; legs of older code hold what was typed."""
  if isinstance(before, str):
    before = _value(now, before)
  return json.loads(json.dumps(before)) == now


def _same_model(before: str, now: str) -> bool:
  """As `_alike`; a folder counts by its name, also in legs that hold nothing else of a hub id."""
  if "/" in before and "/" in now:
    return before == now
  return pathlib.PurePath(before).name == pathlib.PurePath(now).name


def after_pam(arm: str, pam: pathlib.Path, steps: int, config: Config) -> dict[str, Any]:
  """What one of `ARMS` sets: so many steps from the last parameters of the run in `pam`.

  Where `config` teaches translations, and by the pivot's answers to them, an arm without the pivot
  teaches whole responses by its own label: as many tokens, and nothing of the pivot in it.
  """
  if arm in CONTINUED:
    return {"init_from": pam, "stages": "('pam',)", "pam.steps": steps, "pam.patience": 0}
  if arm not in SOURCES:
    raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
  own = arm in _WITHOUT_PIVOT and config.srl.understanding_weight > 0
  changed = {"init_from": pam, "stages": "('srl',)", "srl.steps": steps, "feedback.source": arm}
  return changed | ({"srl.credit": "all"} if own else {})


def run(
  program: Program, leg: Leg, environment: Mapping[str, str], core: int | None = None
) -> None:
  """Runs a program until it is finished; at once if it is.

  Args:
    program: what to run.
    leg: ends it.
    environment: variables of the process.
    core: the one processor core that it may use, where the system can do that; None is all.

  Raises:
    Stopped: the leg ended first.
    RuntimeError: the program failed, with the last lines that it printed.
    ValueError: it was finished with other settings.
  """
  if program.finished():
    return
  if leg.over:
    raise Stopped
  program.folder.mkdir(parents=True, exist_ok=True)
  program.started()
  pin = "" if core is None else str(core)
  child = [sys.executable, str(ROOT / "benchmarks" / "effects" / "child.py"), str(os.getpid()), pin]
  start, asked = time.monotonic(), False
  with program.log.open("a", encoding="utf-8") as log:
    # In a group of its own: a Ctrl-C in the terminal reaches it once, through the leg.
    process = subprocess.Popen(
      [*child, *program.command()],
      cwd=ROOT,
      env=dict(environment),
      stdout=log,
      stderr=log,
      process_group=0,
    )
    try:
      while (cpu_seconds := _ended(process)) is None:
        if leg.over and not asked:
          process.terminate()
          asked = True
        time.sleep(_LOOK)
    finally:
      if process.returncode is None:
        process.kill()
        process.wait()
  program.ended(process.returncode, time.monotonic() - start, cpu_seconds)
  if process.returncode == 0:
    return
  if process.returncode == EXIT_STOPPED or (asked and process.returncode == -signal.SIGTERM):
    raise Stopped
  printed = program.log.read_text("utf-8", errors="replace").splitlines()
  raise RuntimeError(
    f"{program.script} in {program.folder} ended with {process.returncode}; the end of"
    f" {program.log}:\n" + "\n".join(printed[-20:])
  )


def device_count(environment: Mapping[str, str]) -> int:
  """How many devices a program with these variables will see.

  It asks a process of its own, which leaves them to the programs when it ends.

  Raises:
    ValueError: it sees none of the kind that they name.
  """
  asked = "import jax; from pasmr_jax.parallel.mesh import check_platform as check"
  command = [sys.executable, "-c", f"{asked}; check(); print(jax.device_count())"]
  ended = subprocess.run(
    command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False
  )
  if ended.returncode != 0:
    raise ValueError(ended.stderr.strip().rpartition("\n")[2])
  return int(ended.stdout.split()[-1])


def _ended(process: subprocess.Popen[bytes]) -> float | None:
  """The processor time that it took if it has ended, and sets its return code; None if it runs."""
  # Not Popen.poll, which throws away what the system says of the child's processor time.
  pid, status, usage = os.wait4(process.pid, os.WNOHANG)
  if not pid:
    return None
  process.returncode = os.waitstatus_to_exitcode(status)
  return usage.ru_utime + usage.ru_stime


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """Mean and its standard error; the error of a single value is unknown (NaN)."""
  error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return statistics.fmean(values), error
