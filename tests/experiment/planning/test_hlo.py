"""How often the computations of a compiled program run."""

import pytest

from pasmr_jax.experiment.planning import hlo
from tests.experiment.planning.scheduled import PROGRAM


def test_loops_are_known_or_decided_while_they_run():
  module = hlo.parse(PROGRAM)
  main = module.computations["main"].by_name
  assert hlo.trips(module, main["loop"]) == 4
  assert hlo.trips(module, main["decoded"]) is None
  times = hlo.executions(module, dynamic_trips=10, fusions=False)
  assert (times["body"], times["stepping"], times["main"]) == (4, 10, 1)
  assert "take_layer" not in times
  assert hlo.executions(module, 10, fusions=True)["take_layer"] == 4


def test_trips_that_the_compiler_wrote_down_count():
  known = 'body=%stepping, backend_config={"known_trip_count":{"n":"6"},"other":1}'
  module = hlo.parse(PROGRAM.replace("body=%stepping", known))
  assert hlo.executions(module, dynamic_trips=10, fusions=False)["stepping"] == 6


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="found no ENTRY"):
    hlo.parse("HloModule m\n")
