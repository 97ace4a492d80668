"""Metrics: what is written, what a resumed run takes back, the stop on a number that is none."""

import json

import pytest

from configs import base as base_config
from pasmr_jax.experiment.metrics import Metrics, NonFiniteError, Timer, without_measured

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
  assert _lines(tmp_path) == []


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_number_that_is_none_stops_the_run_after_it_is_written(metrics, tmp_path, name):
  with pytest.raises(NonFiniteError, match=f"pam step 3: {name} is nan"):
    metrics.write("pam", 3, {name: float("nan")})
  assert "NaN" in (tmp_path / "metrics.jsonl").read_text()


def test_times_are_set_apart():
  timer = Timer()
  timer.lap("batch")
  timer.lap("update")
  found = timer.measured({"trained_tokens": 10, "time/rollout": 0.0})
  assert found["time/step"] >= found["time/update"] > 0
  assert found["time_share/rollout"] == 0
  assert found["throughput/update_tokens_per_second"] == pytest.approx(10 / found["time/update"])
  assert without_measured(found | {"loss": 1}) == {"loss": 1}
