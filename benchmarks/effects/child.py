"""Becomes another program, which the system asks to stop when the one that started it is gone.

    python child.py PARENT CORE COMMAND ...

PARENT is the process that started it, CORE the one processor core it may use, '' for all. A study
that is killed (`kill -9`) cannot stop what it runs, and that would hold its work directory. Only
Linux can do this; elsewhere the program goes on. Python's own way, a function between fork and
exec, is not safe in a process with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h; outlives exec


def main(parent: str, core: str, *command: str) -> None:
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # gone before it was asked for
      sys.exit("the program that started this one is gone")
  if core and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(core)})
  os.execv(command[0], command)


if __name__ == "__main__":
  main(*sys.argv[1:])
