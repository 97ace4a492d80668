"""The largest batch that fits is found in few tries."""

from pasmr_jax.experiment.planning.worker import largest


def test_the_largest_that_fits_is_found_to_an_eighth():
  for most in (0, 1, 2, 7, 16, 100):
    asked = []

    def fits(number, most=most, asked=asked):
      asked.append(number)
      return number <= most

    found = largest(fits, 4)
    assert found <= most <= found + max(1, found // 8) - (found < 8)
    assert len(asked) <= 11
