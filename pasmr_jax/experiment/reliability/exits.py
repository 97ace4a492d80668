"""How a training run ends: an exit code for each way, and no way that takes for ever.

  0   all stages are trained and tested
  1   an error, which the last lines name
 70   training itself went wrong: not finite, or collapsed (guard.*)
 74   the disk is full or broken
 75   stopped because it was asked to; the same command goes on
 76   another process does not answer, or a step takes too long
128+n a second signal n
"""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

from pasmr_jax.experiment.reliability.guard import GuardError
from pasmr_jax.experiment.reliability.stopping import EXIT_GUARD, EXIT_STORAGE, Stopped
from pasmr_jax.experiment.reliability.storage import StorageError, writing
from pasmr_jax.parallel import processes


@contextlib.contextmanager
def told(folder: pathlib.Path) -> Iterator[None]:
  """Around a program that writes to `folder`: says what ended it and gives the exit code."""
  try:
    with writing(folder):
      yield
  except Stopped as stopped:
    processes.say(f"saved {stopped.saved}; the same command goes on")
    raise
  except (StorageError, GuardError) as error:
    print(error, file=sys.stderr, flush=True)
    _leave(EXIT_STORAGE if isinstance(error, StorageError) else EXIT_GUARD)
  except Exception:
    if processes.process_count() == 1:
      raise
    traceback.print_exc()
    _leave(1)


def _leave(code: int) -> None:
  # Leaving in order waits for the other processes, and they wait for this one.
  if processes.process_count() > 1:
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
