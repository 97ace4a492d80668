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
from pasmr_jax.parallel import processes
texts = {TEXTS!r}
mine = processes.process_index()
print(json.dumps([
  processes.global_max(3 + mine),
  [processes.gather_text(text if mine else f"{{mine}}") for text in texts],
]))
"""


def test_one_process_has_its_own_text():
  assert processes.gather_text("ja\n") == ["ja\n"]


@pytest.mark.slow
def test_two_processes_have_each_others_texts():
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  said = runs.run_two_processes([sys.executable, "-c", TALK], environment, timeout=120)
  for text in said:
    largest, gathered = json.loads(text.strip().splitlines()[-1])
    assert largest == 4
    assert gathered == [["0", text] for text in TEXTS]
