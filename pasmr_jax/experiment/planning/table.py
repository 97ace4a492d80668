"""A plan as text: what each program needs and takes, and what to change if it does not fit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pasmr_jax import Config
from pasmr_jax.experiment.planning.cost import GIB
from pasmr_jax.experiment.planning.dividing import more_microbatches
from pasmr_jax.experiment.planning.gpus import GPUS

LEFT_OUT = (
  "A floor is the largest of: matrix products over peak bf16 compute, bytes over HBM bandwidth,"
  " bytes from other devices over the bandwidth of all links. It leaves out everything else: work"
  " of the vector units, waiting of one of the three for another, links that are not used at once,"
  " padding to tiles, work that sharding repeats, dispatch, the host (tokenizing, votes, language"
  " identification), reading and writing files, and of Pallas kernels the blocks that they may skip"
  " and what they read twice. A real step is slower, never faster.",
  "Memory is the compiler's own peak for one device plus the trees that training holds beside the"
  " program. Other programs' code, fragmentation and the runtime are left out (about 0.1 GiB), and"
  " evaluation, which decodes `evaluation.batch_size` rows, is not planned.",
)


def render(report: Mapping[str, Any]) -> str:
  """The whole report of one topology."""
  blocks = [
    _heading(report),
    _table(_memory_rows(report)),
    _table(_time_rows(report)),
    _step(report),
    *LEFT_OUT,
  ]
  return "\n\n".join(block for block in blocks if block)


def step_parts(report: Mapping[str, Any]) -> list[tuple[str, float, float]]:
  """Parts of one SRL step: name, floor in seconds over all calls, share of the step's floor."""
  parts = [
    (part["part"], part["calls"] * part["floor_seconds"])
    for program in report["programs"]
    if _of_a_step(program)
    for part in program.get("parts", ())
    if part["calls"]
  ]
  whole = sum(seconds for _, seconds in parts)
  return [(name, seconds, seconds / whole if whole else 0.0) for name, seconds in parts]


def _of_a_step(program: Mapping[str, Any]) -> bool:
  """Whether a step of SRL runs it; the supervised stages have steps of their own."""
  return not program["program"].startswith(("base", "pam"))


def _heading(report: Mapping[str, Any]) -> str:
  mesh = " x ".join(
    f"{axis}={size}" for axis, size in report["mesh"].items() if axis != "replica" or size > 1
  )
  slices = f"{report['num_slices']} slices of " if report["num_slices"] > 1 else ""
  lines = [
    f"{slices}{report['topology']}: {math.prod(report['mesh'].values())} chips, {mesh},"
    f" {report['limit_bytes'] / GIB:.2f} GiB of HBM each",
    f"{report['parameters']:,} parameters ({report['sizes_from']})",
  ]
  if any(_of_a_step(program) for program in report["programs"]):
    load = report["workload"]
    lines.append(
      f"An SRL step: {load['prefills']} batches of {load['prefill_prompts']} prompts,"
      f" {load['decodes']} calls of the decoder on {load['slots']} slots, and updates on"
      f" {load['update_rows']} packed rows of {load['update_length']} tokens: the most that the"
      f" configuration allows, prompts and responses {report['fill']:.0%} of their limits long."
    )
  lines += _adjusted(report["adjusted"])
  if report["topology"].partition(":")[0] in GPUS:
    lines.append("Compiled without the GPU: no kernel was chosen by timing it, as XLA does on one.")
  if report["quick"]:
    lines.append("Compiled with little effort (--quick): figures differ from those of training.")
  return "\n".join(lines)


def _adjusted(flags: Sequence[str]) -> Iterator[str]:
  rehearsed = [flag for flag in flags if flag.startswith("--config.srl.rehearsal_rows=")]
  if others := [flag for flag in flags if flag not in rehearsed]:
    yield "Changed so that batches divide: " + " ".join(others)
  if rehearsed:
    yield (
      "Changed so that batches divide; more is rehearsed a step, which changes what is learned: "
      + " ".join(rehearsed)
    )


def _memory_rows(report: Mapping[str, Any]) -> Iterator[Sequence[str]]:
  yield "program", "peak GiB", "", "what fills it, GiB"
  for program in report["programs"]:
    filled = sorted(program["filled_by"].items(), key=lambda item: -item[1])
    least = "" if program["compiled"] else "at least "
    verdict = "fits" if program["fits"] else f"{least}{program['over_bytes'] / GIB:.2f} over"
    yield (
      program["program"],
      f"{program['peak_bytes'] / GIB:.2f}",
      verdict,
      ", ".join(f"{name} {_gib(size)}" for name, size in filled if size >= GIB / 1000),
    )


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}" if size >= GIB / 100 else f"{size / GIB:.3f}"


def _time_rows(report: Mapping[str, Any]) -> Iterator[Sequence[str]]:
  yield (
    "part", "calls", "TFLOP", "HBM GB", "from other devices, GB", "floor ms", "bound by",
    "tokens/s at best", "of peak",
  )  # fmt: skip
  for program in report["programs"]:
    for part in program.get("parts", ()):
      kinds = {name: size / 1e9 for name, size in part["collective_bytes"].items()}
      moved = ", ".join(f"{kind} {size:.3g}" for kind, size in kinds.items() if size >= 1e-4)
      yield (
        part["part"],
        str(part["calls"]),
        f"{part['flops'] / 1e12:.4g}",
        f"{part['hbm_bytes'] / 1e9:.4g}",
        moved or "-",
        f"{part['floor_seconds'] * 1e3:.4g}",
        part["bound"],
        f"{part['tokens_per_second']:,.0f}" if part["tokens"] else "-",
        f"{part['model_flops_share']:.0%}" if "model_flops_share" in part else "-",
      )


def _step(report: Mapping[str, Any]) -> str:
  programs = {program["program"] for program in report["programs"]}
  if not {"decode", "srl update"} <= programs or not report["fits"]:
    return ""  # a supervised stage, or programs picked by name
  parts = step_parts(report)
  shares = ", ".join(f"{name} {share:.1%}" for name, _, share in parts)
  seconds = sum(seconds for _, seconds, _ in parts)
  return f"One SRL step takes at least {seconds:.3g} s: {shares}."


def _table(rows: Iterator[Sequence[str]]) -> str:
  cells = list(rows)
  if len(cells) < 2:
    return ""
  widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
  return "\n".join(
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in cells
  )


def advice(report: Mapping[str, Any], config: Config) -> list[str]:
  """For each program that does not fit: by how much, and which keys would help, best first."""
  lines = []
  for program in report["programs"]:
    if program["fits"]:
      continue
    filled = sorted(program["filled_by"].items(), key=lambda item: -item[1])
    helps: dict[str, None] = {}
    for name, _ in filled:
      helps |= dict.fromkeys(_keys(name, program["program"], config, report["mesh"]))
    lines.append(
      f"{program['program']} does not fit: {program['over_bytes'] / GIB:.2f} GiB over the"
      f" {report['limit_bytes'] / GIB:.2f} GiB of a device. What would help, by what fills most: "
      + "; ".join(helps)
    )
  return lines


def _shorter_rows(program: str, stage: str, config: Config) -> str:
  """What makes the rows of a program shorter."""
  if program.startswith("longest"):
    return "a smaller srl.longer_rows"
  if stage != "srl":
    return f"a smaller {stage}.max_length"
  if config.srl.row_length > config.srl.max_prompt_length + config.srl.max_new_tokens:
    return "a smaller srl.row_length"
  return "smaller srl.max_prompt_length and srl.max_new_tokens"


def _keys(filled: str, program: str, config: Config, mesh: Mapping[str, int]) -> Iterator[str]:
  """Keys that make one of the things that fill memory smaller."""
  update = program.endswith("update") or program == "score"
  stage = program.split()[-2] if program.endswith("update") else "srl"
  laid_out = filled.endswith("laid out") or (filled == "parameters" and not update)
  if laid_out:
    yield f"mesh.tensor={2 * config.mesh.tensor} (weights are whole on each device while sampling)"
  elif filled in ("parameters", "policy", "gradients", "moments", "moving average", "reference"):
    yield "a slice with more chips"
    if config.model.param_dtype == "float32":
      yield "model.param_dtype=bfloat16"
  if filled == "moments" and config[stage].optimizer.name == "adamw":
    yield f"{stage}.optimizer.name=adafactor, lion or muon"
    if (config[stage].optimizer.moment_dtype or config.model.param_dtype) == "float32":
      yield f"{stage}.optimizer.moment_dtype=bfloat16"
  if filled in ("gradients", "moments", "reference") and not config.lora.rank and stage != "base":
    yield "lora.rank=16"
  if filled == "moving average":
    yield "feedback.teacher=policy"
  if filled.startswith("reference"):
    yield "srl.kl_coef=0 with feedback.teacher=policy"
  if update and (filled.startswith("activations") or filled == "logits"):
    if more := more_microbatches(config, stage, mesh["replica"] * mesh["fsdp"]):
      yield f"{stage}.microbatches={more}"
    if config.model.remat != "full":
      yield "model.remat=full"
    yield _shorter_rows(program, stage, config)
  sampled = filled in ("cache", "logits") or filled.startswith("activations")
  if sampled and program == "prefill":
    yield f"rollout.prefill_prompts below {config.rollout.prefill_prompts}"
  if sampled and program == "decode":
    yield f"rollout.slots below {config.rollout.slots or 'all rows'}"
    kept = config.rollout.cache_dtype or config.model.dtype
    smaller = {"float32": "bfloat16 or int8", "bfloat16": "int8"}
    if kept in smaller:
      yield f"rollout.cache_dtype={smaller[kept]}"
    yield "smaller srl.max_prompt_length and srl.max_new_tokens"
