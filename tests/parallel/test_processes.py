"""What processes tell each other, told by two real ones."""

import json
import os
import sys

import pytest

from pasmr_jax.parallel import processes
from tests import runs

TEXTS = ["", "one line\nand another: ০৫ 。", "x" * 5000]
TALK = f"""
import json
from pasmr_jax.parallel.mesh import initialize_distributed
initialize_distributed()
import jax
import numpy as np
from pasmr_jax.parallel import processes
texts = {TEXTS!r}
mine = processes.process_index()
compiled = []
def listen(event, duration, **about):
  if event == "/jax/core/compile/backend_compile_duration":
    compiled.append(about)
told = [
  processes.global_max(3 + mine),
  processes.global_sum(3_000_000_000 + mine),
  [processes.gather_text(text if mine else f"{{mine}}") for text in texts],
  processes.gather_rows(np.arange(3 + mine)).tolist(),
  processes.global_means({{"a": [1.0] * mine, "b": [mine], "none": []}}),
]
jax.monitoring.register_event_duration_secs_listener(listen)
for length in range(4100, 4200, 9):
  processes.gather_text("x" * (length - mine))
for rows in (3, 4):
  processes.gather_rows(np.arange(rows))
print(json.dumps([*told, len(compiled)]))
"""


def test_one_process_has_its_own_text():
  assert processes.gather_text("ja\n") == ["ja\n"]


@pytest.mark.slow
def test_two_processes_have_each_others_texts():
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  said = runs.run_two_processes([sys.executable, "-c", TALK], environment, timeout=120)
  for text in said:
    largest, total, gathered, rows, means, compiled = json.loads(text.strip().splitlines()[-1])
    assert largest == 4
    assert total == 6_000_000_001
    assert gathered == [["0", text] for text in TEXTS]
    assert rows == [0, 1, 2, 0, 1, 2, 3]
    assert means == {"a": 1.0, "b": 0.5}
    assert compiled == 0  # other lengths are no other programs


ROWS = """
import json
from pasmr_jax.parallel.mesh import initialize_distributed
initialize_distributed()
import jax
import numpy as np
from pasmr_jax.parallel import mesh as meshes, processes
try:
  refused = ""
  meshes.make_mesh(-1, 4)
except ValueError as error:
  refused = str(error)
mesh = meshes.make_mesh(-1, 2)
mine = 10 * processes.process_index() + np.arange(3)
rows = meshes.shard_batch(mine, mesh)
with jax.set_mesh(mesh):
  total = int(jax.jit(lambda rows: rows.sum(), out_shardings=meshes.replicated(mesh))(rows))
shared = jax.sharding.Mesh(mesh.devices.swapaxes(1, 2), meshes.AXES)
try:
  shared_rows = meshes.shard_batch(mine, shared).shape
except ValueError as error:
  shared_rows = "refused"
print(json.dumps([refused, rows.shape, total, meshes.local_rows(rows).tolist(), shared_rows]))
"""


@pytest.mark.slow
def test_rows_of_two_processes_are_a_batch_on_a_mesh_of_tensor_groups():
  flags = "--xla_force_host_platform_device_count=2"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  said = runs.run_two_processes([sys.executable, "-c", ROWS], environment, timeout=120)
  for number, text in enumerate(said):
    refused, shape, total, own, shared = json.loads(text.strip().splitlines()[-1])
    assert refused.startswith("mesh.tensor: found 4, expected a divisor of the 2 devices of each")
    assert (shape, total) == ([6], 3 + 33)
    assert own == [10 * number + row for row in range(3)]
    # On devices that are shared across processes JAX alone would make a batch of 3 rows.
    assert shared == "refused"
