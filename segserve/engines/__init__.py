"""Ways to run a network: a float batch of images in, float32 logits out. One file per way."""
