"""What a run is made of."""

import dataclasses
import gc
import json

import jax
import numpy as np
import pytest

from configs import tiny
from pasmr_jax.data.pools import NAMES
from pasmr_jax.experiment import summary
from pasmr_jax.experiment.checkpoint import Checkpoints, Progress
from pasmr_jax.experiment.reliability import identity
from pasmr_jax.experiment.reliability.recovery import named_stage
from pasmr_jax.experiment.setup import make_run


def test_noise_is_of_one_kind_whatever_the_environment_says(tmp_path):
  """As JAX_DEFAULT_PRNG_IMPL=rbg does, with which a row's noise depends on its neighbours."""
  before = jax.config.jax_default_prng_impl
  jax.config.update("jax_default_prng_impl", "rbg")
  try:
    make_run(tiny.get_config(), tmp_path, pools=())
    assert jax.config.jax_default_prng_impl == "threefry2x32"
  finally:
    jax.config.update("jax_default_prng_impl", before)


def test_languages_that_only_self_feedback_must_tell_apart(tmp_path):
  config = tiny.get_config()
  config.languages = ("de", "ha")  # Hausa, which lingua does not know
  said = (
    r"languages: cannot tell .* 'ha' \(Hausa\); expected other languages, or stages without srl"
  )
  with pytest.raises(ValueError, match=said):
    make_run(config, tmp_path / "srl", pools=("srl",))
  assert not (tmp_path / "srl").exists()
  make_run(config, tmp_path, pools=())  # as eval.py does, whatever the stage


def test_a_folder_that_is_no_run_is_named_with_its_key(tmp_path):
  config = tiny.get_config()
  config.init_from, config.stages = str(tmp_path / "nothing"), ("srl",)
  run = make_run(config, tmp_path, pools=())
  with pytest.raises(ValueError, match=r"init_from: .*nothing: expected a run with"):
    run.origins.start_params("srl")


def test_a_stage_that_a_run_lacks_is_named_with_those_that_it_has(tmp_path):
  for stage in ("pam", "srl"):
    (tmp_path / "checkpoints" / stage / "3").mkdir(parents=True)
  (tmp_path / "checkpoints" / "base").mkdir()  # where nothing was saved
  said = rf"^--stage=base: no checkpoint of stage base in {tmp_path}; there are pam, srl$"
  with pytest.raises(ValueError, match=said):
    named_stage(tmp_path, "base")
  assert [named_stage(tmp_path, name) for name in ("pam", "last")] == ["pam", "srl"]


def _supervised(workdir, **changes):
  config = tiny.get_config()
  config.stages = ("pam",)
  config.data.pivot = config.data.triplets = ("synthetic:24",)
  config.update(changes)
  return make_run(config, workdir, pools=("pivot", "triplets"))


def _save(run):
  """Saves PAM's state at step 0, with random weights, which is given."""
  now = identity.make_identity(run.config, run.pools, run.tokenizer, "")
  with Checkpoints(run.workdir, "pam", run.config.checkpoint, identity=now) as checkpoints:
    stage = run.make_stage("pam")
    state = stage.learner.init(run.origins._load("seed:3", run.workdir))
    checkpoints.save(state, stage.data_state(), Progress(), run.model, None)
  return state


def test_a_run_with_another_tokenizer_is_nothing_to_begin_with(tmp_path):
  """Its ids would mean other tokens, and training would not notice."""
  other, run = _supervised(tmp_path / "other"), _supervised(tmp_path / "run")
  with jax.set_mesh(run.mesh):
    saved = _save(other).params
    run.config.init_from = str(tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, run.origins.start_params("pam"), saved)
    stops = dataclasses.replace(run.tokenizer, stop_ids=(*run.tokenizer.stop_ids, 9))
    dataclasses.replace(run, tokenizer=stops).origins.start_params("pam")  # ids mean what they did
    turned = dataclasses.replace(run.tokenizer, open_ids=run.tokenizer.close_ids)
    another = dataclasses.replace(run, tokenizer=turned)
    another.config.tokenizer.open = another.config.tokenizer.close = "word"
    said = (
      r"init_from: .*other/checkpoints/pam/0 was trained with another tokenizer, .*"
      r"\(tokenizer.close was '', is 'word'; tokenizer.open was '', is 'word'\); expected the one"
    )
    with pytest.raises(ValueError, match=said):
      another.origins.start_params("pam")


def _live_bytes():
  gc.collect()
  return sum(array.nbytes for array in jax.live_arrays())


def test_going_on_needs_memory_for_one_state_and_no_starting_weights(tmp_path, monkeypatch):
  run = _supervised(tmp_path, init_from=str(tmp_path / "gone"))
  live = []

  def restore(checkpoints, *args, **kwargs):
    live.append(_live_bytes())
    return restored(checkpoints, *args, **kwargs)

  restored = Checkpoints.restore
  monkeypatch.setattr(Checkpoints, "restore", restore)
  with jax.set_mesh(run.mesh):
    saved = jax.device_get(_save(run))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(saved))
    before = _live_bytes()
    with Checkpoints(run.workdir, "pam", run.config.checkpoint) as checkpoints:
      state, _ = run.start(run.make_stage("pam"), checkpoints)
  assert live[0] - before < size / 100
  assert _live_bytes() - before < 1.01 * size
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), saved)


def test_the_start_names_what_ends_a_response(tmp_path, capsys):
  run = make_run(tiny.get_config(), tmp_path, pools=())
  run.pools = {name: [] for name in NAMES}
  stops = (run.tokenizer.eos_id, run.tokenizer.close_ids[0])
  run.tokenizer = dataclasses.replace(run.tokenizer, stop_ids=stops)
  summary.print_start(run)
  eos, other = (run.tokenizer.vocabulary.token_of(token) for token in stops)
  said = " ".join(capsys.readouterr().err.split())
  assert f"learned to end with {eos}, sampled up to {eos} or {other}" in said


def solved(tmp_path, *solutions):
  """A configuration of which PAM learns from questions with these solutions."""
  lines = [
    {"question": f"Anna hat {n} Äpfel.", "english": f"Anna has {n} apples.", "solution": solution}
    for n, solution in enumerate(solutions)
  ]
  path = tmp_path / "train_de.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
  config = tiny.get_config()
  config.languages = ("de",)
  config.data.triplets = (f"json:{path}",)
  config.data.columns.pivot_text, config.data.columns.solution = "english", "solution"
  return config


def test_solutions_that_do_not_state_their_answer_are_counted(tmp_path, capsys):
  good = ("1 + 2 = 3\n#### 3", "####3\n", "so \\boxed{3}", "1 + 2 = 3. Die Antwort ist 3.")
  bad = ("1 + 2 = 3", "das sind 3 Stifte", "1 + 2 = 3\n####", "1 + 2 = 3\n#### \n")
  make_run(solved(tmp_path, *good), tmp_path, pools=("triplets",))
  assert "solutions do not state" not in capsys.readouterr().err
  make_run(solved(tmp_path, *good, *bad), tmp_path, pools=("triplets",))
  said = capsys.readouterr().err
  assert "data.triplets: 4 of 8 solutions do not state their answer" in said
  assert "the first that of question '000005' (de)" in said


def test_a_pool_of_which_no_solution_ends_in_its_answer_is_refused(tmp_path, capsys):
  config = solved(tmp_path, "1 + 2 = 3", "so 3")
  said = r"data\.triplets: 2 of 2 solutions do not .* of question '000001' \(de\); expected it in"
  with pytest.raises(ValueError, match=said):
    make_run(config, tmp_path, pools=("triplets",))
  config.evaluation.ask = "direct"
  with pytest.raises(ValueError, match="triplets: 2 of 2"):  # self-feedback reads answers too
    make_run(config, tmp_path, pools=("triplets",))
  config.stages = ("base", "pam")
  make_run(config, tmp_path, pools=("triplets",))
  assert "data.triplets: 2 of 2" in capsys.readouterr().err


def test_questions_of_a_test_that_are_learned_from_are_told(tmp_path, capsys):
  config = tiny.get_config()
  config.stages = ("pam",)
  config.data.columns.update({"id": "", "language": "l", "text": "q", "solution": "s"})
  config.data.columns.update({"pivot_text": "", "answer": "a"})
  for name, numbers, thing in (("pivot", range(3, 7), "pens"), ("test", range(6, 9), "PENS,")):
    rows = [
      {"l": "en", "q": f"{n} {thing} and {n} more?", "s": f"#### {2 * n}", "a": str(2 * n)}
      for n in numbers
    ]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data[name] = (f"json:{file}",)
  config.data.triplets = ("synthetic:4",)
  config.data.development = ("synthetic:2",)
  make_run(config, tmp_path / "run")
  said = capsys.readouterr().err
  assert "WARNING: data.pivot: 1 of 4 questions are in data.test too, by their text" in said
  assert said.count("WARNING") == 1
