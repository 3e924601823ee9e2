"""Folding: convolutions that do the work of the batch norm after them, too.

In evaluation a batch norm is one factor and one shift a channel, which the weights and the bias of the convolution
before it can take over: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2. The pairs are found in the
network's graph, see `torch.fx`.
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch.fx
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy for evaluation that computes the same, but for rounding, without the batch norms after convolutions.

    A batch norm stays where something else takes the convolution's output, too, or where the network's way through its
    layers depends on what it is given.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    _fold(copied)
    return copied


def _fold(network: nn.Module) -> None:
    try:
        graph = torch.fx.Tracer().trace(network)
    except TraceError:
        for part in network.children():
            _fold(part)
        return
    for conv_path, norm_path in list(_pairs(graph, network)):
        conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _replace(network, conv_path, fuse_conv_bn_eval(conv, norm))
        _replace(network, norm_path, nn.Identity())


def _pairs(graph: torch.fx.Graph, network: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of each convolution and its batch norm, both of which run once."""
    runs = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if not isinstance(_module(node, network), nn.BatchNorm2d):
            continue
        (source,) = node.all_input_nodes
        if not isinstance(_module(source, network), nn.Conv2d):
            continue
        if len(source.users) == runs[str(source.target)] == runs[str(node.target)] == 1:
            yield str(source.target), str(node.target)


def _module(node: torch.fx.Node, network: nn.Module) -> nn.Module | None:
    """What runs there; None where it is no module."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
