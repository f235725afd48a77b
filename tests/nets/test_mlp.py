import pytest
import torch
import torch.nn.functional as F

from diffgen.core.errors import UsageError
from diffgen.nets import MLP, DataShape


def randomized(shape, width=16, blocks=2):
    """A network whose near-zero layers are not, so that every part shows in the output."""
    torch.manual_seed(0)
    model = MLP(shape, width=width, blocks=blocks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4)
    return model.double().eval()


def inputs(n, *shape):
    return torch.randn(n, *shape, dtype=torch.float64), torch.linspace(0, 1000, n, dtype=torch.float64)


def test_output_is_the_formula():
    model = randomized(DataShape((3, 1, 1), 0))
    x, condition = inputs(5, 3, 1, 1)
    embedding = model.embedding(condition, torch.full((5,), -1))
    h = x.flatten(1) @ model.stem.weight.T + model.stem.bias
    for block in model.blocks:
        normed = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        normed = normed * block.norm.weight + block.norm.bias
        inner = normed @ block.layer0.weight.T + block.layer0.bias
        inner = inner + embedding @ block.embed.weight.T + block.embed.bias
        h = h + F.silu(inner) @ block.layer1.weight.T + block.layer1.bias
    expected = F.silu(h) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x, condition, torch.full((5,), -1)).flatten(1), expected)


@pytest.mark.parametrize("sides", [(2, 1, 1), (10, 1, 1), (3, 4, 5)])
def test_any_shape_of_data_and_examples_do_not_mix(sides):
    model = randomized(DataShape(sides, 3))
    x, condition = inputs(6, *sides)
    label = torch.tensor([0, 1, 2, -1, 0, 1])
    out = model(x, condition, label)
    assert out.shape == x.shape
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(model(x[order], condition[order], label[order]), out[order])


def test_every_value_sees_every_value():
    model = randomized(DataShape((4, 1, 2), 0))
    x, condition = inputs(1, 4, 1, 2)
    none = torch.tensor([-1])
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, condition, none), x).reshape(8, 8)
    assert (jacobian.abs() > 1e-6).all()


def test_noise_level_and_label_matter():
    model = randomized(DataShape((2, 1, 1), 3))
    x = torch.ones(4, 2, 1, 1, dtype=torch.float64)
    out = model(x, torch.full((4,), 500.0, dtype=x.dtype), torch.tensor([-1, 0, 1, 2])).flatten(1)
    assert torch.pdist(out).min() > 1e-3
    out = model(x, torch.tensor([0.0, 10.0, 300.0, 1000.0], dtype=x.dtype), torch.full((4,), -1)).flatten(1)
    assert torch.pdist(out).min() > 1e-3


def test_starts_near_zero_with_all_weights_learning():
    torch.manual_seed(0)
    model = MLP(DataShape((2, 1, 1), 2), width=32, blocks=3)
    out = model(torch.randn(8, 2, 1, 1), torch.rand(8), torch.randint(2, (8,)))
    assert out.abs().max() < 1e-3
    (out - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_number_of_parameters():
    width, blocks, size, classes = 64, 4, 2, 2
    dense = width * width + width
    expected = (size * width + width) + blocks * (3 * dense + 2 * width) + (width * size + size)
    expected += (classes * width + width) + 2 * dense  # the embedding
    model = MLP(DataShape((size, 1, 1), classes), width=width, blocks=blocks)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("bad", [{"width": 15}, {"width": 2}, {"blocks": 0}])
def test_sizes_are_checked(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        MLP(DataShape((2, 1, 1), 0), **{"width": 16, "blocks": 2, **bad})
