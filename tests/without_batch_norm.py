"""Networks whose samples have nothing to do with each other, so that dividing a batch changes no result.

Run by torchrun, in `tests/test_ranks.py`: trains one, then a real network by the command.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cli
from segserve.networks import build_network
from training import learner
from training.config import load_recipe
from training.engine import train
from training.ranks import joined_ranks


def network_without_batch_norm(*given: Any, **options: Any) -> nn.Module:
    """The network of the same arguments, with group norm in place of batch norm."""
    network = build_network(*given, **options)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return network


if __name__ == "__main__":
    recipe, run_dir = Path(sys.argv[1]), Path(sys.argv[2])
    with joined_ranks(torch.device("cpu")):  # a process can join only once
        learner.build_network = network_without_batch_norm  # type: ignore[assignment]
        train(load_recipe(recipe), run_dir=run_dir)
        learner.build_network = build_network
        sys.exit(cli.main(["train", str(recipe)]))
