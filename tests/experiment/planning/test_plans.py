"""The table of slices: a slice found with little effort, its times with full."""

import sys

import pytest

from benchmarks import plans
from configs import tiny
from pasmr_jax.experiment.planning.cost import GIB
from pasmr_jax.experiment.planning.plan import Planning
from tests.experiment.planning.made_up import made_up, part


@pytest.fixture
def asked(monkeypatch):
  """Stands in for the compiler: the second of v5e's slices fits, which full effort confirms."""
  asked = []

  def smallest(self, generation):
    asked.append(("smallest", generation, self.quick))
    report = made_up(True, mesh=(1, 2, 2)) | {"topology": f"{generation}:2x2"}
    report["programs"][1]["parts"][0]["model_flops_share"] = 0.5
    return (report, [(f"{generation}:1x1", "too small")]) if generation == "v5e" else (None, [])

  def plan(self, topology):
    asked.append((topology, self.config.mesh.tensor, self.quick, self.programs))
    (name,) = self.programs
    exact = part(name, calls=3, floor=0.5) | {"model_flops_share": 0.625}
    program = {"program": name, "fits": True, "peak_bytes": 12 * GIB, "parts": [exact]}
    return {"programs": [program]}

  monkeypatch.setattr(Planning, "smallest", smallest)
  monkeypatch.setattr(Planning, "plan", plan)
  return asked


def test_times_are_those_of_full_effort_on_the_slice_that_was_found(asked, tmp_path):
  planning = Planning(tiny.get_config(), tmp_path)
  entry = {"model": "M"} | plans.found(planning, "v5e", plans.TIMED)
  assert asked == [
    ("smallest", "v5e", True),
    ("v5e:2x2", 2, False, ("srl update",)),
    ("v5e:2x2", 2, False, ("decode",)),
  ]
  assert planning.config.mesh.tensor == 1  # not changed
  cells = dict(zip(plans.HEADINGS, plans.row(entry), strict=True))
  assert cells["smallest slice"] == "v5e:2x2"
  assert cells["mesh"] == "fsdp=2 x tensor=2"
  assert cells["peak GiB"].startswith("12.0 of 15.8")
  assert (cells["SRL update, s"], cells["of peak FLOP/s"]) == ("0.50", "62%")
  assert cells["SRL step, s"] == f"{2 * 3 * 0.5:.1f}"
  # What was compiled with little effort alone is marked, and a step with any of it.
  mixed = plans.row({"model": "M"} | plans.found(planning, "v5e", ("srl update",)))
  assert (mixed[4], mixed[8], mixed[9]) == ("0.50", "~400, memory", f"~{3 * 0.5 + 2 * 2 * 0.25}")
  none = plans.row({"model": "M"} | plans.found(planning, "v6e", plans.TIMED))
  assert none[:2] == ["M", "v6e: none up to 16x16"]


def test_what_full_effort_does_not_fit_is_said(asked, tmp_path):
  entry = {"model": "M"} | plans.found(Planning(tiny.get_config(), tmp_path), "v5e", ("decode",))
  (program,) = entry["timed"]
  entry["timed"] = [program | {"fits": False, "peak_bytes": 17 * GIB, "parts": []}]
  assert plans.row(entry)[3] == "17.0 of 15.8, decode, does not fit"


def test_the_table_can_be_made_in_parts(asked, tmp_path, monkeypatch, capsys):
  out = tmp_path / "plans.json"
  for model in ("Qwen 3 8B", "Gemma 3 1B"):
    given = ["--generations", "v5e", "--models", model, f"--out={out}", f"--cache={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["plans", *given])
    plans.main()
  printed = capsys.readouterr().out.rpartition("\n\n")[2]
  models = [line.split(" | ")[0].strip("| ") for line in printed.splitlines()]
  assert models == ["model", "---", "Gemma 3 1B", "Qwen 3 8B"]
