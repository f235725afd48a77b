"""What `accelerate launch` asks for is followed, told or refused, and never passed over in silence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffgen.core import launcher
from diffgen.core.errors import UsageError
from diffgen.core.processes import accelerated, told

Command = Callable[..., Any]
QUICK = ["train.images=16", "model.channel_mult=[1]", "model.attention_resolutions=[]", "train.log_every=16"]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("USE_FSDP", "true", "FSDP"),
        ("USE_DEEPSPEED", "true", "DEEPSPEED"),
        ("USE_MEGATRON_LM", "true", "MEGATRON_LM"),
        ("USE_PARALLELISM_CONFIG", "true", "PARALLELISM_CONFIG"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "train.micro_batch"),
        ("DYNAMO_BACKEND", "INDUCTOR", "train.compile"),
        ("MIXED_PRECISION", "fp8", "choose one of [no, bf16, fp16]"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    monkeypatch: pytest.MonkeyPatch, command: Command, variable: str, value: str, words: str, tiny_run: Any
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    for said in (
        command("train", *QUICK, "run_dir=run"),
        command("sample", f"ckpt={tiny_run}", "n=1"),
        command("eval", f"ckpt={tiny_run}", "metrics=denoising", "n=8"),
    ):
        assert said.code == 2, said.err
        assert said.err.startswith("error: the launcher")
        assert words in said.err
        assert said.err.count("\n") == 1


def test_what_the_launcher_says_by_itself_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers where nobody asked for anything."""
    says = {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "USE_CPU": "False", "GRADIENT_ACCUMULATION_STEPS": "1"}
    for name, value in says.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    launcher.check()
    assert launcher.precision("auto", launcher.PRECISIONS) == "auto"
    assert launcher.told("bf16") == "bf16"
    assert not launcher.wants_cpu()


def test_its_precision_is_followed_unless_another_is_named(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    said = command("train", *QUICK, "run_dir=a", "train.compile=false")
    assert "cpu x 1, precision bf16, the launcher's" in said.out, said.err
    said = command("train", *QUICK, "run_dir=b", "train.precision=no")
    assert "precision no (not the launcher's bf16)" in said.out, said.err
    for arguments in (["sample", "ckpt=a", "n=1"], ["eval", "ckpt=a", "metrics=denoising", "n=8"]):
        said = command(*arguments)
        assert "precision bf16, the launcher's" in said.out, said.err
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    said = command("sample", "ckpt=a", "n=1", "out=fp16")  # not the folder of the second in which the last one ran
    assert "precision no (not the launcher's fp16)" in said.out, said.err
    assert "choose one of [auto, no, bf16]" in command("train", *QUICK, "run_dir=c").err


def test_its_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with accelerated("auto") as accelerator:
        assert told(accelerator) == "cpu x 1, precision no"


def test_the_settings_own_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(UsageError, match="train.precision=fp16 needs a GPU"), accelerated("fp16"):
        pass


def test_cudnn_has_no_part_in_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the length of a run; who calls from Python keeps what was chosen."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    chosen = torch.backends.cuda.cudnn_sdp_enabled()
    with accelerated("auto"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == chosen
