"""Eight CPU devices before jax starts, and the real data if it lies beside the checkout."""

import json
import os
import pathlib
import subprocess

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles hundreds of small programs and runs each a few times: cheap code is quicker.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import filelock
import hypothesis
import pytest

from tests import runs

# The same examples every time, however busy the machine.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The real question sets; skips where they are absent."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("the real question sets are not at ../shared/data")
  return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> pathlib.Path:
  """A folder that all worker processes of the session have in common."""
  folder = tmp_path_factory.getbasetemp()
  return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def compiled(shared) -> pathlib.Path:
  """The compilation cache of all runs."""
  folder = shared / "compiled"
  folder.mkdir(exist_ok=True)
  return folder


@pytest.fixture(scope="session")
def environment(compiled) -> dict[str, str]:
  return runs.environment(compiled, devices=2)


@pytest.fixture(scope="session")
def uninterrupted(environment, shared) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
  """A run of all stages that nothing disturbed, and what it printed; tests only read it."""
  workdir, ended = shared / "uninterrupted", shared / "uninterrupted.json"
  with filelock.FileLock(shared / "uninterrupted.lock"):
    if not ended.exists():  # the first worker that wants it makes it
      made = runs.run(runs.command(workdir), environment)
      ended.write_text(json.dumps([made.args, made.returncode, made.stdout, made.stderr]))
  finished = subprocess.CompletedProcess(*json.loads(ended.read_text()))
  assert finished.returncode == 0, finished.stderr[-3000:]
  return workdir, finished
