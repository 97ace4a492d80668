"""A hub that is absent or silent: a clear error in bounded time, or the local cache.

A hub that answers wrongly needs a program of its own: `python -m benchmarks.faults hub`.
"""

import contextlib
import fnmatch
import json
import socket
import threading
import time

import huggingface_hub
import huggingface_hub.constants
import pytest

from pasmr_jax.data.questions import read_questions
from pasmr_jax.models.hugging_face import find_folder
from pasmr_jax.models.pretrained import load_config
from pasmr_jax.text import hub
from pasmr_jax.text.vocabularies import read_vocabulary
from tests.faults.test_hostile_files import CONFIG

pytestmark = pytest.mark.faults


def _drip(server: socket.socket) -> None:
  """Answers each caller a byte at a time, for ever: no wait for the next byte is long."""

  def answer(caller: socket.socket) -> None:
    with contextlib.suppress(OSError), caller:
      while True:
        caller.sendall(b"H")
        time.sleep(0.05)

  with contextlib.suppress(OSError):  # the server is closed
    while True:
      threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


@pytest.fixture(params=["nobody listens", "a server that says nothing", "one byte at a time"])
def dead(request, tmp_path, monkeypatch):
  """A hub that gives nothing, and an empty cache."""
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    if request.param != "nobody listens":
      server.listen()
    if request.param == "one byte at a time":
      threading.Thread(target=_drip, args=(server,), daemon=True).start()
    monkeypatch.setattr(
      huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    yield tmp_path


def test_it_is_told_what_was_asked_for_and_why_it_is_not_there(dead):
  start = time.monotonic()
  with pytest.raises(FileNotFoundError, match=r"owner/model@v2: the hub does not give") as raised:
    load_config("owner/model@v2")
  assert "127.0.0.1" in str(raised.value)
  with pytest.raises(ValueError, match=r"tokenizer owner/model@v2: .*the hub does not give"):
    read_vocabulary("owner/model@v2")
  with pytest.raises(ValueError, match=r"owner/data \(default, train\): datasets cannot load it: "):
    read_questions(
      "owner/data", "huggingface", "de", {"text": "question"}, solutions=False, answers=False
    )
  assert time.monotonic() - start < 15


def test_the_cache_is_used_if_it_suffices(dead):
  repository = dead / "models--owner--model"
  folder = repository / "snapshots" / ("a" * 40)
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(CONFIG))
  (repository / "refs").mkdir()
  (repository / "refs" / "v2").write_text("a" * 40)
  assert load_config("owner/model@v2").embed_dim == 16
  with pytest.raises(FileNotFoundError, match="owner/model@v3: the hub does not give"):
    load_config("owner/model@v3")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a/b", "/a/b", "~/a"])
def test_what_is_no_hub_id_is_not_asked_for(name):
  with pytest.raises(FileNotFoundError, match="it is not a hub id"):
    hub.snapshot(name, ["*"])


@pytest.mark.parametrize("indexed", [False, True])
def test_of_several_layouts_only_the_one_that_is_read_is_fetched(tmp_path, monkeypatch, indexed):
  """Mistral's hub ids hold the model a second time, as consolidated.safetensors."""
  model = ["model-1.safetensors", "model-2.safetensors"] if indexed else ["model.safetensors"]
  kept = {"config.json", *model}
  index = json.dumps({"weight_map": {f"tensor of {file}": file for file in model}})
  remote = dict.fromkeys([*kept, "consolidated.safetensors"], "{}")
  if indexed:
    kept.add("model.safetensors.index.json")
    remote["model.safetensors.index.json"] = index

  def snapshot_download(name, allow_patterns, **_):
    for file, text in remote.items():
      if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
        (tmp_path / file).write_text(text)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  assert find_folder("owner/model", weights=True) == tmp_path
  assert {file.name for file in tmp_path.iterdir()} == kept
