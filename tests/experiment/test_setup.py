"""What a run is made of."""

import dataclasses
import json

import jax
import pytest

from configs import tiny
from pasmr_jax.data.pools import NAMES
from pasmr_jax.experiment import summary
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
    run.start_params("srl")


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


def test_solutions_that_do_not_end_in_their_answer_are_counted(tmp_path, capsys):
  good = ("1 + 2 = 3\n#### 3", "####3\n", "so \\boxed{3}")
  bad = ("1 + 2 = 3", "#### 3\nso it is 3", "1 + 2 = 3\n####", "1 + 2 = 3\n#### \n")
  make_run(solved(tmp_path, *good), tmp_path, pools=("triplets",))
  assert "solutions do not end" not in capsys.readouterr().err
  make_run(solved(tmp_path, *good, *bad), tmp_path, pools=("triplets",))
  said = capsys.readouterr().err
  assert "data.triplets: 4 of 7 solutions do not end in '#### ' and the answer" in said
  assert "the first that of question '000004' (de)" in said


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
