"""A checkpoint of a run as a Hugging Face folder, for whoever has no pasmr_jax.

`export` writes weights, config.json, tokenizer, generation_config.json, the training configuration
and a model card into `FOLDER.partial`, reads the folder back as a stranger would, and only then
gives it its name: an interrupted export leaves nothing that looks finished. `export_adapters` does
the same with adapters alone, for PEFT, where what they are on is a model that others have.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from pasmr_jax import Config
from pasmr_jax.experiment.origins import source
from pasmr_jax.experiment.reliability.identity import published
from pasmr_jax.experiment.reliability.recovery import steps_in
from pasmr_jax.experiment.setup import Run, parameter_count
from pasmr_jax.models import pretrained
from pasmr_jax.models.lora import LoraSettings
from pasmr_jax.models.peft import Base, write_adapters
from pasmr_jax.models.writing import find_layout, write_json, write_model
from pasmr_jax.text.chat import THINKING
from pasmr_jax.text.fast_tokenizer import save_tokenizer
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.tokenizer import load_tokenizer

ADAPTERS = "LoRA"  # stands in a card where a whole model has its architecture
PRETRAINED = "pretrained"  # the checkpoint that is model.pretrained, with nothing trained
_CLOCK = "strftime_now"  # what transformers calls it in chat templates


def check_target(folder: pathlib.Path) -> None:
  """Raises ValueError if an export would overwrite something."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f"--out={folder}: expected no such file, or an empty folder")


def export(run: Run, params: Any, checkpoint: str, folder: pathlib.Path, dtype: str = "") -> None:
  """Writes the folder.

  Args:
    run: of the parameters.
    params: its parameter tree, all of it addressable by this process.
    checkpoint: what they are, such as 'srl_300', or `PRETRAINED`, for the model card.
    folder: does not exist, or is empty.
    dtype: of the weights, 'float32' or 'bfloat16'; '' is that of the parameters.

  Raises:
    ValueError: the folder holds something, no family has the model's features, or transformers
      cannot express its tokenizer.
  """
  check_target(folder)
  dtype = dtype or run.model.param_dtype
  known, rows = _known(run)
  layout = find_layout(run.model, rows, known, dtype)
  with _finished(folder) as partial:
    write_json(partial / "generation_config.json", _special_tokens(run))
    write_model(partial, layout, params, dtype)
    _write_surroundings(run, partial, checkpoint, layout.family.model_types[0], dtype, params)
    pretrained.check_tensors(partial, pretrained.load_config(partial))


def export_adapters(
  run: Run,
  adapters: Any,
  settings: LoraSettings,
  origin: str,
  checkpoint: str,
  folder: pathlib.Path,
) -> None:
  """Writes the folder that PEFT loads onto the model that training began with.

  Args:
    run: of the adapters.
    adapters: their tree, all of it addressable by this process.
    settings: of the adapters.
    origin: what they are on (experiment/origins.py).
    checkpoint: what they are, such as 'srl_300', for the model card.
    folder: does not exist, or is empty.

  Raises:
    ValueError: the folder holds something, or what the adapters are on is no Hugging Face model.
  """
  check_target(folder)
  if not origin.startswith("pretrained:") or run.config.model.pretrained.endswith(".gguf"):
    raise ValueError(
      f"--workdir={run.workdir}: {checkpoint} holds adapters on {origin!r}, which is no model of"
      " Hugging Face; expected --merge_lora, which writes the whole model"
    )
  model = run.config.model
  base = Base(published(model.pretrained), model.revision, pretrained.is_multimodal(source(model)))
  with _finished(folder) as partial:
    write_adapters(partial, adapters, settings, run.model, base)
    _write_surroundings(run, partial, checkpoint, ADAPTERS, "float32", adapters)


@contextlib.contextmanager
def _finished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty folder to write, which gets its name only if nothing went wrong."""
  partial = folder.with_name(f"{folder.name}.partial")
  if partial.exists():
    shutil.rmtree(partial)
  partial.mkdir(parents=True)
  yield partial
  if folder.exists():
    folder.rmdir()  # empty: a rename does not replace a folder everywhere
  partial.rename(folder)


def _write_surroundings(
  run: Run, folder: pathlib.Path, checkpoint: str, family: str, dtype: str, params: Any
) -> None:
  """What stands beside weights or adapters: tokenizer, settings and the model card."""
  save_tokenizer(run.tokenizer, folder)
  if checkpoint != PRETRAINED:
    _fix_template(run, folder)
    write_json(folder / "training_config.json", _training_config(run.config))
  card = "\n".join(_card(run, checkpoint, family, dtype, params))
  (folder / "README.md").write_text(card + "\n", "utf-8")
  _read_tokenizer_back(run, folder)


def _fix_template(run: Run, folder: pathlib.Path) -> None:
  """Has the chat template write, to whoever names no switch and on any day, what was trained on."""
  template = run.tokenizer.vocabulary.chat_template or ""
  if run.config.prompt.style != "chat":
    return
  first = ""
  if _CLOCK in template:  # an undefined name takes away the clock that transformers lends
    first += f"{{%- set {_CLOCK} = no_clock %}}"
  if THINKING in template:
    default = str(run.config.prompt.thinking).lower()
    first += f"{{%- set {THINKING} = {THINKING} | default({default}) %}}"
  if not template.startswith(first):  # which is so where an exported model was trained again
    (folder / "chat_template.jinja").write_text(first + template, "utf-8")


def _known(run: Run) -> tuple[dict[str, Any], int]:
  """What config.json shall say besides the shape, and how many rows the embedding has."""
  own, tokens = _special_tokens(run), run.tokenizer.vocab_size
  settings = run.config
  if not settings.model.pretrained:
    lengths = [settings[stage].max_length for stage in ("base", "pam")]
    lengths.append(settings.srl.max_prompt_length + settings.srl.max_new_tokens)
    return own | {"max_position_embeddings": max(lengths)}, tokens
  path = source(settings.model)
  stated = pretrained.stated_config(path)
  # Rows that the checkpoint has and no token stands for are kept, rows that were added go.
  rows = max(pretrained.load_config(path).vocab_size, tokens)
  return stated if "model_type" in stated else own | stated, rows


def _special_tokens(run: Run) -> dict[str, Any]:
  tokenizer = run.tokenizer
  stops = list(tokenizer.stop_ids)
  ids = {"eos_token_id": stops if len(stops) > 1 else stops[0], "pad_token_id": tokenizer.pad_id}
  return ids if tokenizer.bos_id is None else ids | {"bos_token_id": tokenizer.bos_id}


def _read_tokenizer_back(run: Run, folder: pathlib.Path) -> None:
  """Reads what was written as a new run would.

  Raises:
    ValueError: delimiters or special tokens are not what they were.
  """
  tokenizer = run.tokenizer
  found = load_tokenizer(str(folder), tokenizer.open_delimiter, tokenizer.close_delimiter)
  for name in ("open_ids", "close_ids", "eos_id", "bos_id", "pad_id"):
    if getattr(found, name) != getattr(tokenizer, name):
      raise ValueError(
        f"{folder}: {name} would be read as {getattr(found, name)}, not {getattr(tokenizer, name)}"
      )


def _training_config(config: Config) -> dict[str, Any]:
  """The whole configuration, without where things lay on the machine that trained."""
  values = json.loads(config.to_json_best_effort())
  values["data"] |= _pools(config) | {"root": ""}
  values["model"]["pretrained"] = published(config.model.pretrained)
  values["tokenizer"]["path"] = published(config.tokenizer.path)
  values["init_from"] = pathlib.Path(config.init_from).name
  values["evaluation"]["exemplar_file"] = pathlib.Path(config.evaluation.exemplar_file).name
  if "://" not in config.checkpoint.notice:
    values["checkpoint"]["notice"] = pathlib.Path(config.checkpoint.notice).name
  return values


def _pools(config: Config) -> dict[str, list[str]]:
  """The sources of each pool, without folders but those in `{root}`."""
  pools = {name: value for name, value in config.data.items() if isinstance(value, tuple)}
  return {name: [_published_source(one) for one in sources] for name, sources in pools.items()}


def _published_source(source: str) -> str:
  format, colon, place = source.partition(":")
  if place.startswith("{root}"):
    return source
  name, comma, rest = place.partition(",")  # of a subset, in `huggingface` alone
  hub = format == "huggingface"
  return f"{format}{colon}{published(name) if hub else pathlib.Path(name).name}{comma}{rest}"


def _card(run: Run, checkpoint: str, family: str, dtype: str, params: Any) -> Iterator[str]:
  """The lines of README.md."""
  config, tokenizer = run.config, run.tokenizer
  codes, trained = [config.pivot, *config.languages], checkpoint != PRETRAINED
  base = config.model.pretrained
  yield "---"
  yield f"library_name: {'peft' if family == ADAPTERS else 'transformers'}"
  yield "pipeline_tag: text-generation"
  if trained:
    yield "language:"
    yield from (f"- {code}" for code in codes)
  if base and not pathlib.Path(base).exists():
    yield f"base_model: {base}"
  if trained:
    yield "tags:\n- pasmr\n- math"
  yield "---"
  yield f"\n# {published(base) or 'A small model'}{', trained with PASMR' * trained}\n"
  if trained:
    yield (
      "PASMR (arXiv 2601.17671) teaches a model to reason in more languages with its own answers in"
      " the pivot language, without gold answers and without a reward model.\n"
    )
    names = ", ".join(LANGUAGES[code].name for code in config.languages)
    yield f"- Pivot: {LANGUAGES[config.pivot].name}. Languages: {names}."
    yield f"- Checkpoint: `{checkpoint}`."
  else:
    delimiters = f"`{tokenizer.open_delimiter}` and `{tokenizer.close_delimiter}`"
    new = f", with tokens for {delimiters}" * tokenizer.single_token_delimiters
    yield f"Nothing was trained: the model is as it was{new}.\n"
  yield f"- {parameter_count(params):,} parameters, {dtype}, architecture `{family}`."
  if config.model.revision:
    yield f"- Began with revision `{config.model.revision}` of `{published(base)}`."
  if trained:
    yield from _how_it_answers(run)
  yield "\n## Scores\n"
  yield from _scores(run.workdir, checkpoint, codes)
  if trained:
    yield from _how_it_was_trained(config)


def _how_it_answers(run: Run) -> Iterator[str]:
  config, tokenizer = run.config, run.tokenizer
  yield "\n## How it answers\n"
  yield "It is asked with this text, where `{question}` stands for the question:\n"
  yield f"```\n{config.prompt.question}\n```\n"
  if config.prompt.style == "chat":
    system, template = config.prompt.system, tokenizer.vocabulary.chat_template or ""
    yield (
      "inside the chat template, as the user's message"
      + f", after the system text `{system}`" * bool(system)
      + f", with `{THINKING}={config.prompt.thinking}`" * (THINKING in template)
      + ".\n"
    )
  yield (
    f"A question in a target language is first translated between `{tokenizer.open_delimiter}` and"
    f" `{tokenizer.close_delimiter}`, then answered in its own language; the final answer follows"
    " `#### `. Decode with `skip_special_tokens=False` to see the delimiters."
  )


def _how_it_was_trained(config: Config) -> Iterator[str]:
  yield "\n## Training\n"
  yield "All settings are in `training_config.json`. The main ones:\n"
  yield "| key | value |\n|---|---|"
  for key, value in _main_settings(config):
    yield f"| `{key}` | {value} |"
  yield "\n## Data\n"
  for name, sources in _pools(config).items():
    if sources:
      yield f"- {name}: {', '.join(f'`{one}`' for one in sources)}"


def _scores(workdir: pathlib.Path, checkpoint: str, codes: list[str]) -> Iterator[str]:
  """What is in `results/`, that of this checkpoint first."""
  own, others = [], []
  for file in sorted((workdir / "results").glob("*.json")):
    by_decoding: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    for decoding, measures in by_decoding.items():
      found = [measures.get(f"accuracy/{code}") for code in codes]
      if any(value is not None for value in found):
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in found]
        rows = own if _measures(file.stem, checkpoint, workdir) else others
        rows.append(f"| {file.stem}, {decoding} | {' | '.join(cells)} |")
  head = f"| | {' | '.join(codes)} |\n|---|{'---|' * len(codes)}"
  yield "\n".join(["Accuracy in %, by language:\n", head, *own] if own else ["Not evaluated."])
  if others:
    yield "\n".join(
      ["\nOther results of its run, not known to be of this checkpoint:\n", head, *others]
    )


def _measures(results: str, checkpoint: str, workdir: pathlib.Path) -> bool:
  """Whether results of this name are the checkpoint's: train.py measures the last of a stage."""
  stage, _, step = checkpoint.rpartition("_")
  if results == stage:
    return step == str(max(steps_in(workdir / "checkpoints" / stage), default=""))
  return f"{results}_".startswith(f"eval_{checkpoint}_")


def _main_settings(config: Config) -> Iterator[tuple[str, Any]]:
  yield "stages", ", ".join(config.stages)
  yield "seed", config.seed
  if config.lora.rank:
    for key in ("rank", "alpha", "targets"):
      yield f"lora.{key}", config.lora[key]
  for stage in config.stages:
    yield f"{stage}.steps", config[stage].steps
    yield f"{stage}.optimizer.learning_rate", config[stage].optimizer.learning_rate
    if stage != "srl":
      yield f"{stage}.batch_size", config[stage].batch_size
      yield f"{stage}.max_length", config[stage].max_length
  if "srl" in config.stages:
    for key in ("questions", "group_size", "advantage", "credit", "kl_coef"):
      yield f"srl.{key}", config.srl[key]
    for key in ("source", "teacher", "scope", "pivot_samples"):
      yield f"feedback.{key}", config.feedback[key]
    yield "reward.kind", config.reward.kind
