"""Networks of real numbers that are given tokens."""

import pytest
import torch
from cases import config

from diffgen.build import make_model
from diffgen.core.errors import UsageError
from diffgen.nets import DataShape
from diffgen.nets.one_hot import OneHot, one_hot

SYMBOLS = ["a", "b", "c"]
TEXT = {"kind": {"name": "tokens", "symbols": SYMBOLS, "symbol": "character", "padded": False, "unknown": False}}
TEXT["kind"]["tokenizer"] = None  # type: ignore[assignment]
LEVELS = {"kind": {"name": "levels", "background": "white", "range": None, "levels": 5}}


def test_the_network_sees_each_token_as_a_channel() -> None:
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x * torch.arange(8.0).reshape(1, 8, 1, 1)

    x = torch.randint(0, 4, (2, 2, 3, 3))  # 3 values and a hidden one, of 2 channels
    logits = OneHot(Network(), 3)(x, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert logits.shape == (2, 2, 3, 3, 3)
    (channels,) = seen
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        hot = [int(channels[b, v * 2 + c, i, j]) for v in range(4)]
        assert hot == [int(v == x[b, c, i, j]) for v in range(4)], "value v of channel c is channel v C + c"
        expected = torch.tensor([float(hot[v] * (v * 2 + c)) for v in range(3)])
        assert torch.equal(logits[b, c, i, j], expected), "and so are its logits"


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"name": "unet_tiny", "channels": 8}, {**LEVELS, "size": [1, 8, 8], "num_classes": 3}),
        ({"name": "mlp", "width": 16}, {**LEVELS, "size": [1, 4, 4]}),
        ({"name": "mlp", "width": 16}, {**TEXT, "size": [6]}),
    ],
)
def test_any_network_gives_logits_of_tokens(model: dict[str, object], data: dict[str, object]) -> None:
    settings = config("model", str(model["name"])) | {k: v for k, v in model.items() if k != "name"}
    network = make_model({"model": settings, "data": data})
    size = tuple(data["size"])  # type: ignore[arg-type]
    vocabulary = 5 if "levels" in data["kind"] else 3  # type: ignore[operator]
    x = torch.randint(0, vocabulary + 1, (2, *size))
    assert network(x, torch.zeros(2), torch.tensor([-1, 0])).shape == (2, *size, vocabulary)


def test_a_transformer_takes_tokens_as_they_are() -> None:
    network = make_model({"model": config("model", "dit_tiny"), "data": {**TEXT, "size": [6]}})
    assert not isinstance(network, OneHot)


def test_shapes() -> None:
    assert one_hot(DataShape((6,), 2, vocabulary=3)) == DataShape((4, 6), 2)
    assert one_hot(DataShape((2, 8, 8), vocabulary=3)) == DataShape((8, 8, 8))


def test_a_network_of_pictures_refuses_text() -> None:
    with pytest.raises(UsageError, match="takes pictures .*choose model=mlp or dit_tiny"):
        make_model({"model": config("model", "unet_tiny"), "data": {**TEXT, "size": [6]}})
