"""What processes tell each other, told by two real ones."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from pasmr_jax.parallel import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  running = [
    subprocess.Popen(
      [sys.executable, "-c", TALK],
      cwd=ROOT,
      env=os.environ
      | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(number),
      },
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in (0, 1)
  ]
  said = [process.communicate(timeout=120)[0] for process in running]
  assert [process.returncode for process in running] == [0, 0]
  for text in said:
    largest, gathered = json.loads(text.strip().splitlines()[-1])
    assert largest == 4
    assert gathered == [["0", text] for text in TEXTS]
