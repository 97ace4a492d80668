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
    largest, total, gathered, rows, compiled = json.loads(text.strip().splitlines()[-1])
    assert largest == 4
    assert total == 6_000_000_001
    assert gathered == [["0", text] for text in TEXTS]
    assert rows == [0, 1, 2, 0, 1, 2, 3]
    assert compiled == 0  # other lengths are no other programs
