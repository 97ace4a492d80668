"""Eight CPU devices before jax starts, and the real data if it lies beside the checkout."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles hundreds of small programs and runs each a few times: cheap code is quicker.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The real question sets; skips where they are absent."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("the real question sets are not at ../shared/data")
  return folder
