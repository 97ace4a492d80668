"""Pivot-aligned self-feedback multilingual reasoning (PASMR) in JAX."""
