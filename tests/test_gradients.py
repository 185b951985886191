from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_

from lit_cpt.gradients import gradient_norm


def parameter(gradient):
    found = torch.nn.Parameter(torch.zeros(2))
    found.grad = gradient
    return found


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_it_is_the_norm_of_all_gradients_as_one_vector():
    assert gradient_norm([parameter(torch.tensor([3.0, 0.0])), parameter(torch.tensor([0.0, 4.0]))]) == 5


def test_what_has_no_gradient_counts_nothing():
    assert gradient_norm([parameter(None), parameter(torch.tensor([3.0, 4.0]))]) == 5
    assert gradient_norm([parameter(None)]) == 0


def test_of_shards_it_is_a_plain_number_by_which_they_can_be_clipped(mesh):
    sharded = torch.nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Shard(0)]))
    sharded.grad = distribute_tensor(torch.tensor([3.0, 4.0]), mesh, [Shard(0)])
    norm = gradient_norm([sharded])
    assert type(norm) is torch.Tensor
    assert norm == 5
    clip_grads_with_norm_([sharded], 1.0, norm)
    torch.testing.assert_close(sharded.grad.full_tensor(), torch.tensor([0.6, 0.8]))
