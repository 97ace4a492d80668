"""A hub that is absent, silent, slow or wrong: what is said, and how soon.

Asked are a model's configuration, its tokenizer and a data set.

Each case is a program of its own: the hub's address is read once.
"""

import argparse
import contextlib
import http.server
import os
import pathlib
import socketserver
import subprocess
import sys
import threading
import time
from typing import Any

from tests.runs import ROOT

PROGRAM = """
import time
from pasmr_jax.data.questions import read_questions
from pasmr_jax.models.pretrained import load_config
from pasmr_jax.text.vocabularies import read_vocabulary
def read_data(name):
  read_questions(
    name.partition("@")[0], "huggingface", "de", {"text": "q"}, solutions=False, answers=False
  )
for read in (load_config, read_vocabulary, read_data):
  start = time.monotonic()
  try:
    read("owner/model@v2")
  except (OSError, ValueError) as error:
    said = str(error).replace(chr(10), " ")
    print(f"{time.monotonic() - start:.1f}\\t{said}")
"""
BOUND = 60.0  # seconds


class Silent(socketserver.BaseRequestHandler):
  """Takes a connection and never answers."""

  def handle(self):
    time.sleep(600)


class Slow(socketserver.BaseRequestHandler):
  """Answers a byte a second."""

  def handle(self):
    with contextlib.suppress(OSError):
      for byte in b"HTTP/1.1 200 " + b"O" * 600:
        self.request.sendall(bytes([byte]))
        time.sleep(1)


class Wrong(http.server.BaseHTTPRequestHandler):
  """Knows no model."""

  def do_GET(self):
    self.send_response(404)
    self.send_header("X-Error-Code", "RevisionNotFound")
    self.end_headers()

  do_HEAD = do_GET

  def log_message(self, format, *arguments):
    """Nothing."""


CASES = (("no network", None), ("silent", Silent), ("slow", Slow), ("wrong revision", Wrong))


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  seen = []
  for case, handler in CASES:
    server = handler and socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    port = 9  # nobody listens at the discard port
    if server:
      server.daemon_threads = True
      port = server.server_address[1]
      threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
      "HF_ENDPOINT": f"http://127.0.0.1:{port}",
      "HF_HOME": str(folder / "cache"),
      "JAX_PLATFORMS": "cpu",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    ended = subprocess.run(
      [sys.executable, "-c", PROGRAM],
      env=environment,
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=900,
      check=True,
    )
    told = [line.split("\t") for line in ended.stdout.splitlines()]
    for what, (seconds, said) in zip(("config", "tokenizer", "data set"), told, strict=True):
      assert "owner/model" in said
      assert float(seconds) < BOUND, (case, what, seconds)
      seen.append({"hub": case, "asked": what, "seconds": float(seconds), "said": said})
    if server:
      server.shutdown()
  return {"cases": seen}
