"""A full disk: what was there stays there, and the message names path, bytes and room."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pasmr_jax.experiment.reliability import record
from pasmr_jax.experiment.reliability.storage import StorageError, json_line, write_whole, writing

pytestmark = pytest.mark.faults

# In a mount namespace of its own: a disk of 64 kilobytes, with what a run writes.
INSIDE = """
import json, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", folder], check=True)
from configs import base
from pasmr_jax.experiment.metrics import Metrics
from pasmr_jax.experiment.reliability.storage import StorageError, write_whole
write_whole(folder / "kept.json", "{}")
config = base.log()
config.progress = False
said = []
with Metrics(folder, ("pam",), config) as metrics:
  try:
    for step in range(1, 10_000):
      metrics.write("pam", step, {"loss": 0.5, "x" * 100: step})
  except StorageError as error:
    said.append(str(error))
try:
  write_whole(folder / "kept.json", "x" * 100_000)
except StorageError as error:
  said.append(str(error))
assert (folder / "kept.json").read_text() == "{}"
(folder / "kept.json.partial").unlink()
subprocess.run(["mount", "-o", "remount,size=1m", folder], check=True)
with Metrics(folder, ("pam",), config) as metrics:
  metrics.rewind("pam", step)
  metrics.write("pam", step + 1, {"loss": 0.5})
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
steps = [line["step"] for line in lines]
print(json.dumps({"said": said, "steps": steps, "failed": step}))
"""


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path):
  import json

  command = ["unshare", "--user", "--mount", "--map-root-user", sys.executable, "-c", INSIDE]
  done = subprocess.run(
    [*command, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
  )
  if "unshare" in done.stderr and done.returncode == 1:
    pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
  assert done.returncode == 0, done.stderr[-2000:]
  seen = json.loads(done.stdout)
  metrics, whole = seen["said"]
  assert str(tmp_path) in metrics
  assert "No space left on device" in metrics
  assert "kept.json" in whole
  assert "cannot write 100,000 bytes" in whole
  assert "of 65,536 bytes are free" in whole
  failed = seen["failed"]
  assert seen["steps"] in ([*range(1, failed), failed + 1], [*range(1, failed + 2)])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_errors_of_a_disk_get_a_name(tmp_path, number):
  with pytest.raises(StorageError) as raised, writing(tmp_path / "x", 1234):
    raise OSError(number, os.strerror(number))
  assert raised.value.filename == str(tmp_path / "x")
  assert f"cannot write 1,234 bytes: {os.strerror(number)}" in str(raised.value)
  assert "bytes are free" in str(raised.value)


def test_the_room_is_that_of_the_disk_of_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(
    "shutil.disk_usage", lambda place: SimpleNamespace(free=len(place.parts), total=9)
  )
  full = tmp_path / "deep" / "cache"
  full.mkdir(parents=True)
  error = OSError(errno.ENOSPC, "No space left on device", str(full / "model.safetensors"))
  said = f"; {len(full.parts)} of 9 bytes are free: .*/model.saf"
  with pytest.raises(StorageError, match=said), writing(tmp_path, 1):
    raise error


def test_what_cannot_be_read_is_not_said_to_be_written(tmp_path):
  said = "cannot read or write: Input/output error"
  with pytest.raises(StorageError, match=said), writing(tmp_path):
    raise OSError(errno.EIO, "Input/output error", "/data/questions.json")


def test_a_librarys_own_error_of_a_full_disk_is_one(tmp_path):
  with pytest.raises(StorageError, match="cannot write 5 bytes"), writing(tmp_path / "a" / "b", 5):
    raise RuntimeError("INTERNAL: write failed [OS error: No space left on device]")


def test_other_errors_stay_what_they_are(tmp_path):
  with pytest.raises(KeyError), writing(tmp_path, 1):
    raise KeyError("x")
  with pytest.raises(FileNotFoundError), writing(tmp_path, 1):
    (tmp_path / "nowhere").read_text()


def test_a_whole_file_takes_the_place_of_another_only_when_it_is_whole(tmp_path):
  write_whole(tmp_path / "new" / "x", "one")
  write_whole(tmp_path / "new" / "x", "two")
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]
  assert (tmp_path / "new" / "x").read_text() == "two"


def test_a_line_is_text_for_any_terminal():
  line = json_line({"a": "\x9b31m\u202eabc\u2028\ud800é\n"})
  assert line == '{"a": "\\u009b31m\\u202eabc\\u2028\\ud800é\\n"}'


SECRETS = (
  "https://user:hunter2@example.org/x.git",
  "hf_abcdefghijklmnopqrstuv",
  "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
  "AKIAABCDEFGHIJKLMNOP",
)


def test_what_looks_like_a_secret_is_not_recorded():
  cleaned = record.without_secrets({"command": list(SECRETS), "deep": {"x": SECRETS[0]}, "n": 3})
  text = repr(cleaned)
  assert "hunter2" not in text
  assert not any(secret in text for secret in SECRETS)
  assert cleaned["n"] == 3
  assert "example.org/x.git" in text


def test_only_variables_of_the_libraries_are_recorded():
  found = record._environment(
    {"XLA_FLAGS": "--a", "HF_TOKEN": "t", "JAX_API_KEY": "k", "HOME": "/x", "JAX_PLATFORMS": "cpu"}
  )
  assert found == {"XLA_FLAGS": "--a", "JAX_PLATFORMS": "cpu"}


def test_a_distribution_that_says_nothing_is_no_package(tmp_path, monkeypatch):
  (tmp_path / "foo-1.0.dist-info").mkdir()
  monkeypatch.syspath_prepend(str(tmp_path))
  found = record._packages()
  assert "numpy" in found
  assert list(found) == sorted(found)
