"""Runs a program and samples what it holds: memory of host and device, handles, compilations.

    python observed.py SAMPLES SECONDS PROGRAM ARGUMENTS...

Appends a JSON line to SAMPLES every SECONDS. Compilations are told by JAX's own events.
"""

import json
import os
import pathlib
import runpy
import sys
import threading
import time

COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
  samples, seconds, program = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
  sys.argv = sys.argv[3:]
  sys.path[0] = os.path.dirname(os.path.abspath(program))

  import jax

  compiled = 0

  def listen(event: str, duration: float, **_) -> None:
    nonlocal compiled
    compiled += event == COMPILED

  jax.monitoring.register_event_duration_secs_listener(listen)
  start = time.monotonic()

  def sample() -> None:
    while True:
      time.sleep(seconds)
      status = pathlib.Path("/proc/self/status").read_text("utf-8")
      resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
      line = {
        "seconds": time.monotonic() - start,
        "host_kb": int(resident.split()[1]),
        "device_bytes": sum(array.nbytes for array in jax.live_arrays()),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "compiled": compiled,
      }
      with samples.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

  threading.Thread(target=sample, daemon=True).start()
  runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
  main()
