"""Damaged checkpoints: found by checksum, put aside, and the one before them is used."""

import dataclasses
import errno
import gc
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest

from configs import base as base_config
from pasmr_jax.experiment.checkpoint import Checkpoints, Progress
from pasmr_jax.experiment.reliability import checksums
from pasmr_jax.experiment.reliability.recovery import DamagedCheckpointError, recover, steps_in
from pasmr_jax.learning.update import Learner
from pasmr_jax.models.transformer import init_params
from tests.small_model import MODEL

# Where a restore fails Orbax leaves reads unfinished, which complain when they are collected.
pytestmark = [
  pytest.mark.faults,
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = (3, 5, 9)


@pytest.fixture(autouse=True)
def collected():
  """Collects them while they are known of, not in a test of another file."""
  yield
  gc.collect()


@pytest.fixture(scope="module")
def state():
  params = jax.jit(lambda key: init_params(MODEL, key))(jax.random.key(3))
  return Learner(MODEL, optax.adamw(1e-3), valid_vocab=32).init(params)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory) -> pathlib.Path:
  """A work directory with three checkpoints of one stage."""
  workdir = tmp_path_factory.mktemp("saved")
  with _open(workdir) as checkpoints:
    for step in STEPS:
      scaled = jax.tree.map(lambda x, step=step: jnp.full_like(x, step), state.params)
      here = state.replace(step=jnp.int32(step), params=scaled)
      checkpoints.save(here, {"position": step}, Progress(), MODEL, step / 10)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy that a test may damage; nothing in it has been compared yet."""
  checksums._SOUND.clear()
  shutil.copytree(saved, tmp_path / "run")
  return tmp_path / "run"


def _open(workdir, read_only=False):
  config = base_config.checkpoint()
  config.keep = len(STEPS)
  return Checkpoints(workdir, "pam", config, read_only=read_only)


def _folder(workdir) -> pathlib.Path:
  return workdir / "checkpoints" / "pam"


def _sealed_files(workdir) -> list[pathlib.Path]:
  newest = _folder(workdir) / str(STEPS[-1])
  items = [path for item in ("params", "rest", "record") for path in (newest / item).rglob("*")]
  return [newest / "seal" / "checksums.json", *sorted(path for path in items if path.is_file())]


def _flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  place = random.Random(path.name).randrange(len(data))
  data[place] ^= 1 << place % 8
  path.write_bytes(data)


DAMAGES = {
  "flipped": _flip,
  "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
  "emptied": lambda path: path.write_bytes(b""),
  "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_to_each_file_is_found_and_the_previous_checkpoint_used(workdir, damage):
  newest, aside = _folder(workdir) / "9", workdir / "damaged" / "pam" / "9"
  files = [path.relative_to(newest) for path in _sealed_files(workdir)]
  assert len(files) >= 20
  for file in files:
    whole = (newest / file).read_bytes()
    DAMAGES[damage](newest / file)
    checksums._SOUND.clear()
    (warning,) = recover(_folder(workdir))
    assert f"{newest} is damaged" in warning
    assert file.as_posix() in warning or file.name == "checksums.json"
    assert warning.endswith("going on from step 5")
    assert steps_in(_folder(workdir)) == [3, 5]
    aside.rename(newest)  # it was put aside, not deleted
    (newest / file).write_bytes(whole)
  checksums._SOUND.clear()
  assert recover(_folder(workdir)) == []


def test_a_seal_that_the_disk_does_not_give_is_damage(workdir, monkeypatch):
  read = pathlib.Path.read_text

  def broken(path, *arguments, **keywords):
    if path.match("pam/9/seal/checksums.json"):
      raise OSError(errno.EIO, "Input/output error", str(path))
    return read(path, *arguments, **keywords)

  monkeypatch.setattr(pathlib.Path, "read_text", broken)
  (warning,) = recover(_folder(workdir))
  assert "seal/checksums.json cannot be read (OSError)" in warning
  assert warning.endswith("going on from step 5")


UNSEALED = ("metrics/metrics", "_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", UNSEALED)
def test_damage_to_a_file_outside_the_seal_is_found_or_does_not_matter(
  workdir, state, damage, name
):
  newest = _folder(workdir) / "9"
  sealed = {path.relative_to(newest).as_posix() for path in _sealed_files(workdir)}
  found = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
  # Those, and the empty files by which Orbax says that an item is complete, are all there are.
  assert {one for one in found - sealed if not one.endswith("/commit_success.txt")} == set(UNSEALED)
  if (newest / name).stat().st_size == 0 and damage in ("flipped", "truncated", "emptied"):
    return
  DAMAGES[damage](newest / name)
  warnings = recover(_folder(workdir))
  expected = 5 if warnings else 9
  assert (name == "metrics/metrics") == bool(warnings)
  with _open(workdir) as checkpoints:
    restored, data, _ = checkpoints.restore(state, MODEL)
    assert (int(restored.step), data) == (expected, {"position": expected})
    assert float(restored.params["embedding"][0, 0]) == expected
    assert checkpoints.find("best") == expected


def test_a_checkpoint_whose_arrays_are_of_another_size_than_it_says_is_refused(tmp_path, state):
  other = dataclasses.replace(MODEL, mlp_dim=64)
  params = jax.jit(lambda key: init_params(other, key))(jax.random.key(3))
  larger = Learner(other, optax.adamw(1e-3), valid_vocab=32).init(params)
  with _open(tmp_path) as checkpoints:
    checkpoints.save(larger.replace(step=jnp.int32(1)), {}, Progress(), MODEL, None)
  with _open(tmp_path) as checkpoints, pytest.raises(ValueError, match="shape"):
    checkpoints.restore(state, MODEL)


def test_the_run_goes_on_from_the_previous_one_and_saves_the_step_anew(workdir, state):
  _flip(_sealed_files(workdir)[1])
  recover(_folder(workdir))
  with _open(workdir) as checkpoints:
    restored, data, _ = checkpoints.restore(state, MODEL)
    assert (int(restored.step), data) == (5, {"position": 5})
    assert float(restored.params["embedding"][0, 0]) == 5
    checkpoints.save(state.replace(step=jnp.int32(9)), {}, Progress(), MODEL, 0.4)
  assert recover(_folder(workdir)) == []
  assert steps_in(_folder(workdir)) == [3, 5, 9]


def test_several_damaged_ones_are_passed_over(workdir):
  for step in ("9", "5"):
    (_folder(workdir) / step / "record" / "metadata").write_text("{")
  warnings = recover(_folder(workdir))
  assert len(warnings) == 2
  assert all(warning.endswith("going on from step 3") for warning in warnings)


def test_none_that_can_be_used_is_an_error_and_nothing_is_touched(workdir):
  for step in STEPS:
    shutil.rmtree(_folder(workdir) / str(step) / "rest")
  before = sorted(path.as_posix() for path in workdir.rglob("*"))
  with pytest.raises(DamagedCheckpointError) as raised:
    recover(_folder(workdir))
  assert "nothing was deleted or moved" in str(raised.value)
  assert all(f"{step}: rest/ is missing" in str(raised.value) for step in STEPS)
  assert sorted(path.as_posix() for path in workdir.rglob("*")) == before


@pytest.mark.parametrize("left", [("record",), ("params", "rest"), ()])
def test_a_folder_that_was_half_written_or_half_deleted_is_none(workdir, left):
  half = _folder(workdir) / "12"
  half.mkdir()
  for item in left:
    shutil.copytree(_folder(workdir) / "9" / item, half / item)
  (warning,) = recover(_folder(workdir))
  assert "12 is damaged" in warning
  assert warning.endswith("going on from step 9")


def test_an_older_checkpoint_whose_measurement_is_broken_does_not_stop_the_run(workdir, state):
  (_folder(workdir) / "3" / "metrics" / "metrics").write_text('{"metric": ')
  (warning,) = recover(_folder(workdir))
  assert "3 is damaged (metrics/metrics cannot be read)" in warning
  assert warning.endswith("going on from step 9")
  with _open(workdir) as checkpoints:
    assert checkpoints.find("best") == 9


def test_a_reader_passes_damaged_ones_over_and_leaves_them(workdir, capfd):
  _flip(_sealed_files(workdir)[1])
  checkpoints = _open(workdir, read_only=True)
  assert checkpoints.find("last") == 5
  assert "checkpoint" in (said := capfd.readouterr().err)
  assert "using step 5" in said
  with pytest.raises(DamagedCheckpointError, match="9 is damaged"):
    checkpoints.find("9")
  with pytest.raises(DamagedCheckpointError, match="9 is damaged"):
    checkpoints.find("best")
  assert steps_in(_folder(workdir)) == list(STEPS)


def test_a_checkpoint_without_a_seal_is_one_of_an_older_version(workdir):
  newest = _folder(workdir) / "9"
  shutil.rmtree(newest / "seal")
  (warning,) = recover(_folder(workdir))  # its record says that it had one
  assert "seal/ is missing" in warning
  record = _folder(workdir) / "5" / "record" / "metadata"
  record.write_text(record.read_text().replace('"sealed": true', '"sealed": false'))
  shutil.rmtree(_folder(workdir) / "5" / "seal")
  checksums._SOUND.clear()
  assert recover(_folder(workdir)) == []


def test_what_a_killed_save_left_goes_when_the_stage_is_opened(workdir, state):
  left = _folder(workdir) / "12.orbax-checkpoint-tmp"
  shutil.copytree(_folder(workdir) / "9", left)
  assert recover(_folder(workdir)) == []
  with _open(workdir) as checkpoints:
    assert checkpoints.steps() == list(STEPS)
    checkpoints.save(state.replace(step=jnp.int32(12)), {}, Progress(), MODEL, None)
  assert not left.exists()
