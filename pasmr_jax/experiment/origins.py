"""Where parameters come from: the stage before, another run, pretrained weights, or a seed.

With `config.lora` the stages pam and srl train one set of adapters, handed from stage to stage, on
the weights that the first of them begins with. An `origin` names those weights in each checkpoint,
as 'checkpoint:FOLDER', 'pretrained:NAME' or 'seed:NUMBER', and they are read from there again.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax import Config
from pasmr_jax.experiment.checkpoint import Checkpoints
from pasmr_jax.experiment.reliability.checksums import checkpoint_checksum
from pasmr_jax.experiment.reliability.identity import flatten, ids_checksum, published
from pasmr_jax.experiment.reliability.recovery import last_stage, read_record
from pasmr_jax.models import lora, pretrained
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params, output_table, param_shapes
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import abstract, adapter_shardings, param_shardings, replicated
from pasmr_jax.parallel.processes import process_index
from pasmr_jax.rollout.requests import stable_id
from pasmr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass
class Origins:
  """Reads the parameters of a run's stages and checkpoints, laid out over its mesh."""

  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  model: TransformerConfig

  @functools.cached_property
  def shardings(self) -> Any:
    """Of parameters in training."""
    return param_shardings(self.model, self.mesh, rules.TRAINING)

  def start_params(self, stage: str) -> Any:
    """All parameters at step 0 of `stage`, the same at every call."""
    return self._load(self._origin(stage), self.workdir)

  def _origin(self, stage: str) -> str:
    """Names what `start_params` gives."""
    place = self.config.stages.index(stage)
    if place > 0:
      before = self.config.stages[place - 1]
      return f"checkpoint:checkpoints/{before}/{self._newest(self.workdir, before)}"
    if self.config.init_from:
      other = pathlib.Path(self.config.init_from).absolute()
      try:
        last = last_stage(other)
      except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
      folder = other / "checkpoints" / last / str(self._newest(other, last))
      self._expect_own_tokenizer(folder)
      return f"checkpoint:{folder}"
    if self.config.model.pretrained:
      return f"pretrained:{base_model(self.config)}"
    return f"seed:{self.config.seed}"

  def _expect_own_tokenizer(self, folder: pathlib.Path) -> None:
    """Raises ValueError if another run's checkpoint was trained with another tokenizer."""
    identity = read_record(folder).get("identity", {})  # an older one says nothing of ids
    if identity.get("ids", "") in ("", self._ids_checksum):
      return
    own = flatten(self.config)
    differences = [
      f"{key} was {was!r}, is {own.get(key)!r}"
      for key, was in sorted(identity["config"].items())
      if key.startswith("tokenizer.") and was != own.get(key)
    ]
    raise ValueError(
      f"init_from: {folder} was trained with another tokenizer, whose ids mean other tokens"
      + f" ({'; '.join(differences)})" * bool(differences)
      + "; expected the one of this run"
    )

  @functools.cached_property
  def _ids_checksum(self) -> str:
    return ids_checksum(self.tokenizer)

  def _newest(self, workdir: pathlib.Path, stage: str) -> int:
    with self._reading(workdir, stage) as checkpoints:
      return checkpoints.find("last")

  def _load(self, origin: str, workdir: pathlib.Path) -> Any:
    """What an origin names; folders are relative to `workdir`."""
    kind, _, name = origin.partition(":")
    if kind == "checkpoint":
      folder = workdir / name
      return self.checkpoint_params(folder.parent.name, folder.name, folder.parents[2])[0]
    if kind == "pretrained":
      found = base_model(self.config)
      if found != name:
        raise ValueError(f"model.pretrained is {found!r}; expected {name!r}, that adapters are for")
      return self.pretrained_params()
    key = jax.random.fold_in(jax.random.key(int(name)), stable_id("parameters"))
    initialize = jax.jit(lambda key: init_params(self.model, key), out_shardings=self.shardings)
    return initialize(key)

  def start_trained(self, stage: str) -> Any:
    """What the stage trains, at step 0: all parameters, or adapters."""
    if not self.has_adapters(stage):
      return self.start_params(stage)
    before = self.config.stages[: self.config.stages.index(stage)]
    if any(self.has_adapters(earlier) for earlier in before):
      return self.checkpoint_adapters(before[-1], "last")[0]
    shapes = self._abstract_adapters(lora_settings(self.config))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    key = jax.random.fold_in(jax.random.key(self.config.seed), stable_id("adapters"))
    return jax.jit(lambda key: lora.init_adapters(shapes, key), out_shardings=shardings)(key)

  def abstract_trained(self, stage: str) -> Any:
    """Shapes of what the stage trains."""
    if self.has_adapters(stage):
      return self._abstract_adapters(lora_settings(self.config))
    return self.abstract_params()

  def _abstract_adapters(self, settings: lora.LoraSettings) -> Any:
    shapes = lora.adapter_shapes(param_shapes(self.model), settings)
    return abstract(shapes, adapter_shardings(self.model, self.mesh, rules.TRAINING, settings))

  def has_adapters(self, stage: str) -> bool:
    """Whether a stage trains adapters; the built-in corpus' base model is made whole."""
    return self.config.lora.rank > 0 and stage != "base"

  def frozen(self) -> lora.Frozen:
    """The weights under this run's adapters."""
    first = next(stage for stage in self.config.stages if self.has_adapters(stage))
    origin = self._origin(first)
    params = self._load(origin, self.workdir)
    self._check_delimiters(params)
    return lora.Frozen(params, lora_settings(self.config), origin)

  def _check_delimiters(self, params: Any) -> None:
    """Raises ValueError if delimiters have rows that nothing was learned for: adapters keep them.

    Some vocabularies (Llama 3's) have reserved tokens whose rows are all but zero, and so is then
    the logit of each of them.
    """
    ids = [*self.tokenizer.open_ids, *self.tokenizer.close_ids]
    table = output_table(params, self.model)
    measure = jax.jit(
      lambda table: jnp.abs(table.astype(jnp.float32)).mean(axis=1),
      out_shardings=replicated(self.mesh),
    )
    sizes = np.asarray(measure(table))
    if sizes[ids].min() < 0.1 * np.median(sizes):
      raise ValueError(
        f"tokenizer.open and tokenizer.close are {self.tokenizer.open_delimiter!r} and"
        f" {self.tokenizer.close_delimiter!r}, whose embeddings were never trained and with"
        f" lora.rank={self.config.lora.rank} never are; expected other tokens or texts, such as"
        " '<pivot>' and '</pivot>' with tokenizer.delimiters=tags"
      )

  def pretrained_params(self) -> Any:
    """Those of model.pretrained, with rows for delimiters that its vocabulary lacks."""
    return pretrained.load_params(
      source(self.config.model),
      self.model,
      self.shardings,
      self.model.param_dtype,
      new_rows=self.tokenizer.added,
      show_progress=self.config.log.progress and process_index() == 0,
    )

  def checkpoint_params(
    self, stage: str, which: str, workdir: pathlib.Path | None = None
  ) -> tuple[Any, int]:
    """All parameters of a checkpoint, adapters merged into theirs, and its step.

    Args:
      stage: its stage.
      which: `last`, `best` (by checkpoint.metric) or a step's number.
      workdir: of another run; None is this one.

    Raises:
      ValueError: there is no such checkpoint, or it is of another model.
    """
    workdir = self.workdir if workdir is None else workdir
    with self._reading(workdir, stage) as checkpoints:
      step = checkpoints.find(which)
      found = checkpoints.adapters(step)
      if found is None:
        return checkpoints.restore_params(self.abstract_params(), self.model, step), step
      folder = checkpoints.directory / str(step)
    adapters, settings, origin, step = self.checkpoint_adapters(stage, str(step), workdir)
    base = self._load(self._found_again(origin, folder, workdir), workdir)
    return lora.merged(lora.Adapted(base, adapters, settings.scale)), step

  def checkpoint_adapters(
    self, stage: str, which: str, workdir: pathlib.Path | None = None
  ) -> tuple[Any, lora.LoraSettings, str, int]:
    """The adapters of a checkpoint, their settings, their base's origin, and its step.

    Takes what `checkpoint_params` takes.

    Raises:
      ValueError: there is no such checkpoint, it is of another model, or it has no adapters.
    """
    with self._reading(self.workdir if workdir is None else workdir, stage) as checkpoints:
      step = checkpoints.find(which)
      found = checkpoints.adapters(step)
      if found is None:
        raise ValueError(f"{checkpoints.directory / str(step)} holds all weights, not adapters")
      settings, origin = found
      abstract = self._abstract_adapters(settings)
      return checkpoints.restore_params(abstract, self.model, step), settings, origin, step

  def _found_again(self, origin: str, folder: pathlib.Path, workdir: pathlib.Path) -> str:
    """The origin of a checkpoint's adapters, or where `init_from` has the same if it is gone.

    Raises:
      ValueError: it is gone, and `init_from` has nothing that is known to be the same.
    """
    kind, _, name = origin.partition(":")
    if kind != "checkpoint" or (workdir / name).exists():
      return origin
    named, others = pathlib.Path(self.config.init_from).absolute(), pathlib.Path(name)
    own = workdir.absolute() == self.workdir.absolute()  # whose init_from is known
    if own and self.config.init_from and others.is_absolute():
      moved = named.joinpath(*others.parts[-3:])
      known = read_record(folder).get("identity", {}).get("weights", "")
      if known and known == checkpoint_checksum(moved):
        return f"checkpoint:{moved}"
    raise ValueError(
      f"{folder} holds adapters on {workdir / name}, which is gone; expected it there, or the same"
      " in the run that init_from names"
    )

  def _reading(self, workdir: pathlib.Path, stage: str) -> Checkpoints:
    return Checkpoints(workdir, stage, self.config.checkpoint, read_only=True)

  def abstract_params(self) -> Any:
    return abstract(param_shapes(self.model), self.shardings)


def lora_settings(config: Config) -> lora.LoraSettings:
  """`config.lora`, whose rank is not 0."""
  return lora.LoraSettings(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))


def source(model: Config) -> str:
  """Path or hub id of the pretrained model, with its revision as `id@revision`."""
  return f"{model.pretrained}@{model.revision}" if model.revision else model.pretrained


def base_model(config: Config) -> str:
  """`source`, but of a file or folder only its name: it may be moved, and no path is published."""
  name = published(config.model.pretrained)
  return source(config.model) if name == config.model.pretrained else name
