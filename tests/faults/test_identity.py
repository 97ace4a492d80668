"""What may change between a checkpoint and the run that goes on from it, and what may not."""

import dataclasses
import json
import pathlib

import pytest

from configs import tiny
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.reliability.identity import (
  LAYOUT,
  ChangedError,
  Identity,
  check_changes,
  flatten,
  questions_checksum,
)
from pasmr_jax.experiment.reliability.weights import weights_checksum

pytestmark = pytest.mark.faults

POOLS = ("pivot", "triplets", "srl", "target", "translation", "development")


def _identity(**changes) -> Identity:
  config = tiny.get_config()
  identity = Identity(
    config=flatten(config),
    pools=dict(zip(POOLS, "abcdef", strict=True)),
    tokenizer="t",
    code={"jax": "1", "commit": "x"},
  )
  for key, value in changes.items():
    key = key.replace("__", ".")
    assert key in identity.config, key
    identity.config[key] = value
  return identity


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  """Base and PAM have ended, SRL is at step 8."""
  for stage, step in (("base", 20), ("pam", 30), ("srl", 8)):
    folder = tmp_path / "checkpoints" / stage / str(step) / "record"
    folder.mkdir(parents=True)
    record = {"identity": dataclasses.asdict(_identity())}
    (folder / "metadata").write_text(json.dumps(record))
  return tmp_path


def test_nothing_changed(workdir):
  assert check_changes(workdir, _identity(), force=False) == []


@pytest.mark.parametrize(
  "changes",
  [
    {"srl__steps": 999},
    {"log__every": 5},
    {"checkpoint__every": 7},
    {"evaluation__every": 3},
    {"checkpoint__compiled": False},
    {"guard__collapse_action": "stop"},
    {"mesh__tensor": 2},
    {"mesh__fsdp": 4},
    {"srl__microbatches": 4},
    {"rollout__slots": 8},
    {"rollout__refill_steps": 4},
    {"srl__patience": 3},
    {"model__remat": "full"},
    {"tokenizer__path": "/moved/tokenizer.model"},
  ],
)
def test_what_cannot_matter_goes_on_and_is_told(workdir, changes):
  told = check_changes(workdir, _identity(**changes), force=False)
  (key,) = changes
  assert any(key.replace("__", ".") in text for text in told)
  assert not any("--force" in text for text in told)


def test_data_may_move_as_long_as_it_is_the_same(workdir):
  assert check_changes(workdir, _identity(data__root="/elsewhere"), force=False) == []


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"srl__optimizer__learning_rate": 1.0}, "srl: srl.optimizer.learning_rate was 0.0005, is 1.0"),
    ({"seed": 7}, "base: seed was 0, is 7"),
    ({"languages": ["de"]}, "languages was"),
    ({"model__embed_dim": 64}, "model.embed_dim was 128, is 64"),
    ({"feedback__source": "gold"}, "srl: feedback.source was 'pivot', is 'gold'"),
    ({"pam__batch_size": 64}, "pam: pam.batch_size was 16, is 64"),
    ({"pam__mixture__pivot": 0.5}, "srl: pam.mixture.pivot was 0.7, is 0.5"),
    ({"stages": ["pam", "srl"]}, "stages was"),
    ({"checkpoint__metric": "x"}, "checkpoint.metric was 'development/target_accuracy', is 'x'"),
    ({"srl__steps": 7}, "srl: srl.steps was 200, is 7"),  # step 8 is made
    ({"srl__steps": 8}, "srl: srl.steps was 200, is 8"),
    ({"rollout__cache_dtype": "int8"}, "srl: rollout.cache_dtype was '', is 'int8'"),
    ({"lora__rank": 4}, "pam: lora.rank was 0, is 4"),
    ({"prompt__question": "Q: {question}"}, "prompt.question was"),
    # SRL began from where PAM ended.
    ({"pam__steps": 400}, "pam: pam.steps was 200, is 400"),
  ],
)
def test_what_matters_is_refused_with_both_values(workdir, changes, said):
  now = _identity(**changes)
  with pytest.raises(ChangedError) as raised:
    check_changes(workdir, now, force=False)
  assert said in str(raised.value)
  assert "--force" in str(raised.value)
  told = check_changes(workdir, now, force=True)
  assert any(text.startswith("--force: ") and said in text for text in told)


def test_checkpoints_of_a_stage_that_has_been_built_upon_are_compared_no_more(workdir):
  changed = _identity(checkpoint__metric="development/pivot_accuracy")
  with pytest.raises(ChangedError) as raised:
    check_changes(workdir, changed, force=False)
  assert "srl: checkpoint.metric" in str(raised.value)
  assert "pam: checkpoint.metric" not in str(raised.value)
  other = dataclasses.replace(_identity(), pools=_identity().pools | {"development": "other"})
  told = "data.development holds other questions; the best so far was the best by others"
  assert check_changes(workdir, other, force=False) == [f"srl: {told}"]


def test_feedback_does_not_concern_what_came_before_it(workdir):
  (workdir / "checkpoints" / "srl").rename(workdir / "removed")
  now = _identity(feedback__source="gold", srl__group_size=4, pam__steps=400)
  assert check_changes(workdir, now, force=False) == ["pam: pam.steps was 200, is 400"]


def test_how_prompts_are_sampled_does_not_concern_what_samples_nothing(workdir):
  with pytest.raises(ChangedError) as raised:
    check_changes(workdir, _identity(rollout__cache_dtype="int8"), force=False)
  assert "base: rollout" not in str(raised.value)
  assert "pam: rollout" not in str(raised.value)


@pytest.mark.parametrize("ending", ["steps", "patience", "collapse"])
def test_steps_of_a_stage_that_has_ended(workdir, ending):
  path = workdir / "checkpoints" / "srl" / "8" / "record" / "metadata"
  identity = dataclasses.asdict(_identity(srl__steps=8 if ending == "steps" else 300))
  progress = {"finished": True, "ending": ending}
  path.write_text(json.dumps({"identity": identity, "progress": progress}))
  asked = {steps: _identity(srl__steps=steps) for steps in (7, 400)}
  with pytest.raises(ChangedError, match=r"srl\.steps was \d+, is 7"):
    check_changes(workdir, asked[7], force=False)
  if ending == "steps":
    assert check_changes(workdir, asked[400], force=False) == ["srl: srl.steps was 8, is 400"]
  else:
    with pytest.raises(ChangedError, match=r"srl\.steps was 300, is 400"):
      check_changes(workdir, asked[400], force=False)


@pytest.mark.parametrize(
  ("pool", "said"), [("srl", "srl: data.srl holds other"), ("target", "base: data.target holds")]
)
def test_other_questions_are_refused(workdir, pool, said):
  now = _identity()
  now.pools[pool] = "other"
  with pytest.raises(ChangedError, match=said):
    check_changes(workdir, now, force=False)


def test_adapters_do_not_concern_the_base_stage(workdir):
  with pytest.raises(ChangedError) as raised:
    check_changes(workdir, _identity(lora__rank=4), force=False)
  assert "base: lora" not in str(raised.value)


def _began_with(workdir, weights, **changes):
  """Every stage's checkpoint says so."""
  for path in workdir.rglob("metadata"):
    identity = dataclasses.replace(_identity(**changes), weights=weights)
    path.write_text(json.dumps({"identity": dataclasses.asdict(identity)}))


def test_other_weights_where_the_run_began_are_refused(workdir):
  _began_with(workdir, "one")
  said = "base: the weights that the run began with are no longer the same"
  with pytest.raises(ChangedError, match=said) as raised:
    check_changes(workdir, dataclasses.replace(_identity(), weights="other"), force=False)
  assert "pam: the weights" not in str(raised.value)  # it began from the end of base
  for same in ("one", ""):  # '': they are gone, and nobody needs them any more
    assert check_changes(workdir, dataclasses.replace(_identity(), weights=same), False) == []


def test_a_run_that_was_begun_with_may_move_as_long_as_its_weights_are_the_same(workdir):
  _began_with(workdir, "one", init_from="/runs/start")
  moved = _identity(init_from="/archive/start")
  same, other = (dataclasses.replace(moved, weights=weights) for weights in ("one", "other"))
  said = "base: init_from was '/runs/start', is '/archive/start'"
  assert check_changes(workdir, same, force=False) == [said]
  for unknown in (moved, other):
    with pytest.raises(ChangedError, match=said):
      check_changes(workdir, unknown, force=False)
  _began_with(workdir, "", init_from="/runs/start")
  with pytest.raises(ChangedError, match=said):
    check_changes(workdir, moved, force=False)


def test_other_weights_under_adapters_concern_each_of_their_stages(workdir):
  _began_with(workdir, "one", lora__rank=4)
  with pytest.raises(ChangedError) as raised:
    check_changes(
      workdir, dataclasses.replace(_identity(lora__rank=4), weights="other"), force=False
    )
  assert all(f"{stage}: the weights that" in str(raised.value) for stage in ("base", "pam", "srl"))


def test_weights_are_known_by_what_is_in_their_files_and_not_by_where_they_lie(tmp_path):
  config = tiny.get_config()
  assert weights_checksum(config) == ""
  one, moved = tmp_path / "one", tmp_path / "moved"
  one.mkdir()
  (one / "config.json").write_text("{}")
  (one / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
  config.model.pretrained = str(one)
  first = weights_checksum(config)
  one.rename(moved)
  config.model.pretrained = str(moved)
  assert weights_checksum(config) == first
  for file in ("config.json", "model.safetensors"):
    whole = (moved / file).read_bytes()
    for change in (whole + b" ", whole[:-1], bytes(255 - byte for byte in whole)):
      (moved / file).write_bytes(change)
      assert weights_checksum(config) != first
    (moved / file).write_bytes(whole)
  assert weights_checksum(config) == first


def test_another_tokenizer_is_refused(workdir):
  now = dataclasses.replace(_identity(), tokenizer="other")
  with pytest.raises(ChangedError, match="the tokenizer is another"):
    check_changes(workdir, now, force=False)


def test_other_code_goes_on_and_is_told(workdir):
  now = dataclasses.replace(_identity(), code={"jax": "2", "commit": "x"})
  told = check_changes(workdir, now, force=False)
  assert "srl: jax was 1, is 2; results may differ in the last bits" in told


def test_checkpoints_of_newer_code_are_refused(workdir):
  now = dataclasses.replace(_identity(), layout=LAYOUT - 1)
  with pytest.raises(ChangedError, match=f"layout {LAYOUT}, this code knows {LAYOUT - 1}"):
    check_changes(workdir, now, force=False)


def test_keys_that_come_and_go_with_versions_are_told(workdir):
  now = _identity()
  now.config["srl.new_key"] = 1
  del now.config["srl.top_k"]
  told = check_changes(workdir, now, force=False)
  assert told == ["srl: srl.new_key is new in this version", "srl: srl.top_k is no longer a key"]


def test_a_checkpoint_with_a_window_that_is_no_key_any_more_goes_on(workdir):
  assert "model.sliding_window" not in _identity().config
  for path in workdir.rglob("metadata"):
    record = json.loads(path.read_text())
    record["identity"]["config"]["model.sliding_window"] = 128
    path.write_text(json.dumps(record))
  told = check_changes(workdir, _identity(), force=False)
  assert told == [
    f"{stage}: model.sliding_window is no longer a key" for stage in ("base", "pam", "srl")
  ]


def test_a_checkpoint_of_before_identities_goes_on(workdir):
  for path in workdir.rglob("metadata"):
    path.write_text("{}")
  assert check_changes(workdir, _identity(seed=7), force=False) == []


def test_a_checksum_is_of_all_that_was_read():
  question = Question("1", "de", "Wie viele?", answer="3")
  same = questions_checksum([question])
  assert questions_checksum([dataclasses.replace(question)]) == same
  for change in ({"text": "Wieviele?"}, {"answer": "4"}, {"answer": None}, {"id": "2"}):
    assert questions_checksum([dataclasses.replace(question, **change)]) != same
  assert questions_checksum([question, question]) != same
