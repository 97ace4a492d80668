"""Asking in every way, writing as it goes, going on after an interruption, in shares."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from pasmr_jax.experiment import evaluation, origins, result_files, setup, summary, validation
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.items import to_line
from pasmr_jax.learning.update import TrainState
from pasmr_jax.parallel import processes
from pasmr_jax.rollout.requests import Rollouts
from pasmr_jax.stages.self_feedback import SelfFeedbackStage
from pasmr_jax.text import prompts

PARAMS = {"w": jnp.ones(3)}


def _config(**changes):
  config = tiny.get_config()
  small = {
    "languages": ("de", "bn"),
    "stages": ("base",),
    "data.test": ("synthetic:5",),
    "model.embed_dim": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.mlp_dim": 32,
    "evaluation.batch_size": 4,
    "evaluation.max_prompt_length": 512,
    "evaluation.sampled": False,
    "tokenizer.path": "synthetic",
  }
  config.update_from_flattened_dict(small | changes)
  validation.check(config)
  return config


class ScriptedEngine:
  """Says what `reply(prompt, name, sample)` says, and counts who was asked."""

  def __init__(self, tokenizer, reply):
    self._tokenizer, self._reply = tokenizer, reply
    self.asked: list[str] = []
    self.prompts: list[str] = []

  def lay_out(self, params):
    return params

  def generate(self, params, prompts, names, key, sampling, *, samples, max_new_tokens, **_):
    rows = []
    for prompt, name in zip(prompts, names, strict=True):
      self.asked.append(name)
      self.prompts.append(self._tokenizer.decode(prompt))
      for sample in range(samples):
        rows.append(self._ids(self._reply(self.prompts[-1], name, sample)))
    tokens = np.zeros((len(rows), max_new_tokens), np.int32)
    for row, ids in enumerate(rows):
      tokens[row, : len(ids[:max_new_tokens])] = ids[:max_new_tokens]
    return Rollouts(
      tokens=tokens,
      logprobs=np.zeros(tokens.shape, np.float32),
      lengths=np.array([min(len(ids), max_new_tokens) for ids in rows], np.int32),
      truncated=np.array([len(ids) > max_new_tokens for ids in rows], bool),
    )

  def _ids(self, text: str) -> list[int]:
    """Token ids of a reply; delimiters stand as their literal tags, and it ends by itself."""
    tokenizer, ids = self._tokenizer, []
    for part in tokenizer.split_controls(text):
      ids += [part] if isinstance(part, int) else tokenizer.encode(part)
    return [*ids, tokenizer.eos_id]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The tokenizer of the built-in corpus, trained once."""
  folder = tmp_path_factory.mktemp("tokenizer")
  setup.make_tokenizer(_config(), folder)
  return folder


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
  """An evaluator with a scripted engine, in a work directory of the test."""

  def build(reply, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = _config(**({"tokenizer.path": str(folder / "tokenizer.model")} | changes))
    run = setup.make_run(config, tmp_path, pools=("test",))
    engine = ScriptedEngine(run.tokenizer, reply)
    monkeypatch.setattr(setup.Run, "engine", lambda *_: engine)
    return Evaluator(run), engine

  return build


def _items(folder, name="x_greedy"):
  lines = (folder / "results" / f"{name}.jsonl").read_text("utf-8").split("\n")[:-1]
  return [json.loads(line) for line in lines]


def _measures(folder, name="x"):
  return json.loads((folder / "results" / f"{name}.json").read_text())


def _pasmr(questions):
  """A perfect model in the PASMR format."""

  def reply(prompt, name, sample):
    question = next(q for q in questions if prompt == f"{q.text}\n")
    translated = "" if question.pivot_text is None else f"<pivot>{question.pivot_text}</pivot>"
    return f"{translated}#### {question.answer}"

  return reply


def test_the_models_own_format_is_asked_and_read(make, tmp_path):
  evaluator, engine = make(lambda *_: "")
  questions = evaluator.run.pools["test"]
  evaluator, engine = make(_pasmr(questions))
  evaluator.write(PARAMS, "x")
  items = _items(tmp_path)
  assert [(i["language"], i["id"]) for i in items] == [(q.language, q.id) for q in questions]
  assert engine.prompts[0] == f"{questions[0].text}\n"
  assert all(item["correct"] and item["rule"] == "hash" for item in items)
  german = next(item for item in items if item["language"] == "de")
  assert german["translation"] == questions[5].pivot_text
  assert german["number_recall"] == 1.0
  found = _measures(tmp_path)["greedy"]
  assert found["target_accuracy"] == found["pivot_accuracy"] == found["accuracy/bn"] == 1.0
  assert found["chrf/de"] == 100
  assert found["well_formed_rate"] == 1.0
  assert not list((tmp_path / "results").glob("*partial*"))


EXEMPLARS = {
  "exemplars": {
    language: {"1": {"q": f"{question} 1 + 1", "a": f"{answer} 2"}}
    for language, question, answer in (
      ("en", "Question:", "Step-by-Step Answer:"),
      ("de", "Frage:", "Schritt-für-Schritt-Antwort:"),
      ("bn", "প্রশ্ন:", "ধাপে ধাপে উত্তর:"),
    )
  }
}


@pytest.mark.parametrize(
  ("way", "german_begin", "german_end"),
  [
    (
      "native_cot",
      "Frage: 1 + 1\nSchritt-für-Schritt-Antwort: 2\n\nFrage: ",
      "\nSchritt-für-Schritt-Antwort:",
    ),
    (
      "english_cot",
      "Frage: 1 + 1\nStep-by-Step Answer: 2\n\nFrage: ",
      "\nStep-by-Step Answer:",
    ),
    ("direct", "Frage: 1 + 1\nAntwort: 2\n\nFrage: ", "\nAntwort:"),
    (
      "reference",
      "Question: 1 + 1\nStep-by-Step Answer: 2\n\nQuestion: ",
      "\nStep-by-Step Answer:",
    ),
  ],
)
def test_chains_of_thought_with_exemplars(make, tmp_path, way, german_begin, german_end):
  path = tmp_path / "exemplars.json"
  path.write_text(json.dumps(EXEMPLARS))
  changes = {
    "evaluation__ask": way,
    "evaluation__exemplars": 1,
    "evaluation__exemplar_file": str(path),
    "evaluation__template": "[{question}]",
  }
  evaluator, engine = make(lambda *_: " 7\n\nFrage: 1 + 8\n9", **changes)
  evaluator.write(PARAMS, "x")
  german = engine.prompts[5]
  question = evaluator.run.pools["test"][5]
  asked = question.pivot_text if way == "reference" else question.text
  assert _spelled(german, evaluator) == _spelled(f"[{german_begin}{asked}{german_end}]", evaluator)
  item = _items(tmp_path)[5]
  assert item["reasoning"] == " 7"  # what it went on to write is cut off
  assert item["answer"] == "7"
  assert item["well_formed"]


def _spelled(text, evaluator):
  """A text as the small vocabulary can spell it."""
  tokenizer = evaluator.run.tokenizer
  return tokenizer.decode(tokenizer.encode(text))


def test_an_answer_that_runs_into_the_limit_is_whole_if_the_next_question_began(make, tmp_path):
  answers = {"en": "5\n\nQuestion: " + "1 + " * 40, "de": "1 + " * 40, "bn": "5"}
  evaluator, _ = make(
    lambda prompt, name, sample: answers[name[:2]],
    evaluation__ask="native_cot",
    evaluation__max_new_tokens=30,
  )
  evaluator.write(PARAMS, "x")
  by_language = {item["language"]: item for item in _items(tmp_path)}
  assert [by_language[code]["truncated"] for code in ("en", "de", "bn")] == [False, True, False]
  assert by_language["en"]["tokens"] < 10
  assert by_language["de"]["tokens"] == 30


def test_translate_then_solve_answers_the_models_own_translation(make, tmp_path):
  def reply(prompt, name, sample):
    if name.count("/") == 1:  # the question itself
      return "5 #### 5" if name.startswith("en") else "<pivot>1 + 1</pivot>#### 3"
    assert prompt == "1 + 1\n"
    return "#### 2"

  evaluator, engine = make(reply, evaluation__ask="translate")
  evaluator.write(PARAMS, "x")
  answers = {item["language"]: (item["answer"], item["translation"]) for item in _items(tmp_path)}
  assert answers == {"en": ("5", None), "de": ("2", "1 + 1"), "bn": ("2", "1 + 1")}
  assert sum(name.count("/") == 2 for name in engine.asked) == 10


def test_translate_without_a_translation_has_no_answer(make, tmp_path):
  evaluator, engine = make(lambda *_: "#### 5", evaluation__ask="translate")
  evaluator.write(PARAMS, "x")
  answers = {item["language"]: item["answer"] for item in _items(tmp_path)}
  assert answers == {"en": "5", "de": None, "bn": None}
  assert len(engine.asked) == 15


def test_agreement_with_the_models_own_pivot_answer(make, tmp_path):
  def reply(prompt, name, sample):
    if name.count("/") == 2:
      return "#### 4" if name.startswith("de") else "#### 5"
    return "#### 5" if name.startswith("en") else "<pivot>1 + 1</pivot>#### 5"

  evaluator, _ = make(reply, evaluation__pivot_agreement=True)
  evaluator.write(PARAMS, "x")
  found = _measures(tmp_path)["greedy"]
  assert (found["pivot_agreement/de"], found["pivot_agreement/bn"]) == (0.0, 1.0)
  assert found["pivot_agreement/target"] == 0.5
  assert "pivot_agreement/en" not in found
  assert _items(tmp_path)[5]["pivot_answer"] == "4"


def test_samples_are_voted_and_the_greedy_answer_is_one(make, tmp_path):
  evaluator, _ = make(
    lambda prompt, name, sample: f"#### {7 if sample else 8}",
    evaluation__sampled=True,
    evaluation__samples=3,
  )
  evaluator.write(PARAMS, "x")
  assert {item["sample"] for item in _items(tmp_path)} == {0}
  sampled = _items(tmp_path, "x_sampled")
  assert [item["sample"] for item in sampled[:4]] == [0, 1, 2, 0]
  assert [item["answer"] for item in sampled[:3]] == ["8", "7", "7"]
  assert "maj@3/de" in _measures(tmp_path)["sampled"]


def test_scoring_decides_what_counts_as_correct(make, tmp_path):
  changes = {"evaluation__scoring": "mathoctopus", "data__test": ("synthetic:1",)}
  evaluator, _ = make(lambda *_: "", **changes)
  gold = evaluator.run.pools["test"][0].answer
  evaluator, _ = make(lambda *_: f"#### 1\n-{gold}", **changes)
  evaluator.write(PARAMS, "x")
  found = _measures(tmp_path)["greedy"]
  assert found["accuracy/en"] == 1.0
  assert found["scoring/pasmr/en"] == 0.0


# Interruptions.


def _stopping(reply, after):
  """Answers so many questions and then fails, as a machine that goes away."""
  count = 0

  def stopping(prompt, name, sample):
    nonlocal count
    count += 1
    if count > after:
      raise KeyboardInterrupt
    return reply(prompt, name, sample)

  return stopping


def _numbered(prompt, name, sample):
  return f"#### {name[-1]}{sample}"


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_an_interrupted_evaluation_asks_only_what_is_left(make, tmp_path, torn, capsys):
  evaluator, whole = make(_numbered)
  evaluator.write(PARAMS, "x")
  expected = (tmp_path / "results" / "x_greedy.jsonl").read_bytes()

  evaluator, first = make(_stopping(_numbered, 10))
  with pytest.raises(KeyboardInterrupt):
    evaluator.write(PARAMS, "y")
  partial = tmp_path / "results" / "y_greedy.partial.jsonl"
  lines = partial.read_text("utf-8").split("\n")[1:-1]
  assert [json.loads(line)["id"] for line in lines] == [
    name.split("/")[1] for name in first.asked[:8]
  ]
  if torn:
    partial.write_bytes(partial.read_bytes()[:-torn])

  evaluator, second = make(_numbered)
  evaluator.write(PARAMS, "y")
  # Chunks of four: one that is torn is asked again as a whole.
  assert second.asked == whole.asked[4 if torn else 8 :]
  assert "going on after" in capsys.readouterr().err
  assert (tmp_path / "results" / "y_greedy.jsonl").read_bytes() == expected
  assert _measures(tmp_path, "y") == _measures(tmp_path, "x")
  assert not partial.exists()


def test_results_that_are_there_are_not_asked_for_again_and_leave_nothing_behind(make, tmp_path):
  evaluator, asked = make(_numbered)
  evaluator.write(PARAMS, "base")
  count = len(asked.asked)
  # Killed after the results were written and before this was removed.
  partial = tmp_path / "results" / "base_greedy.partial.jsonl"
  partial.write_text("{}\n", "utf-8")
  evaluator.test("base")
  assert len(asked.asked) == count
  assert not partial.exists()


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"data__test": ("synthetic:6",)}, "gold answers, questions"),
    ({"evaluation__scoring": "mathoctopus"}, "evaluation.scoring"),
    ({"evaluation__sampled": True}, "sampling"),
    ({"evaluation__ask": "direct", "evaluation__stop": ()}, "evaluation.ask, evaluation.stop"),
  ],
)
def test_results_of_another_evaluation_are_not_a_stages(
  make, tmp_path, monkeypatch, capsys, changes, said
):
  monkeypatch.setattr(origins.Origins, "checkpoint_params", lambda *_: (PARAMS, 1))
  evaluator, first = make(_numbered)
  evaluator.test("base")
  evaluator.test("base")
  assert len(first.asked) == 15
  evaluator, second = make(_numbered, **changes)
  evaluator.test("base")
  assert len(second.asked) >= 15
  assert f"base: asked again (other {said})\n" in capsys.readouterr().err
  assert ("sampled" in _measures(tmp_path, "base")) == ("evaluation__sampled" in changes)
  count = len(second.asked)
  evaluator.test("base")
  assert len(second.asked) == count
  # Results of a version that did not write down how they came about.
  (tmp_path / "results" / "base.settings").unlink()
  make(_numbered)[0].test("base")
  assert len(first.asked) == 15


@pytest.mark.parametrize(
  ("answers", "told"),
  [
    ([("de", "57.500"), ("de", "1.500"), ("bn", "57.500"), ("en", "1,500")], True),
    ([("de", "57500"), ("de", "57.5"), ("bn", "57,500"), ("en", "57.500")], False),
  ],
)
def test_gold_answers_in_another_style_than_the_english_are_told(
  make, tmp_path, capsys, answers, told
):
  lines = [
    json.dumps({"question": f"{n} Äpfel?", "language": language, "answer": answer})
    for n, (language, answer) in enumerate(answers)
  ]
  (tmp_path / "test.jsonl").write_text("\n".join(lines), "utf-8")
  changes = {"data.test": (f"json:{tmp_path / 'test.jsonl'}",), "data.columns.language": "language"}
  make(lambda *_: "", **changes)
  said = capsys.readouterr().err
  assert ("test: 2 of 4 gold answers would be other numbers in the style of their" in said) == told
  assert ("so that '57.500' of question '000001' (de) is 57.5\n" in said) == told
  assert ("English style" in said) == told


def test_other_gold_answers_are_other_results(make, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(origins.Origins, "checkpoint_params", lambda *_: (PARAMS, 1))
  evaluator, _ = make(_numbered)
  evaluator.test("base")
  run = evaluator.run
  run.pools["test"] = [dataclasses.replace(q, answer="99999") for q in run.pools["test"]]
  Evaluator(run).test("base")
  assert "base: asked again (other gold answers)\n" in capsys.readouterr().err
  assert {item["gold"] for item in _items(tmp_path, "base_greedy")} == {"99999"}


def test_answers_of_a_way_that_is_not_asked_any_more_do_not_stay(make, tmp_path):
  make(_numbered, evaluation__sampled=True)[0].write(PARAMS, "x")
  sampled = tmp_path / "results" / "x_sampled.jsonl"
  assert sampled.exists()
  make(_numbered)[0].write(PARAMS, "x")
  assert not sampled.exists()
  assert len(_items(tmp_path)) == 15


def test_a_broken_file_of_settings_is_named(make, tmp_path):
  evaluator, _ = make(_numbered)
  evaluator.write(PARAMS, "base")
  settings = tmp_path / "results" / "base.settings"
  settings.write_text(settings.read_text()[:40])
  with pytest.raises(ValueError, match=r"base\.settings: .*; remove it to ask again"):
    evaluator.test("base")


def test_results_of_another_evaluation_are_overwritten_only_where_that_is_wanted(make, tmp_path):
  evaluator, _ = make(_numbered)
  evaluator.write(PARAMS, "x", overwrite=False)
  evaluator.write(PARAMS, "x", overwrite=False)
  before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
  evaluator, engine = make(_numbered, evaluation__max_new_tokens=9)
  for params, said in (
    (PARAMS, "evaluation.max_new_tokens"),
    ({"w": jnp.zeros(3)}, "evaluation.max_new_tokens, parameters"),
  ):
    with pytest.raises(ValueError, match=rf"x.json is of another evaluation \(other {said}\);"):
      evaluator.write(params, "x", overwrite=False)
  assert not engine.asked
  assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before
  evaluator.write(PARAMS, "x")
  evaluator.write(PARAMS, "x", overwrite=False)


def test_settings_are_never_beside_results_of_others(make, tmp_path, monkeypatch):
  """Killed anywhere between asking and the end, the questions count as not asked."""
  monkeypatch.setattr(origins.Origins, "checkpoint_params", lambda *_: (PARAMS, 1))
  make(_numbered)[0].test("base")
  write_whole = result_files.write_whole

  def write(path, text):
    if path.name == "base.settings":
      write_whole(path, text)
    if path.suffix != ".jsonl":
      raise KeyboardInterrupt
    write_whole(path, text)

  monkeypatch.setattr(result_files, "write_whole", write)
  with pytest.raises(KeyboardInterrupt):
    make(_numbered, evaluation__scoring="mathoctopus")[0].test("base")
  monkeypatch.setattr(result_files, "write_whole", write_whole)
  evaluator, engine = make(_numbered, evaluation__scoring="mathoctopus")
  evaluator.test("base")
  assert not engine.asked  # what was answered is there
  assert "scoring/pasmr/en" in _measures(tmp_path, "base")["greedy"]


def test_a_stage_that_is_trained_on_loses_its_results_and_half_an_evaluation(make, tmp_path):
  evaluator, _ = make(_numbered)
  evaluator.write(PARAMS, "base")
  for way in ("greedy", "sampled"):  # which may be of a time when sampling was asked for
    (tmp_path / "results" / f"base_{way}.partial.jsonl").write_text("{}\n", "utf-8")
  evaluator.take_back("base")
  assert [path.name for path in (tmp_path / "results").iterdir()] == ["base_greedy.jsonl"]


def test_a_way_that_was_finished_is_not_asked_again(make, tmp_path):
  changes = {"evaluation__sampled": True, "evaluation__samples": 2}
  evaluator, _ = make(_stopping(_numbered, 15 + 2 * 5), **changes)
  with pytest.raises(KeyboardInterrupt):
    evaluator.write(PARAMS, "y")
  assert len(_items(tmp_path, "y_greedy")) == 15
  assert not (tmp_path / "results" / "y.json").exists()
  evaluator, second = make(_numbered, **changes)
  evaluator.write(PARAMS, "y")
  # Of the 15 questions asked greedily none, of those sampled (two a chunk) the first four.
  assert len(second.asked) == 15 - 4


@pytest.mark.parametrize(
  ("changes", "params", "said"),
  [
    ({"seed": 1}, PARAMS, "seed"),
    ({"data__test": ("synthetic:6",)}, PARAMS, "questions"),
    ({"evaluation__ask": "direct"}, PARAMS, "evaluation.ask"),
    ({"tokenizer__pad": "<unk>"}, PARAMS, "tokenizer"),
    ({"rollout__cache_dtype": "bfloat16"}, PARAMS, "rollout.cache_dtype"),
    ({}, {"w": jnp.ones(3).at[1].add(1e-6)}, "parameters"),
  ],
)
def test_answers_of_another_evaluation_are_not_taken_over(
  make, tmp_path, changes, params, said, capsys
):
  evaluator, _ = make(_stopping(_numbered, 10))
  with pytest.raises(KeyboardInterrupt):
    evaluator.write(PARAMS, "y")
  evaluator, second = make(_numbered, **changes)
  evaluator.write(params, "y")
  assert len(second.asked) == len(evaluator.run.pools["test"])
  error = capsys.readouterr().err
  assert "y_greedy.partial.jsonl is of another evaluation" in error
  assert said in error


def test_a_checksum_is_of_every_bit_wherever_it_lies():
  values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  params = {"a": jnp.asarray(values), "b": jnp.asarray(values, jnp.bfloat16), "c": jnp.float32(1)}
  checksum = int(evaluation._checksum(params))
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  for axes in (("x", "y"), (("x", "y"), None), (None, "y")):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    split = params | {name: jax.device_put(params[name], sharding) for name in "ab"}
    assert int(evaluation._checksum(split)) == checksum
  one = params["a"][3, 4]
  changed = [
    params | {"a": params["a"].at[3, 4].set(jnp.nextafter(one, 9.0))},
    params | {"a": params["a"].at[0].set(values[1]).at[1].set(values[0])},
    params | {"a": params["a"].at[:2, 0].multiply(-1)},
    params | {"b": params["b"].at[:2, 0].multiply(-1)},
    params | {"c": jnp.float32(-1)},
    {"a": params["b"], "b": params["a"], "c": params["c"]},
  ]
  assert len({checksum, *(int(evaluation._checksum(one)) for one in changed)}) == 1 + len(changed)


def test_another_scoring_rule_takes_the_answers_over(make, tmp_path):
  evaluator, _ = make(_stopping(lambda *_: "#### 1\n-2", 10))
  with pytest.raises(KeyboardInterrupt):
    evaluator.write(PARAMS, "y")
  evaluator, second = make(lambda *_: "#### 1\n-2", evaluation__scoring="mathoctopus")
  evaluator.write(PARAMS, "y")
  assert len(second.asked) == 7
  assert {item["answer"] for item in _items(tmp_path, "y_greedy")} == {"2.0"}


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_asks_its_share_and_has_all_items(make, tmp_path, monkeypatch, process):
  evaluator, _ = make(_numbered)
  evaluator.write(PARAMS, "x")
  expected = (tmp_path / "results" / "x_greedy.jsonl").read_bytes()

  evaluator, engine = make(_numbered)
  _, other = make(_numbered)  # the other process' engine
  asking = evaluator._asking
  questions = evaluator._questions["test"]
  chunks = iter([questions[begin : begin + 4] for begin in range(0, len(questions), 4)])

  def gather_text(text):
    share = dataclasses.replace(asking, engine=other).responses(
      PARAMS, next(chunks)[1 - process :: 2], temperature=0.0, samples=1, key=jax.random.key(0)
    )
    texts = [text, "\n".join(map(to_line, share))]
    return texts if process == 0 else texts[::-1]

  monkeypatch.setattr(processes, "process_count", lambda: 2)
  monkeypatch.setattr(processes, "process_index", lambda: process)
  monkeypatch.setattr(processes, "gather_text", gather_text)
  items = evaluator._answer(PARAMS, questions, 0.0, 1)
  assert "".join(f"{to_line(item)}\n" for item in items).encode() == expected
  # The last chunk has three questions: two for the first process, one for the second.
  assert len(engine.asked) == (8 if process == 0 else 7)


# The real sampler.


@pytest.mark.slow
def test_resumed_by_the_real_sampler_it_is_the_same_to_the_bit(tmp_path, monkeypatch):
  config = _config(**{"evaluation.sampled": True, "evaluation.max_new_tokens": 16})
  run = setup.make_run(config, tmp_path, pools=("test",))
  with jax.set_mesh(run.mesh):
    params = run.origins.start_params("base")
    Evaluator(run, progress=True).write(params, "x")
    evaluator, count = Evaluator(run), 0
    generate = type(evaluator.engine).generate

    def failing(self, *arguments, **settings):
      nonlocal count
      count += 1
      if count == 6:
        raise KeyboardInterrupt
      return generate(self, *arguments, **settings)

    with monkeypatch.context() as patch:
      patch.setattr(type(evaluator.engine), "generate", failing)
      with pytest.raises(KeyboardInterrupt):
        evaluator.write(params, "y")
    evaluator.write(params, "y")
  for way in ("greedy", "sampled"):
    one, other = (tmp_path / "results" / f"{name}_{way}.jsonl" for name in "xy")
    assert one.read_bytes() == other.read_bytes()
  texts = [item["reasoning"] for item in _items(tmp_path, "x_sampled")]
  assert len(set(texts)) > 10  # there was something to get wrong


# What is said.


def test_the_table_says_what_was_measured(make, tmp_path, capsys):
  evaluator, _ = make(lambda *_: "")
  questions = evaluator.run.pools["test"]
  evaluator, _ = make(_pasmr(questions), evaluation__sampled=True, evaluation__samples=2)
  evaluator.write(PARAMS, "x")
  summary.print_measures(tmp_path, evaluator.run.config, "x")
  said = capsys.readouterr().out
  assert "x, greedy, in %" in said
  assert "95 %" in said
  assert "100.0 │ 56.6-100.0" in said  # Wilson, 5 of 5
  assert "maj@2" in said
  assert "chrF++" in said
  assert "high resource" in said
  assert "answers found by: hash 100.0" in said
  assert "by other rules: lm_eval 0.0" in said


def test_texts_are_not_judged_where_languages_cannot_be_told_apart(make, tmp_path, capsys):
  evaluator, _ = make(lambda *_: "#### 5")
  evaluator.run.config.languages = ("de", "bn", "ha")  # Hausa, which lingua does not know
  evaluator = Evaluator(evaluator.run)
  assert "languages of answers are not judged: " in capsys.readouterr().err
  evaluator.write(PARAMS, "x")
  assert "language/reasoning/de" not in _measures(tmp_path)["greedy"]


def test_labels_are_checked_on_questions_that_self_feedback_may_be_asked(
  folder, tmp_path, monkeypatch, capsys
):
  """Its prompts have a tighter limit than the evaluation's: longer ones are told, not met."""
  config = _config(
    **{
      "tokenizer.path": str(folder / "tokenizer.model"),
      "stages": ("base", "pam", "srl"),
      "data.development": ("synthetic:12",),
      "evaluation.development_questions": 12,
      "evaluation.label_questions": 6,
    }
  )
  run = setup.make_run(config, tmp_path, pools=("development",))
  engine = ScriptedEngine(run.tokenizer, _pasmr(run.pools["development"]))
  monkeypatch.setattr(setup.Run, "engine", lambda *_: engine)

  def length(question):
    return len(prompts.question_prompt(run.tokenizer, config.prompt.question, question.text))

  lengths = sorted(length(q) for q in run.pools["development"] if q.language != "en")
  limit = lengths[len(lengths) // 2]
  assert lengths[0] < limit < lengths[-1]
  config.srl.max_prompt_length = limit
  evaluator, judged = Evaluator(run), []
  assert f"with a prompt of more than {limit} tokens left out" in capsys.readouterr().err

  def judge(stage, state, questions):
    judged.extend(questions)
    return {"label_accuracy": 0.5}

  monkeypatch.setattr(evaluation, "judge_accuracy", judge)
  state = TrainState(step=jnp.int32(0), params=PARAMS, opt_state=(), average=None)
  found = evaluator.development(state, object.__new__(SelfFeedbackStage))
  assert found["development/label_accuracy"] == 0.5
  assert len(judged) == 6
  assert {question.language for question in judged} == {"de", "bn"}
  assert max(map(length, judged)) <= limit


def test_labels_are_checked_in_every_language_though_few_questions_are_left_of_one(
  folder, tmp_path
):
  config = _config(
    **{
      "tokenizer.path": str(folder / "tokenizer.model"),
      "languages": ("de", "es", "sw"),
      "stages": ("base", "pam", "srl"),
      "data.development": ("synthetic:6",),
      "evaluation.label_questions": 8,
    }
  )
  run = setup.make_run(config, tmp_path, pools=("development",))
  left = {"en": 6, "de": 5, "es": 6, "sw": 1}
  run.pools["development"] = [
    question
    for language, count in left.items()
    for question in [q for q in run.pools["development"] if q.language == language][:count]
  ]
  judged = Evaluator(run)._judged
  assert [question.language for question in judged] == ["de", "es", "sw", *["de", "es"] * 2, "de"]
  assert len({(question.language, question.id) for question in judged}) == 8


def test_labels_that_are_anothers_need_two_questions(folder, tmp_path):
  config = _config(
    **{
      "tokenizer.path": str(folder / "tokenizer.model"),
      "languages": ("de",),
      "stages": ("srl",),
      "data.development": ("synthetic:2",),
      "evaluation.label_questions": 8,
      "evaluation.development_questions": 1,
      "feedback.source": "shuffled",
    }
  )
  run = setup.make_run(config, tmp_path, pools=("development",))
  with pytest.raises(ValueError, match=r"evaluation\.label_questions: one .* expected two or more"):
    Evaluator(run)
  config.evaluation.development_questions = 2
  assert len(Evaluator(run)._judged) == 2
  run.pools["development"] = [q for q in run.pools["development"] if q.language == "en"]
  config.checkpoint.metric = "development/pivot_accuracy"
  assert Evaluator(run)._judged == []
