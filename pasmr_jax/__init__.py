"""Pivot-aligned self-feedback multilingual reasoning (PASMR) in JAX."""

from typing import Any, TypeAlias

# An ml_collections.ConfigDict. Its keys have no static types: configs/base.py says what they are,
# and experiment/validation.py checks their values.
Config: TypeAlias = Any
