"""Opponents that train the raw network in PyTorch: ``Linear, BatchNorm1d, ReLU, Linear``.

The objective is the paper's: a sum over rows plus weight decay on gamma, alpha and the output weights. To be
fair to them, columns are standardised, targets have unit norm, the first network is balanced and in scale
with the target, and the parameters of batch normalization take steps in the paper's units (gamma is
``sqrt(n)`` times PyTorch's weight).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _first_order import Clock, Network, Run, recorded_steps
from _problems import Case
from numpy.typing import NDArray

from skcvxbn import BatchNormNetwork
from skcvxbn.recovery import network_to_whitened

MOMENTUM = 0.9


def train(
    case: Case,
    optimizer: str,
    *,
    width: int,
    n_steps: int,
    step_size: float,
    batch: int | None = None,
    seed: int = 0,
    limit: float = np.inf,
) -> Run:
    """SGD with momentum or Adam in single precision, the step size decreasing like a cosine."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    # Dying neurons leave subnormal numbers behind, which are slow.
    torch.set_flush_denormal(True)
    rows = f" of {batch} rows" if batch else ""
    setting = f"{width} neurons, step size {step_size:g}"
    run = Run(f"{optimizer} on the raw network, {n_steps} steps{rows}", setting=setting)
    n_rows = len(case.X)
    mean, deviation = case.X.mean(axis=0), case.X.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    size = float(np.linalg.norm(case.problem.loss.target))
    beta = case.problem.beta / size
    X = torch.from_numpy(((case.X - mean) / deviation).astype(np.float32))
    Y = torch.from_numpy((case.problem.loss.target / size).astype(np.float32))
    clock = Clock()
    net = _network(X, Y, width)
    _, normalization, _, output = net
    optimizer_ = _optimizer(net, optimizer, step_size, width, n_rows)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer_, n_steps)
    record = recorded_steps(n_steps)
    order = torch.zeros(0, dtype=torch.long)
    for t in range(1, n_steps + 1):
        x, y = X, Y
        if batch:
            if len(order) < batch:
                order = torch.randperm(n_rows)
            x, y, order = X[order[:batch]], Y[order[:batch]], order[batch:]
        decay = n_rows * (normalization.weight.square().sum() + normalization.bias.square().sum())
        decay = decay + output.weight.square().sum()
        loss = (net(x) - y).square().sum() * (n_rows / len(x))
        optimizer_.zero_grad(set_to_none=True)
        (0.5 * loss + 0.5 * beta * decay).backward()
        optimizer_.step()
        schedule.step()
        if t in record:
            run.seconds.append(clock())
            run.networks.append(_whitened(case, net, mean, deviation, size))
            if run.seconds[-1] > limit:
                run.note = "stopped at the limit"
                break
            clock.restart_at(run.seconds[-1])
    torch.set_flush_denormal(False)
    return run


def _network(X: Any, Y: Any, width: int) -> Any:
    import torch

    net = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], width, bias=False),
        torch.nn.BatchNorm1d(width, eps=1e-12),
        torch.nn.ReLU(),
        torch.nn.Linear(width, Y.shape[1], bias=False),
    )
    with torch.no_grad():
        net[1].weight.fill_(len(X) ** -0.5)
        net[3].weight.copy_(torch.nn.functional.normalize(torch.randn_like(net[3].weight), dim=0))
        sample = X[:5000]
        output = net(sample).norm() * (len(X) / len(sample)) ** 0.5
        root = (0.3 / output) ** 0.5
        net[1].weight.mul_(root)
        net[3].weight.mul_(root)
    return net


def _optimizer(net: Any, optimizer: str, step_size: float, width: int, n_rows: int) -> Any:
    import torch

    hidden, normalization, output = ({"params": list(net[i].parameters())} for i in (0, 1, 3))
    if optimizer == "SGD":
        # A neuron of weight about width**-0.5 turns that much more slowly than the others grow.
        hidden["lr"] = step_size * width / 3
        normalization["lr"] = step_size / n_rows
        return torch.optim.SGD([hidden, normalization, output], lr=step_size, momentum=MOMENTUM, fused=True)
    normalization["lr"] = step_size / n_rows**0.5
    return torch.optim.Adam([hidden, normalization, output], lr=step_size, fused=True)


def _whitened(case: Case, net: Any, mean: NDArray, deviation: NDArray, size: float) -> Network:
    """The network with the exact statistics of the training rows."""
    hidden, normalization, _, output = net
    weights = hidden.weight.detach().numpy().T.astype(np.float64) / deviation[:, None]
    outputs = (case.X - mean) @ weights
    network = BatchNormNetwork(
        hidden_weights=weights,
        running_mean=outputs.mean(axis=0) + mean.astype(np.float64) @ weights,
        running_var=outputs.var(axis=0),
        bn_weight=normalization.weight.detach().numpy().astype(np.float64),
        bn_bias=normalization.bias.detach().numpy().astype(np.float64),
        output_weights=output.weight.detach().numpy().T.astype(np.float64) * size,
        intercept=np.zeros(output.weight.shape[0]),
    )
    return network_to_whitened(network, case.whitening)
