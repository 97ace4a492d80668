"""Metrics: what is written, and what a resumed run takes back."""

import json

import pytest

from configs import base as base_config
from pasmr_jax.experiment.metrics import Metrics, Timer, without_measured

STAGES = ("pam", "srl")


@pytest.fixture
def metrics(tmp_path):
  config = base_config.log()
  config.progress = False
  with Metrics(tmp_path, STAGES, config) as opened:
    yield opened


def _lines(folder, name="metrics.jsonl"):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_line_a_step(metrics, tmp_path):
  metrics.write("pam", 1, {"loss": 0.5, "count": 3})
  metrics.write_rollouts("srl", 1, [{"question": "শুরু"}])
  assert _lines(tmp_path) == [{"stage": "pam", "step": 1, "loss": 0.5, "count": 3}]
  assert _lines(tmp_path, "rollouts.jsonl")[0]["question"] == "শুরু"
  assert list((tmp_path / "tensorboard").iterdir())


def test_rewind_takes_back_what_follows_the_checkpoint_and_a_torn_line(metrics, tmp_path):
  for stage, step in (("pam", 1), ("pam", 2), ("srl", 1), ("srl", 2), ("srl", 3)):
    metrics.write(stage, step, {"loss": step})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "srl", "step": 4, "lo')
  metrics.rewind("srl", 2)
  kept = [(line["stage"], line["step"]) for line in _lines(tmp_path)]
  assert kept == [("pam", 1), ("pam", 2), ("srl", 1), ("srl", 2)]
  metrics.rewind("pam", 0)
  assert [line["stage"] for line in _lines(tmp_path)] == ["srl", "srl"]


def test_an_earlier_stage_that_is_trained_again_takes_its_place(metrics, tmp_path):
  for stage, step in (("pam", 1), ("pam", 2), ("srl", 1), ("srl", 2)):
    metrics.write(stage, step, {"loss": step})
  expected = (tmp_path / "metrics.jsonl").read_bytes()
  metrics.rewind("pam", 1)
  metrics.write("pam", 2, {"loss": 2})
  metrics.rewind("srl", 2)
  assert (tmp_path / "metrics.jsonl").read_bytes() == expected


def test_a_line_that_is_none_is_left_out_and_told(metrics, tmp_path, capsys):
  metrics.write("pam", 1, {"loss": 1})
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(b"\0" * 40 + b'\n[1]\n{"stage": "pam"}\n\xff\n')
  metrics.write("pam", 2, {"loss": 2})
  metrics.rewind("pam", 2)
  assert [line["step"] for line in _lines(tmp_path)] == [1, 2]
  said = capsys.readouterr().err
  assert [f"metrics.jsonl:{number}: no line of metrics" in said for number in range(1, 7)] == [
    False, True, True, True, True, False
  ]  # fmt: skip


def test_tensorboard_has_what_metrics_have_after_a_resume(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  config = base_config.log()
  config.progress = False
  for first in (0, 2, 3):  # killed twice, with a line more than the checkpoint
    opened = Metrics(tmp_path, STAGES, config)
    opened.rewind("pam", first)
    for step in range(first + 1, first + 4):
      opened.write("pam", step, {"loss": step, "kl": float("nan")})
    opened.__exit__()
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, found = path.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + length])
    found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    data = data[16 + length :]
  assert found == [("pam/loss", step, step) for step in range(1, 7)]


def test_times_are_set_apart():
  timer = Timer()
  timer.lap("batch")
  timer.lap("update")
  seen = {"trained_tokens": 10, "time/rollout": 0.0}
  found = timer.measured(seen)
  assert found["time/step"] >= found["time/update"] > 0
  assert found["time_share/rollout"] == 0
  assert found["throughput/update_tokens_per_second"] == pytest.approx(10 / found["time/update"])
  found = timer.measured(seen | {"learned_tokens": 30})  # with rehearsal, in several updates
  assert found["throughput/update_tokens_per_second"] == pytest.approx(30 / found["time/update"])
  assert without_measured(found | {"loss": 1}) == {"loss": 1}
