"""Reading pretrained weights."""
