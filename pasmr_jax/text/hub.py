"""Files of a Hugging Face hub id: from the hub if it answers, else from the local cache.

The hub's own client waits without a limit for a server that takes a connection and says nothing, so
whether it answers is asked first. So does any client for one that sends a byte now and then: a
thread asks, and is left behind.
"""

import http.client
import pathlib
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence

PATIENCE = 10.0  # seconds for the hub to answer


def snapshot(path: str, patterns: Sequence[str]) -> pathlib.Path:
  """The local folder of `owner/name` or `owner/name@revision` with the files that match.

  Raises:
    FileNotFoundError: the path is no hub id; or the hub does not give the files, and the local
      cache has not all of them.
  """
  name, _, revision = path.partition("@")
  if name.count("/") != 1 or name.startswith((".", "/", "~")):
    raise FileNotFoundError(
      f"{path}: found no such folder, and it is not a hub id 'owner/name' or 'owner/name@revision'"
    )
  import huggingface_hub
  from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

  silent = silence()
  try:
    folder = huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      allow_patterns=list(patterns),
      local_files_only=bool(silent),
    )
  except (OSError, HfHubHTTPError, HFValidationError, RevisionResolutionError) as error:
    reason = silent or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    raise FileNotFoundError(
      f"{path}: the hub does not give this snapshot and the local cache has not all of it"
      f" ({reason}); check its name and revision, the network and your token, or name a folder that"
      " holds it"
    ) from error
  return pathlib.Path(folder)


def silence() -> str:
  """Why the hub does not answer; '' if it does, whatever it says, or if it is not to be asked."""
  import huggingface_hub
  from huggingface_hub.constants import ENDPOINT

  if huggingface_hub.is_offline_mode():
    return ""
  said: list[str] = []
  asking = threading.Thread(target=lambda: said.append(_asked(ENDPOINT)), daemon=True)
  asking.start()
  asking.join(PATIENCE)
  return said[0] if said else f"{ENDPOINT}: no answer within {PATIENCE:g} s"


def _asked(endpoint: str) -> str:
  """Why it does not answer, which may take for ever."""
  request = urllib.request.Request(f"{endpoint}/api/models?limit=1", method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=PATIENCE).close()
  except urllib.error.HTTPError as error:
    error.close()
  except (OSError, http.client.HTTPException) as error:
    return f"{endpoint}: {error}"
  return ""
