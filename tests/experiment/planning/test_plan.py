"""Asking for a plan, with the compiler replaced."""

import itertools

import pytest

from configs import tiny
from pasmr_jax.experiment.planning import plan
from pasmr_jax.experiment.planning.cost import CHIPS
from pasmr_jax.experiment.planning.plan import PlanError, Planning, UnsuitableError
from tests.experiment.planning.made_up import made_up


@pytest.fixture
def worker(monkeypatch):
  """Stands in for the compiling process.

  A test fills `answers` by topology, or by topology and mesh.tensor; "cannot" instead of an answer
  is what is known not to fit without compiling.
  """
  answers, asked = {}, []

  def find(topology, tensor):
    return answers.get((topology, tensor), answers.get(topology, made_up(False)))

  def weighed(topology, tensor):
    cannot = find(topology, tensor) == "cannot"
    known = {"topology": topology, "tensor": tensor, "fits": not cannot}
    return known | {"why": f"{topology} is too small with {tensor}"} if cannot else known

  def in_a_process(request):
    if request["ask"] == "weigh":
      pairs = itertools.product(request["topologies"], request["tensors"])
      return {"weighed": [weighed(*pair) for pair in pairs]}
    topology, tensor = request["topology"], request["config"]["mesh"]["tensor"]
    asked.append(topology if tensor == 1 else (topology, tensor))
    return find(topology, tensor)

  monkeypatch.setattr(plan, "_in_a_process", in_a_process)
  monkeypatch.setattr(plan, "compiler_versions", lambda generation: {"jax": "1"})
  return answers, asked


def test_an_answer_is_kept_until_something_changes(worker, tmp_path, monkeypatch):
  answers, asked = worker
  answers["v5e:2x2"] = made_up(True)
  config = tiny.get_config()
  first = Planning(config, tmp_path).plan("v5e:2x2")
  config.log.every = 7  # decides about no program
  assert Planning(config, tmp_path).plan("v5e:2x2") == first
  assert asked == ["v5e:2x2"]
  assert (first["topology"], first["versions"]) == ("v5e:2x2", {"jax": "1"})
  config.srl.microbatches = 4
  Planning(config, tmp_path).plan("v5e:2x2")
  Planning(config, tmp_path, quick=True).plan("v5e:2x2")
  monkeypatch.setattr(plan, "compiler_versions", lambda generation: {"jax": "2"})
  Planning(config, tmp_path).plan("v5e:2x2")
  assert len(asked) == 4


def test_an_answer_is_of_its_own_question(worker, tmp_path, monkeypatch):
  answers, asked = worker
  answers["v5e:2x2"] = made_up(True)
  model, cache = tmp_path / "model", tmp_path / "cache"
  model.mkdir()
  (model / "config.json").write_text("{}")
  config = tiny.get_config()
  config.model.pretrained = str(model)

  def adapted():
    config.lora.rank = 16

  questions = (
    lambda: None,
    adapted,
    lambda: monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true"),
    lambda: monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536"),
    lambda: monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "float32"),
    lambda: (model / "config.json").write_text('{"num_hidden_layers": 6}'),
  )
  for number, change in enumerate(questions, 1):
    change()
    for _ in range(2):
      Planning(config, cache).plan("v5e:2x2")
      assert len(asked) == number


@pytest.mark.parametrize(
  "key",
  [
    *("seed", "init_from", "data.root", "data.srl", "reward.gate", "evaluation.batch_size"),
    *("checkpoint.every", "guard.hang_minutes", "log.progress"),
  ],
)
def test_what_no_program_depends_on_is_no_other_question(worker, tmp_path, key):
  answers, asked = worker
  answers["v5e:2x2"] = made_up(True)
  config = tiny.get_config()
  Planning(config, tmp_path).plan("v5e:2x2")
  values = {str: "x", bool: False, int: 77, float: 7.5, tuple: ("x",)}
  with config.unlocked():
    section, _, name = key.rpartition(".")
    part = config[section] if section else config
    part[name] = values[type(part[name])]
  Planning(config, tmp_path).plan("v5e:2x2")
  assert len(asked) == 1


def test_programs_that_were_not_asked_for_refuse_no_slice(worker, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    plan, "_in_a_process", lambda request: asked.append(request) or {"weighed": []}
  )
  Planning(tiny.get_config(), tmp_path, programs=("decode",)).weigh("v5e")
  assert asked[0]["programs"] == ["decode"]


def test_the_largest_batch_is_not_of_programs_that_are_picked(worker, tmp_path):
  with pytest.raises(PlanError, match="--programs: expected none with --max_batch"):
    Planning(tiny.get_config(), tmp_path, programs=("decode",)).max_batch("v5e:2x2")


def test_the_smallest_slice_is_the_first_that_fits(worker, tmp_path):
  answers, asked = worker
  answers["v5e:1x1"] = "cannot"
  answers["v5e:2x4"] = made_up(True)
  report, refused = Planning(tiny.get_config(), tmp_path).smallest("v5e")
  assert report is not None
  assert (report["topology"], report["adjusted"]) == ("v5e:2x4", made_up(True)["adjusted"])
  # What could fit is compiled, with more and more of mesh.tensor.
  assert asked == ["v5e:2x2", *(("v5e:2x2", tensor) for tensor in (2, 4, 8)), "v5e:2x4"]
  assert refused == [
    ("v5e:1x1", "v5e:1x1 is too small with 1"),
    ("v5e:2x2", "srl update is 0.50 GiB over with mesh.tensor=8"),
  ]
  answers |= {f"v5p:{shape}": "cannot" for shape in CHIPS["v5p"].slices}
  assert Planning(tiny.get_config(), tmp_path).smallest("v5p")[0] is None
  assert len(asked) == 5


def test_weights_are_split_over_more_devices_where_they_are_too_many(worker, tmp_path):
  answers, asked = worker
  answers["v6e:1x1"] = answers["v6e:2x2"] = "cannot"
  answers["v6e:2x2", 4] = made_up(True)
  report, refused = Planning(tiny.get_config(), tmp_path).smallest("v6e")
  assert report is not None
  assert report["adjusted"] == ["--config.mesh.tensor=4", *made_up(True)["adjusted"]]
  assert (asked, [topology for topology, _ in refused]) == ([("v6e:2x2", 4)], ["v6e:1x1"])


def test_what_keeps_a_plan_from_being_made_is_said(worker, tmp_path, monkeypatch):
  answers, _ = worker
  asking = Planning(tiny.get_config(), tmp_path)
  for wrong in ("v9:2x2", "v5e", "v5e:2xa", "v5e:0x2"):
    with pytest.raises(PlanError, match=f"--topology={wrong}: expected 'auto' or a slice such as"):
      asking.plan(wrong)
  with pytest.raises(PlanError, match=r"--topology=h100:3: expected h100: and 1, 2, 4, 8"):
    asking.plan("h100:3")
  with pytest.raises(PlanError, match=r"--num_slices=2: h100:8 is one host; expected 1"):
    Planning(tiny.get_config(), tmp_path, num_slices=2).max_batch("h100:8")
  answers["v5e:2x2"] = {"error": "no such topology"}
  with pytest.raises(PlanError, match="no such topology"):
    asking.plan("v5e:2x2")
  answers["v5e:2x2"] = {"unsuitable": "srl.questions is 0"}
  with pytest.raises(UnsuitableError, match=r"srl\.questions is 0"):
    asking.plan("v5e:2x2")
  monkeypatch.undo()
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(PlanError, match=r"libtpu, which is not installed.*pip install -r"):
    asking.plan("v5e:2x2")
