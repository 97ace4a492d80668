"""What is wrong with a configuration is said before anything is compiled, all of it at once."""

import dataclasses
import json
import math
import re
import runpy

import pytest

from configs import base, tiny
from pasmr_jax.experiment import setup, validation
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.reliability.identity import flatten
from pasmr_jax.experiment.setup import make_run
from pasmr_jax.stages.supervised import examples


def _config(**changes):
  config = tiny.get_config()
  small = {"data.pivot": ("synthetic:5",), "data.translation": ("synthetic:5",)}
  small |= {f"data.{name}": ("synthetic:5",) for name in ("srl", "development", "test")}
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  config.update_from_flattened_dict(small | changes)
  return config


def test_the_shipped_configurations_are_valid():
  from configs import gemma_270m_cpu, pasmr_gemma

  validation.check(tiny.get_config())
  for size in pasmr_gemma.SIZES:
    validation.check(pasmr_gemma.get_config(size), devices=8)
  config = gemma_270m_cpu.get_config()
  config.model.pretrained = "model.gguf"
  validation.check(config)
  with pytest.raises(ValueError, match=r"pasmr_gemma.py:3b: expected one of 270m"):
    pasmr_gemma.get_config("3b")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"languages": ("de", "xx")}, "languages: unknown language 'xx'; expected one of"),
    ({"languages": ("de", "en")}, "languages holds the pivot 'en'"),
    ({"stages": ("srl", "pam")}, r"stages is \('srl', 'pam'\); expected some of"),
    ({"stages": ("sft",)}, r"stages is \('sft',\); expected some of"),
    ({"pam__batch_size": 9, "pam__microbatches": 2}, "pam.batch_size is 9; expected a multiple"),
    ({"srl__update_rows": 500}, "srl.update_rows is 500; expected at most .* = 128"),
    ({"srl__update_rows": 46, "srl__inner_batches": 4}, "srl.update_rows is 46; expected a multip"),
    ({"srl__row_bucket": 6}, "srl.row_bucket is 6; expected a multiple of srl.microbatches"),
    ({"srl__row_length": 100}, r"srl.row_length is 100; expected 0 or at least .* = 136"),
    ({"srl__advantage": "ppo"}, "srl.advantage is 'ppo'; expected one of grpo, dr_grpo"),
    ({"feedback__source": "oracle"}, "feedback.source is 'oracle'; expected one of pivot"),
    ({"srl__temperature": 0.0}, "srl.temperature is 0.0; expected more than 0"),
    ({"srl__group_size": 1, "srl__update_rows": 0}, "srl.group_size is 1; expected at least 2"),
    ({"prompt__question": "Q:"}, "prompt.question is 'Q:'; expected {question} once"),
    ({"tokenizer__path": ""}, "tokenizer.path is '' and so is model.pretrained"),
    ({"data__srl": ()}, "data.srl is empty"),
    ({"data__test": ()}, "(?m)^  data.test is empty; expected questions with answers$"),
    ({"data__development": ()}, "(?m)^  data.development is empty; expected questions with ans"),
    ({"pam__mixture__triplets": -1.0}, "pam.mixture.triplets is -1.0"),
    ({"prompt__style": "letter"}, "prompt.style is 'letter'; expected one of plain"),
    ({"prompt__system": "Be brief."}, "prompt.system is 'Be brief.'; expected '' unless"),
    ({"prompt__thinking": True}, "prompt.thinking is True; expected False unless"),
    ({"tokenizer__delimiters": "new"}, "tokenizer.delimiters is 'new'; expected one of added"),
    ({"tokenizer__close": "<b>"}, "expected both or neither to be ''"),
    ({"model__attention": "flash"}, "model.attention is 'flash'; expected one of auto, xla"),
    ({"evaluation__ask": "politely"}, "evaluation.ask is 'politely'; expected one of pasmr"),
    ({"evaluation__scoring": "strict"}, "evaluation.scoring is 'strict'; expected one of pasmr"),
    ({"evaluation__samples": 0}, "evaluation.samples is 0; expected more than 0"),
    (
      {"evaluation__samples": 4, "evaluation__sampled": False},
      "evaluation.samples is 4 but evaluation.sampled is False",
    ),
    ({"evaluation__exemplars": 9, "evaluation__ask": "direct"}, "exemplars is 9; expected 0 to 8"),
    ({"evaluation__exemplars": 8}, "exemplars is 8; expected 0 with evaluation.ask=pasmr"),
    (
      {"evaluation__exemplars": 8, "evaluation__ask": "native_cot"},
      "evaluation.exemplar_file is '' but evaluation.exemplars is 8",
    ),
    ({"evaluation__template": "Q:"}, "evaluation.template is 'Q:'; expected {question} once"),
    ({"evaluation__stop": ("",)}, r"evaluation.stop is \(''"),
    (
      {"evaluation__ask": "direct", "evaluation__pivot_agreement": True},
      "pivot_agreement is True; expected False with evaluation.ask=direct",
    ),
    ({"lora__rank": -1}, "lora.rank is -1; expected 0 or more"),
    ({"lora__alpha": 0.0}, "lora.alpha is 0.0; expected more than 0"),
    ({"lora__targets": ("q_proj",)}, r"lora.targets is \('q_proj',\); expected some of query, key"),
    ({"lora__targets": ("up", "up")}, "lora.targets is .* each once"),
    ({"lora__targets": ()}, r"lora.targets is \(\); expected some of"),
    (
      {"srl__optimizer__name": "sgd"},
      "srl.optimizer.name is 'sgd'; expected one of adamw, .* muon",
    ),
    ({"pam__optimizer__decayed": "some"}, "pam.optimizer.decayed is 'some'; expected one of mat"),
    (
      {"base__optimizer__moment_dtype": "float16"},
      "base.optimizer.moment_dtype is 'float16'; expected one of , float32, bfloat16",
    ),
    ({"pam__optimizer__b2": 1.0}, "pam.optimizer.b2 is 1.0; expected 0 or more and less than 1"),
    ({"pam__optimizer__learning_rate": 0.0}, "pam.optimizer.learning_rate is 0.0; expected more"),
    ({"pam__optimizer__clip_norm": -1.0}, "pam.optimizer.clip_norm is -1.0; expected 0 or more"),
    ({"srl__optimizer__final_fraction": 2.0}, "final_fraction is 2.0; expected 0 to 1"),
    ({"srl__top_p": 0.0}, "srl.top_p is 0.0; expected more than 0 and at most 1"),
    ({"srl__top_k": -1}, "srl.top_k is -1; expected 0 or more"),
    ({"srl__min_p": 1.0}, "srl.min_p is 1.0; expected 0 or more and less than 1"),
    ({"srl__clip_high": -0.5}, "srl.clip_high is -0.5; expected 0 or more"),
    ({"rollout__slots": -1}, "rollout.slots is -1; expected 0 or more"),
    ({"pam__microbatches": 0}, "pam.microbatches is 0; expected more than 0"),
    ({"srl__optimizer__learning_rate": math.nan}, "srl.optimizer.learning_rate is nan; expected"),
    ({"srl__kl_coef": math.nan}, "srl.kl_coef is nan; expected 0 or more"),
    (
      {"srl__patience": 3, "evaluation__every": 0},
      "srl.patience is 3 but evaluation.every is 0; expected more than 0, or patience 0",
    ),
    ({"data__test": ("mgsn",)}, "data.test has source 'mgsn'; .* or one of mgsm, mgsm_rev2"),
    (
      {"feedback__source": "shuffled", "srl__questions": 1, "srl__update_rows": 0},
      "srl.questions is 1; expected at least 2, two a process, with feedback.source=shuffled",
    ),
    (
      {"feedback__source": "shuffled", "evaluation__label_questions": 1},
      "evaluation.label_questions is 1; expected two or more, or 0, with feedback.source=shuffled",
    ),
    (
      {"stages": ("srl",), "pam__mixture__triplets": 0.0, "pam__mixture__pivot": 0.0},
      "pam.mixture is all zero; expected a positive share",  # of the rehearsal
    ),
    (
      {"stages": ("srl",), "data__triplets": ()},
      "pam.mixture.triplets is 0.3 but data.triplets is empty; expected a source",
    ),
    ({"data__srl": ("mgsm",)}, "data.srl has the evaluation set 'mgsm'; expected it in data.test"),
  ],
)
def test_each_problem_is_named_with_its_key(changes, said):
  with pytest.raises(ValueError, match=said):
    validation.check(_config(**changes), devices=4)


def _numbers():
  return {
    key: value
    for key, value in flatten(_config()).items()
    if isinstance(value, int | float) and not isinstance(value, bool)
  }


@pytest.mark.parametrize("key", _numbers())
def test_no_number_may_be_nan_or_anything(key):
  wrong = [math.nan] if isinstance(_numbers()[key], float) else []
  if not key.startswith(("mesh.", "reward.")):  # which the mesh checks; which weigh as one likes
    wrong.append(-3)
  for value in wrong:
    with pytest.raises(ValueError, match=rf"(?m)^  {re.escape(key)} is {value}(\.0)?; expected"):
      validation.check(_config(**{key: value}))


def test_microbatches_that_would_divide_are_named():
  with pytest.raises(ValueError, match=r"srl.row_bucket is 8; .* = 2 \* 8: set") as found:
    validation.check(_config(), devices=8)
  _, *problems = str(found.value).splitlines()
  assert len(problems) == 2
  assert all(problem.endswith(": set srl.microbatches=1") for problem in problems)
  validation.check(_config(srl__microbatches=1), devices=8)
  with pytest.raises(
    ValueError, match=r"pam.batch_size is 16; .* = 1 \* 5: set a multiple of 5 ro"
  ):
    validation.check(_config(), devices=5)


def test_batches_of_stages_that_do_not_run_may_be_of_any_size():
  pam = {"stages": ("pam",), "pam__batch_size": 64, "pam__microbatches": 1}
  validation.check(_config(**pam, base__batch_size=32), devices=64)
  with pytest.raises(ValueError, match=r"base\.batch_size is 32; expected a multiple of") as found:
    validation.check(_config(**pam | {"stages": ("base", "pam")}, base__batch_size=32), devices=64)
  assert "srl." not in str(found.value)


def test_what_only_self_feedback_cannot_do_is_no_problem_without_it():
  changes = {"languages": ("de", "ha"), "feedback__source": "shuffled", "srl__questions": 1}
  validation.check(_config(stages=("base", "pam"), srl__update_rows=0, **changes))


def test_what_only_training_reads_is_no_problem_without_it():
  """Of eval.py, which reads the test, and of export.py, which reads no question."""
  config = base.get_config()  # of which pam and srl have no data
  config.model.pretrained = "model"
  config.data.srl = config.data.test = ("json:x",)
  config.pam.patience, config.evaluation.every, config.pam.microbatches = 3, 0, 7
  config.srl.questions, config.feedback.source = 1, "shuffled"
  with pytest.raises(ValueError, match=r"(?s)data.triplets is empty.*disjoint.*pam.patience is 3"):
    validation.check(config)
  validation.check(config, pools=("test",))
  config.data.test = ()
  with pytest.raises(ValueError, match=r"run:\n  data.test is empty; expected questions with ans"):
    validation.check(config, pools=("test",))
  validation.check(config, pools=())


def test_a_run_does_not_begin_with_itself(tmp_path):
  own, other = tmp_path / "run", tmp_path / "other"
  own.mkdir()
  other.symlink_to(own)
  for name in (own, other, own / ".." / "run"):
    config = _config(stages=("pam",), init_from=str(name))
    with pytest.raises(
      ValueError, match=r"init_from is '.*', which is --workdir; expected another"
    ):
      validation.check(config, workdir=own)
    validation.check(config, workdir=tmp_path / "new")
    validation.check(config)  # whatever eval.py and export.py are given


def test_published_sets_may_be_evaluated():
  validation.check(_config(data__test=("mgsm", "msvamp[:100]"), data__development=("mgsm[:9]",)))


def _written(path, *lines):
  """The configuration of a file with these lines."""
  head = "from configs import base\n\n\ndef get_config():"
  path.write_text("\n  ".join([head, "config = base.get_config()", *lines, "return config"]))
  return runpy.run_path(str(path))["get_config"]()


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("srl.group_sizes = 16", "srl.group_sizes is no key; expected .*, such as srl.group_size$"),
    ("feedback.sorce = 'gold'", "feedback.sorce is no key; expected .*, such as feedback.source$"),
    ("group_size = 16", "group_size is no key; expected .*, such as srl.group_size$"),
    ("pam.mixture.triplet = 0.5", "pam.mixture.triplet is no key; .* such as pam.mixture.triplets"),
    ("zzz = 1", "zzz is no key; expected one of configs/base.py$"),
    ("feedback = {'source': 'gold'}", "feedback lacks confidence, ema_decay, .* one by one"),
    ("lora = {'rank': '8', 'alpha': 8, 'targets': ['up']}", "lora.rank is '8'; expected .* like 0"),
    ("srl.group_size = None", "srl.group_size is None; expected a value like 16"),
  ],
)
def test_a_key_that_a_file_misspells_is_named_with_the_nearest(tmp_path, line, said):
  with pytest.raises(ValueError, match=rf"(?m)^  {said}") as found:
    validation.check(_written(tmp_path / "config.py", f"config.{line}"))
  assert len(str(found.value).splitlines()) == 2


def test_a_file_may_leave_pools_out_of_a_mixture(tmp_path):
  pools = ("triplets", "srl", "development")
  sources = [f"config.data.{name} = ('json:{name}',)" for name in pools]
  config = _written(
    tmp_path / "config.py",
    *sources,
    "config.tokenizer.path = 'x'",
    "config.data.test = ['mgsm']",
    "config.pam.mixture = {'triplets': 1}",
    "config.lora = {'rank': 0, 'alpha': 8, 'targets': ['up']}",
  )
  validation.check(config)


def test_all_problems_are_listed_at_once():
  with pytest.raises(ValueError, match=r"(?s)srl.advantage.*reward.kind"):
    validation.check(_config(srl__advantage="ppo", reward__kind="hard"))


@pytest.mark.parametrize(
  ("changes", "error", "said"),
  [
    ({"data__test": ("mgsm:/nowhere/x_de.tsv",)}, FileNotFoundError, "/nowhere/x_de.tsv: no such"),
    ({"tokenizer__path": "/nowhere/t.model"}, (ValueError, OSError), "/nowhere/t.model"),
    ({"mesh__tensor": 3}, ValueError, "mesh.tensor: found 3, expected a divisor of the 8 devices"),
    (
      {"evaluation__max_prompt_length": 2},
      ValueError,
      "data.development: none of 30 questions has a prompt of at most 2 tokens",
    ),
  ],
)
def test_bad_input_is_found_when_the_run_is_made(tmp_path, changes, error, said):
  config = _config(**changes)
  with pytest.raises(error, match=said):
    Evaluator(make_run(config, tmp_path))


def test_a_later_stage_cannot_find_its_questions_too_long(tmp_path):
  with pytest.raises(ValueError, match=r"data.srl: none of 25 questions has a prompt of at most 2"):
    make_run(_config(srl__max_prompt_length=2), tmp_path)
  make_run(_config(srl__max_prompt_length=2), tmp_path, pools=("test",))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"pam__max_length": 16}, "data.pivot has no example of at most pam.max_length=16 tokens, tho"),
    (
      {"pam__max_length": 16, "stages": ("base",), "base__max_length": 16},
      "data.pivot has no example of at most base.max_length=16",
    ),
    (  # of the rehearsal
      {"pam__max_length": 16, "stages": ("srl",), "pam__mixture__pivot": 0.0},
      "data.triplets has no example of at most pam.max_length=16 .* pam.mixture.triplets is 0.3",
    ),
  ],
)
def test_a_later_stage_cannot_find_its_examples_too_long(tmp_path, changes, said):
  with pytest.raises(ValueError, match=said):
    make_run(_config(**changes), tmp_path)
  make_run(_config(**changes), tmp_path, pools=("test",))
  changes = {"stages": ("srl",), "srl__rehearsal_weight": 0.0} | {"pam__max_length": 16}
  make_run(_config(**changes), tmp_path)  # which reads no example


def test_examples_are_read_as_far_as_the_first_that_fits(tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(
    setup,
    "examples",
    lambda kind, pool, *others: read.append(kind) or examples(kind, pool, *others),
  )
  make_run(_config(stages=("pam",), pam__mixture__pivot=0.5), tmp_path)
  assert read == ["pivot", "triplets"]


def test_processes_that_cannot_share_a_batch_are_named_with_its_key(monkeypatch):
  monkeypatch.setattr(validation, "process_count", lambda: 16)
  changes = {"pam__batch_size": 8, "base__batch_size": 24, "srl__rehearsal_rows": 12}
  with pytest.raises(ValueError, match=r"run:\n  ") as found:
    validation.check(_config(**changes, srl__microbatches=1, srl__questions=8))
  _, *problems = str(found.value).splitlines()
  expected = {"base.batch_size": 24, "pam.batch_size": 8, "srl.questions": 8}
  expected["srl.rehearsal_rows"] = 12
  assert problems == [
    f"  {key} is {rows}; expected a multiple of the 16 processes" for key, rows in expected.items()
  ]


@pytest.mark.parametrize(
  ("metric", "languages", "said"),
  [
    ("sampled/target_accuracy", ("en", "de"), "evaluation.sampled is False"),
    ("pivot_accuracy", ("de", "es"), "data.development has no question in en"),
    ("target_accuracy", ("en",), "data.development has no question in de, .*"),
    ("pivot_accuracy", ("en",), None),
    ("target_accuracy", ("de",), None),
  ],
)
def test_a_metric_that_is_not_measured_is_found_before_training(tmp_path, metric, languages, said):
  metric = f"development/{metric}"
  run = make_run(_config(checkpoint__metric=metric, evaluation__sampled=False), tmp_path)
  kept = [question for question in run.pools["development"] if question.language in languages]
  run.pools["development"] = kept
  if said is None:
    Evaluator(run)
    return
  with pytest.raises(ValueError, match=f"checkpoint.metric is '{metric}', but {said}; expected"):
    Evaluator(run)
  del run.pools["development"]  # as in eval.py, which measures nothing there
  Evaluator(run)


def test_a_gold_answer_that_cannot_be_learned_from_is_named_when_the_run_is_made(tmp_path):
  path = tmp_path / "gold_de.jsonl"
  lines = [{"question": "Wie viele?", "answer": answer} for answer in ("12", "keine Ahnung")]
  path.write_text("\n".join(map(json.dumps, lines)))
  source = (f"json:{path}",)
  config = _config(languages=("de",), data__srl=source, feedback__source="gold")
  with pytest.raises(ValueError, match=r"question '\w*2' \(de\): gold answer 'keine Ahnung'"):
    make_run(config, tmp_path)
  config.feedback.source = "pivot"
  assert {question.answer for question in make_run(config, tmp_path).pools["srl"]} == {None}


def test_over_long_prompts_are_counted_and_left_out_never_cut(tmp_path, capsys):
  run = make_run(_config(), tmp_path)
  lengths = [len(run.tokenizer.encode(q.text)) + 2 for q in run.pools["srl"]]
  limit = sorted(lengths)[len(lengths) // 2]
  kept = run.fitting(run.pools["srl"], limit, "srl")
  assert len(kept) == sum(length <= limit for length in lengths)
  said = capsys.readouterr().err
  assert f"{len(lengths) - len(kept)} with a prompt of more than {limit} tokens left out" in said


@pytest.mark.parametrize("rows", [100, 2 * 756 + 1])
def test_a_tokenizer_of_another_size_than_the_model_is_refused(tmp_path, monkeypatch, rows):
  config = _config()
  tokenizer = setup.make_tokenizer(config, tmp_path)
  other = dataclasses.replace(setup.model_config(config, tokenizer), vocab_size=rows)
  monkeypatch.setattr(setup.pretrained, "load_config", lambda path: other)
  config.model.pretrained = "folder"
  said = f"has 756 ids, but the model folder has embeddings for {rows}"
  with pytest.raises(ValueError, match=said):
    setup.model_config(config, tokenizer)
