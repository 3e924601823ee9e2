"""Networks whose samples have nothing to do with each other, so that dividing a batch changes no result.

As a program, run by torchrun in `tests/test_ranks.py`, it trains one of them a little and then a real network.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import cli
from segserve.networks import build_network
from training import engine, learner
from training.config import Recipe, load_recipe
from training.layouts import open_dataset
from training.ranks import Ranks, joined_ranks

CPU = torch.device("cpu")


def network_without_batch_norm(*given: Any, **options: Any) -> nn.Module:
    """The network of the same arguments, with group norm in place of batch norm."""
    network = build_network(*given, **options)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return network


def train_an_epoch(recipe: Recipe, ranks: Ranks) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of such a network, and the gradient of the last step."""
    with mock.patch.object(learner, "build_network", network_without_batch_norm):
        dataset = open_dataset(recipe.data.root, recipe.task)
        one = learner.build_learner(recipe, dataset, checkpoint=None, device=CPU, ranks=ranks)
    for batch in one.batches.batches(0):
        one.losses.append(engine._step(one, *batch))
    return one.losses, {name: weight.grad for name, weight in one.network.named_parameters() if weight.grad is not None}


if __name__ == "__main__":
    recipe = Path(sys.argv[1])
    with joined_ranks(CPU) as ranks:
        torch.save(train_an_epoch(load_recipe(recipe), ranks), f"rank{ranks.rank}.pt")
        sys.exit(cli.main(["train", str(recipe), "--set", "optim.accumulate=1"]))
