"""plan.py, run on a model that is small enough for a test."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[3]

# One program of each kind, so that the test is quick: no reference, no pivot, one microbatch.
SMALL = {
  "stages": "('srl',)",
  "model.dtype": "bfloat16",
  "model.remat": "full",
  "model.num_layers": 2,
  "model.scan_unroll": 1,
  "srl.kl_coef": 0.0,
  "srl.update_rows": 32,
  "srl.row_bucket": 32,
  "srl.microbatches": 1,
  "srl.longer_rows": "()",
  "srl.rehearsal_weight": 0.0,
  "srl.credit": "all",
  "feedback.source": "target_majority",
}


def plan(tmp_path, *flags, **settings):
  given = [f"--config.{key}={value}" for key, value in (SMALL | settings).items()]
  config = f"--config={ROOT / 'configs' / 'tiny.py'}"
  return subprocess.run(
    [sys.executable, ROOT / "plan.py", config, "--quick", f"--cache={tmp_path}", *flags, *given],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def plan_without(modules: Sequence[str], topology: str, cache: pathlib.Path):
  """The same where these modules are not installed, with the configuration as it is."""
  hidden = "".join(f"sys.modules[{name!r}] = None; " for name in modules)
  code = f"import runpy, sys; {hidden}sys.argv = sys.argv[1:]"
  code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
  config = f"--config={ROOT / 'configs' / 'tiny.py'}"
  flags = [f"--cache={cache}", f"--topology={topology}"]
  return subprocess.run(
    [sys.executable, "-c", code, ROOT / "plan.py", config, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
