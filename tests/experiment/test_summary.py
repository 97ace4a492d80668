"""What is said at the start of a run."""

from configs import tiny
from pasmr_jax.experiment import summary
from pasmr_jax.experiment.setup import make_run


def test_updates_of_a_rollout_are_those_of_all_its_epochs(tmp_path, capsys):
  config = tiny.get_config()
  for pool, number in (("pivot", 9), ("triplets", 9), ("srl", 9), ("development", 4), ("test", 4)):
    config.data[pool] = (f"synthetic:{number}",)
  config.stages = ("pam", "srl")
  config.srl.update({"update_rows": 64, "inner_batches": 2, "inner_epochs": 3})
  summary.print_start(make_run(config, tmp_path))
  told = " ".join(capsys.readouterr().err.split())
  assert "64 rows learned from in 6 update(s)" in told
