"""Plans as text."""

from configs import tiny
from pasmr_jax.experiment.planning.table import advice, render, step_parts
from tests.experiment.planning.made_up import made_up


def test_a_report_says_what_fills_memory_and_what_a_step_takes():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(True)
  shares = step_parts(report)
  assert shares == [
    ("prefill", 0.5, 0.125),
    ("decode", 0.5, 0.125),
    ("srl update", 3.0, 0.75),
  ]
  text = render(report)
  assert "4 chips, fsdp=4 x tensor=1, 15.75 GiB" in text
  assert "1,000 parameters (published sizes of x)" in text
  assert "moments 9.00, parameters 4.00, logits 2.00" in text
  assert "One SRL step takes at least 4 s: prefill 12.5%" in text
  assert "--config.srl.microbatches=1" in text
  assert "It leaves out everything else" in text
  assert (
    "3 batches of 2 prompts, 1 calls of the decoder on 4 slots, and updates on 8 packed rows of 64"
    in text
  )
  assert advice(report, tiny.get_config()) == []
  supervised = report | {"programs": [report["programs"][1] | {"program": "pam update"}]}
  assert "SRL step" not in render(supervised)


def test_slices_and_what_was_not_compiled_are_said():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(False, mesh=(2, 4, 1))
  assert "2 slices of v5e:2x2: 8 chips, replica=2 x fsdp=4 x tensor=1" in render(report)
  report["programs"][1]["compiled"] = False
  assert "at least 0.50 over" in render(report)
  report["programs"][0]["parts"][0]["collective_bytes"] = {"from other slices": 3e9}
  assert "from other slices 3" in render(report)


def test_what_does_not_fit_comes_with_keys_that_help():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(False)
  assert "0.50 over" in render(report)
  assert "One SRL step" not in render(report)
  (line,) = advice(report, tiny.get_config())
  assert line.startswith("srl update does not fit: 0.50 GiB over the 15.75 GiB")
  keys = line.partition("most: ")[2].split("; ")
  assert keys[:3] == [
    "a slice with more chips",
    "model.param_dtype=bfloat16",
    "srl.optimizer.name=adafactor, lion or muon",
  ]
  assert f"srl.microbatches={2 * tiny.get_config().srl.microbatches}" in keys
  assert "model.remat=full" in keys
  assert "a smaller srl.row_length" in keys
  update = next(one for one in report["programs"] if one["program"] == "srl update")
  update["program"] = "longest srl update"
  (line,) = advice(report, tiny.get_config())
  assert set(line.partition("most: ")[2].split("; ")) ^ set(keys) == {
    "a smaller srl.row_length",
    "a smaller srl.longer_rows",
  }
