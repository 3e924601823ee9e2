"""The flywheel: label a part, train, let the model label the rest, look, repeat. Masks only."""
