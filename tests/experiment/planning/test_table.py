"""Plans as text."""

from configs import pasmr_gemma, tiny
from pasmr_jax.experiment.planning.cost import GIB
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
  assert not any("microbatches" in key for key in keys)  # of one row on each device already
  assert "model.remat=full" in keys
  shorter = "smaller srl.max_prompt_length and srl.max_new_tokens"
  assert shorter in keys  # srl.row_length is 0: as long as those two
  update = next(one for one in report["programs"] if one["program"] == "srl update")
  update["program"] = "longest srl update"
  (line,) = advice(report, tiny.get_config())
  assert set(line.partition("most: ")[2].split("; ")) ^ set(keys) == {
    shorter,
    "a smaller srl.longer_rows",
  }


def advised(program, config, mesh=(1, 4, 1)):
  report = made_up(False, mesh)
  report["programs"][1] |= {"program": program, "filled_by": {"activations and the rest": GIB}}
  (line,) = advice(report, config)
  return line.partition("most: ")[2].split("; ")


def test_no_key_is_named_that_cannot_help():
  config = pasmr_gemma.get_config("1b")
  config.srl.update({"row_bucket": 24, "rehearsal_rows": 48, "microbatches": 2})
  assert advised("srl update", config)[0] == "srl.microbatches=3"
  config.srl.microbatches = 6  # of one row on each of 4 devices
  shorter = "smaller srl.max_prompt_length and srl.max_new_tokens"
  assert advised("srl update", config) == [shorter]
  assert advised("srl update", config, (1, 2, 2))[0] == "srl.microbatches=12"
  config.srl.row_length = 1024  # a prompt and a response
  assert advised("srl update", config) == [shorter]
  config.srl.row_length = 1025
  assert advised("srl update", config) == ["a smaller srl.row_length"]
  config.pam.update({"batch_size": 32, "microbatches": 4})
  assert advised("pam update", config) == ["pam.microbatches=8", "a smaller pam.max_length"]
  config.pam.microbatches = 8
  assert advised("pam update", config) == ["a smaller pam.max_length"]


def test_what_changes_what_is_learned_is_said_apart():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(True)
  report["adjusted"] = ["--config.srl.row_bucket=128", "--config.srl.rehearsal_rows=128"]
  text = render(report)
  assert "Changed so that batches divide: --config.srl.row_bucket=128\n" in text
  assert "; more is rehearsed a step, which changes what is learned: --config.srl.reh" in text
