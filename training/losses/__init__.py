"""Losses on logits, each a function of logits and truth; `objective` adds up those a recipe asks for."""
