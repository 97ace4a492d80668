"""Tables of Markdown."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table; every row has a cell for each head."""
  ruled = [heads, ["---"] * len(heads), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
