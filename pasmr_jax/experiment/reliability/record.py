"""What a run was: `WORKDIR/run.json` of its newest start, `run_history.jsonl` of all of them.

The exact configuration, every installed package's version, the code's commit, devices and hosts,
and checksums of the questions read. Of the environment only variables that say how JAX and its
libraries run; what looks like a secret is blotted out wherever it stands.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from pasmr_jax.experiment.reliability.storage import append, json_line, write_whole
from pasmr_jax.parallel import processes

_ROOT = pathlib.Path(__file__).resolve().parents[3]
# Libraries whose version can change what is computed.
_COMPUTING = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ENVIRONMENT = re.compile(r"(?:JAX|XLA|LIBTPU|TPU|HF_HUB_OFFLINE|HF_HOME|OMP_NUM|MEGASCALE)\w*")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY|AUTH", re.IGNORECASE)
_SECRET = re.compile(
  r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)"  # https://user:password@host
  r"|\b(?:hf|ghp|gho|github_pat|glpat|sk|xox[abp])[_-][A-Za-z0-9_-]{16,}"
  r"|\bAKIA[0-9A-Z]{16}\b|\bya29\.[\w-]{20,}|\bAIza[\w-]{30,}"
)


def code_versions() -> dict[str, str]:
  """This package's version and commit, and the versions of what it computes with."""
  versions = {"pasmr_jax": _version("pasmr_jax") or "source", "commit": _commit()}
  for name in _COMPUTING:
    if version := _version(name):
      versions[name] = version
  return versions


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str:
  """The commit of the checkout, `+` if files differ from it; 'unknown' outside of one."""

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(
      command, capture_output=True, text=True, timeout=20, check=True
    ).stdout.strip()

  try:
    # A checkout that this package does not belong to says nothing about it.
    git("ls-files", "--error-unmatch", "pasmr_jax/__init__.py")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return "unknown"


def write_record(workdir: pathlib.Path, identity: Any, mesh: jax.sharding.Mesh) -> None:
  """Writes the record of this start; `identity` is the run's `Identity`."""
  here = {"host": socket.gethostname(), "pid": os.getpid(), "python": platform.python_version()}
  members = [json.loads(text) for text in processes.gather_text(json.dumps(here))]
  if processes.process_index() != 0:
    return
  record = {
    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    "processes": members,
    "system": platform.platform(),
    "devices": [
      {"id": device.id, "kind": device.device_kind, "process": device.process_index}
      for device in jax.devices()
    ],
    "mesh": {name: int(size) for name, size in mesh.shape.items()},
    "environment": _environment(os.environ),
    "code": identity.code,
    "data": identity.pools,
    "tokenizer": identity.tokenizer,
    "weights": identity.weights,
    "config": identity.config,
    "packages": _packages(),
  }
  cleaned = without_secrets(record)
  append(workdir / "run_history.jsonl", json_line(cleaned) + "\n")
  write_whole(workdir / "run.json", json.dumps(cleaned, indent=2) + "\n")


def _packages() -> dict[str, str]:
  """Versions of what is installed; a folder that an interrupted installer left has no name."""
  found = importlib.metadata.distributions()
  named = [one for one in found if "Name" in one.metadata]
  return dict(sorted((one.metadata["Name"], one.version) for one in named))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
  return {
    name: value
    for name, value in sorted(variables.items())
    if _ENVIRONMENT.fullmatch(name) and not _SECRET_NAME.search(name)
  }


def without_secrets(value: Any) -> Any:
  """The same value, with what looks like a token or a password replaced."""
  if isinstance(value, str):
    return _SECRET.sub("(secret)", value)
  if isinstance(value, Mapping):
    return {key: without_secrets(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [without_secrets(inner) for inner in value]
  return value
