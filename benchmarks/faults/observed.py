"""Runs a program and samples what it holds: memory of host and device, handles, compilations.

    python observed.py SAMPLES SECONDS METRICS PROGRAM ARGUMENTS...

Appends a JSON line to SAMPLES every SECONDS, and one for each program that is traced or compiled;
each says at which stage and step of METRICS, the run's metrics.jsonl, it was. Tracing and compiling
are told by JAX's own events; a program that the compilation cache has is compiled all the same.
"""

import ctypes
import json
import os
import pathlib
import runpy
import sys
import threading
import time
from typing import Any

EVENTS = {
  "/jax/core/compile/jaxpr_trace_duration": "traced",
  "/jax/core/compile/backend_compile_duration": "compiled",
}
_TAIL = 20_000  # bytes: more than two lines of metrics


def main() -> None:
  samples, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
  metrics, program = pathlib.Path(sys.argv[3]), sys.argv[4]
  sys.argv = sys.argv[4:]
  sys.path[0] = os.path.dirname(os.path.abspath(program))

  import jax

  counts = dict.fromkeys(EVENTS.values(), 0)
  start = time.monotonic()
  writing = threading.Lock()

  def write(line: dict[str, Any]) -> None:
    line = {"seconds": time.monotonic() - start, **place(metrics), **line}
    with writing, samples.open("a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")

  def listen(event: str, duration: float, **about: Any) -> None:
    if event in EVENTS:
      counts[EVENTS[event]] += 1
      write({"event": EVENTS[event], "name": str(about.get("fun_name")), "took": duration})

  def sample() -> None:
    while True:
      time.sleep(seconds)
      write(
        {
          "cpu_seconds": time.process_time(),
          **_host(),
          "device_bytes": _device_bytes(jax),
          "handles": len(os.listdir("/proc/self/fd")),
          "threads": threading.active_count(),
          **counts,
        }
      )

  jax.monitoring.register_event_duration_secs_listener(listen)
  threading.Thread(target=sample, daemon=True).start()
  runpy.run_path(program, run_name="__main__")


def place(metrics: pathlib.Path) -> dict[str, Any]:
  """Stage and step of the last whole line; nothing if there is none yet."""
  if not metrics.exists():
    return {"stage": None, "step": 0}
  with metrics.open("rb") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    lines = file.read().split(b"\n")[:-1]
  if not lines:
    return {"stage": None, "step": 0}
  last = json.loads(lines[-1])
  return {"stage": last["stage"], "step": last["step"]}


def _host() -> dict[str, int]:
  """Memory of the process's own, and with what it has of files: a system may take those back.

  What the process has freed and its allocator keeps is given back first, where that can be done: it
  comes and goes by megabytes, which would hide a few kilobytes a step.
  """
  if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
    trim(0)
  status = pathlib.Path("/proc/self/status").read_text("utf-8")
  found = {line.partition(":")[0]: line.split()[1:2] for line in status.splitlines()}
  return {
    "host_kb": sum(int(found[name][0]) for name in ("RssAnon", "VmSwap")),
    "resident_kb": int(found["VmRSS"][0]),
    "python_blocks": sys.getallocatedblocks(),
  }


def _device_bytes(jax: Any) -> int:
  """What the first device's allocator says, or, where it says nothing, of all arrays that live."""
  told = jax.local_devices()[0].memory_stats() or {}
  return told.get("bytes_in_use") or sum(array.nbytes for array in jax.live_arrays())


if __name__ == "__main__":
  main()
