"""DINOv2's network: against transformers' where that is installed, and against torch's own encoder."""

from pathlib import Path

import pytest
import torch
from contracts import check_extractor
from safetensors.torch import save_file
from torch import nn

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import build
from diffgen.data.digits import digits
from diffgen.data.splits import Splits
from diffgen.evaluation.dinov2 import MEAN, STD, Block, Dinov2, load_dinov2, resized
from diffgen.evaluation.extractors import EXTRACTORS

WIDTH, DEPTH = 128, 2


def weights(side: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of a small network for side x side patches, none of them at a special value."""
    rng = torch.Generator().manual_seed(seed)
    network = Dinov2(WIDTH, DEPTH, 1 + side * side)
    found = {name: 0.05 * torch.randn(w.shape, generator=rng) for name, w in network.state_dict().items()}
    return {name: w + 1 if "norm" in name and name.endswith("weight") else w for name, w in found.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """As on Hugging Face: with what only its training needs."""
    save_file({**weights(37), "embeddings.mask_token": torch.zeros(1, WIDTH)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_block_is_torchs_encoder_layer() -> None:
    """With gains of 1, it is the transformer's layer with norms first."""
    ours = Block(WIDTH).eval()
    theirs = nn.TransformerEncoderLayer(
        WIDTH, 2, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    ).eval()
    own = ours.state_dict()
    attention = [
        [own[f"attention.attention.{part}.{kind}"] for part in ("query", "key", "value")] for kind in ("weight", "bias")
    ]
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat(attention[0]),
            "self_attn.in_proj_bias": torch.cat(attention[1]),
            **{f"self_attn.out_proj.{kind}": own[f"attention.output.dense.{kind}"] for kind in ("weight", "bias")},
            **{f"linear{i}.{kind}": own[f"mlp.fc{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")},
            **{f"norm{i}.{kind}": own[f"norm{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")},
        }
    )
    x = torch.randn(3, 7, WIDTH)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_it_is_transformers_network(tmp_path: Path) -> None:
    """Without position embeddings to resize, in which the two differ on purpose."""
    transformers = pytest.importorskip("transformers")
    save_file(weights(16), tmp_path / "model.safetensors", {"format": "pt"})
    config = transformers.Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=224
    )
    config.save_pretrained(tmp_path)
    theirs, told = transformers.Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert set(told["missing_keys"]) <= {"embeddings.mask_token"} and not told["unexpected_keys"]
    pixels = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=x).pooler_output
        torch.testing.assert_close(
            load_dinov2(tmp_path / "model.safetensors")[0](pixels), expected, rtol=1e-4, atol=1e-4
        )


def test_positions_are_resized_as_by_the_authors() -> None:
    """A linear ramp over 37 x 37 places becomes one over 16 x 16, sampled at (i + 1/2) 37 / 16.1 - 1/2, but for what
    cubic convolution makes of it; with 16 for 16.1 the last place would be off by 0.2."""
    ramp = torch.arange(37.0).view(1, 37, 1).expand(37, 37, 1).reshape(1, 37 * 37, 1)
    found = resized(torch.cat([torch.full((1, 1, 1), 7.0), ramp], dim=1), 16)
    assert found.shape == (1, 257, 1) and found[0, 0] == 7
    wanted = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:, 0].view(16, 16)[3, 1:15], wanted[1:15], rtol=0, atol=0.06)
    assert resized(found, 16) is found


def test_it_extracts_features_of_grey_and_colour(path: Path) -> None:
    splits = Splits.of(digits(split="train"), digits(split="test"))
    extractor = build(EXTRACTORS, {"name": "dinov2", "weights": str(path)}, splits, path.parent, torch.device("cpu"))
    grey = splits.test.pixels[:3]
    features, logits = extractor(grey)
    check_extractor(extractor, "dinov2", grey)
    assert (extractor.dim, logits) == (WIDTH, None)
    torch.testing.assert_close(extractor(grey.expand(-1, 3, -1, -1))[0], features)
    assert (features[0] - features[1]).abs().max() > 1e-3
    with pytest.raises(UsageError, match="grey or RGB"):
        extractor(grey.expand(-1, 4, -1, -1))


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*facebook/dinov2-large.*extractor=classifier"):
        load_dinov2(tmp_path / "nowhere")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="another network"):
        load_dinov2(tmp_path / "other.safetensors")
    short = {name: w for name, w in weights(37).items() if name != "layernorm.bias"}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match="layernorm.bias"):
        load_dinov2(tmp_path / "short.safetensors")
    odd = {**weights(37), "embeddings.position_embeddings": torch.zeros(1, 200, WIDTH)}
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="another network"):
        load_dinov2(tmp_path / "odd.safetensors")
