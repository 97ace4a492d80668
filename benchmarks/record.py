"""What a benchmark leaves: its figures with the command, the machine and the versions."""

import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax


def write(path: pathlib.Path | None, module: str, device: str, figures: Mapping[str, Any]) -> None:
  """Writes `figures` of `python -m module` as JSON; nothing where no path was asked for."""
  if path is None:
    return
  summary = {
    "command": f"python -m {module} " + " ".join(sys.argv[1:]),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
    "versions": {"python": platform.python_version(), "jax": jax.__version__},
    **figures,
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(summary, indent=2) + "\n")
