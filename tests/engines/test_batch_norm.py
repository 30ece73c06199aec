import torch
import torch.distributed as dist
from torch import nn

from pipeline_local.engines.batch_norm import SyncedBatchNorm, synchronize
from pipeline_local.engines.replicas import Replicas
from pipeline_local.ranks.join import joined


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 1, 1))
    return layers.double()


def derivatives(layers, x):
    """The gradient at the input, and that of its square at the weights."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(layers(x).square().sum(), x, create_graph=True)
    second = torch.autograd.grad(g.square().sum(), list(layers.parameters())[:4])
    return [g.detach(), *second]


def on_a_part(rank_info, x):
    with joined(rank_info):
        group = dist.new_group(backend="gloo")
        layers = network()
        synchronize([layers], Replicas(group))
        assert isinstance(layers[1], SyncedBatchNorm)
        g, *second = derivatives(layers, x.chunk(rank_info.world_size)[rank_info.rank])
        for gradient in second:
            dist.all_reduce(gradient)
        layers.eval()
        return [t.numpy() for t in (g, *second, *layers.buffers(), layers(x).detach())]


def test_ranks_together_are_one_rank(run_ranks):
    """Outputs, first and second derivatives, and statistics, also in evaluation."""
    x = torch.randn(8, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = network()
    g, *second = derivatives(alone, x)
    alone.eval()
    expected = [*second, *alone.buffers(), alone(x).detach()]
    found = run_ranks(on_a_part, 2, x)
    gradient = torch.cat([torch.from_numpy(each[0]) for each in found])
    torch.testing.assert_close(gradient, g, rtol=1e-9, atol=1e-12)  # in float64, as all of it
    for each in found:
        for mine, theirs in zip(each[1:], expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=1e-9, atol=1e-12)


def far_from_zero(rank_info, x):
    with joined(rank_info):
        layers = nn.Sequential(nn.BatchNorm1d(3))
        synchronize([layers], Replicas(dist.new_group(backend="gloo")))
        part = x.chunk(rank_info.world_size)[rank_info.rank]
        outputs = [layers(part) for _ in range(100)]
        return outputs[-1].detach().numpy(), layers[0].running_var.numpy()


def test_a_large_mean_leaves_the_variance(run_ranks):
    """In float32, once the running mean is near: squares of 3000 have no digits left for a variance
    of 1."""
    x = 3000 + torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    alone = nn.BatchNorm1d(3)
    for _ in range(100):
        expected = alone(x).detach()
    found = run_ranks(far_from_zero, 2, x)
    together = torch.cat([torch.from_numpy(y) for y, _ in found])
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found[0][1]), alone.running_var, rtol=1e-2, atol=0)


def padding_on_one(rank_info):
    with joined(rank_info):
        layers = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval()
        synchronize([layers], Replicas(dist.new_group(backend="gloo")))
        return layers(torch.eye(3) + rank_info.rank).detach().numpy()


def test_evaluations_are_of_each_replica_alone(run_ranks):
    """Also without running statistics, where one may have nothing but padding."""
    alone = nn.BatchNorm1d(3, track_running_stats=False).eval()
    for rank, found in enumerate(run_ranks(padding_on_one, 2)):
        assert torch.equal(torch.from_numpy(found), alone(torch.eye(3) + rank).detach())


def test_one_replica_keeps_its_layers():
    layers = network()
    synchronize([layers], Replicas())
    synchronize([layers], None)
    assert type(layers[1]) is nn.BatchNorm2d
