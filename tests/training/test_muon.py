"""Muon in the parameters' precision: against the singular value decomposition, and against torch's in bfloat16."""

import pytest
import torch

from stipule.training.muon import Muon, nearly_orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 12, 5), (2, 5, 12)])
def test_the_update_keeps_singular_vectors_and_brings_their_values_near_one(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix, result in zip(matrices, nearly_orthogonal(matrices), strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        in_its_basis = u.mT @ result @ vh.mT
        torch.testing.assert_close(in_its_basis, in_its_basis.diagonal().diag(), atol=1e-10, rtol=0)
        torch.testing.assert_close(u @ in_its_basis @ vh, result)
        values = in_its_basis.diagonal()
        assert values.min() > 0.3 and values.max() < 1.3


def test_steps_equal_those_of_torch_within_its_bfloat16():
    generator = torch.Generator().manual_seed(1)
    shapes = [(8, 8), (20, 8), (8, 20), (8, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    before = [matrix.detach().clone() for matrix in ours]
    mine = Muon(ours, lr=0.1, weight_decay=0.01)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for start, one, other in zip(before, ours, theirs, strict=True):
        moved = (one - start).norm()
        assert moved > 0.3
        assert (one - other).norm() < 0.02 * moved
