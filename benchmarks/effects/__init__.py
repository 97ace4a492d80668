"""What the two studies of the method's effect share and are made of (effect.py, study.py)."""
