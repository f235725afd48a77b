"""Images per second of samplers with the same network and as many network calls, and what a step costs beside them."""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmark import clock
from benchmark.clock import Call, Row
from benchmark.layouts import MNIST, PLAIN, Layout, compose, diffusers_network, our_network
from diffgen.build import Trained, make_denoiser
from diffgen.data.kinds import Pixels
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.nets import DataShape
from diffgen.objectives import Denoise
from diffgen.sampling.drawing import Sampling

Shape = tuple[int, int, int]

Draw = Callable[[int], Call]
"""steps -> a call that samples with so many steps."""


def calls_twice(name: str) -> bool:
    """Whether a sampler, whoever's, calls the network twice in each step but the last; its name ends as ours does."""
    return any(name.endswith(ours) for ours, facts in SAMPLERS.facts.items() if facts.calls == 2)


def our_draws(network: nn.Module, shape: Shape, images: int, device: torch.device) -> dict[str, Draw]:
    """diffgen's samplers around a network that predicts eps of images of a shape."""

    def draw(name: str) -> Draw:
        def with_steps(steps: int) -> Call:
            config = compose(*PLAIN, f"sampler={name}", f"sampler.steps={steps}")
            trained = Trained(Pixels(), DataShape(shape), (), Denoise(), make_denoiser(config, network), shape)
            plain = Guidance(scale=1.0)
            sampling = Sampling.from_config(trained, config["sampler"], guidance=plain, seed=0, device=device)
            return lambda: sampling.draw(list(range(images)), [-1] * images)

        return with_steps

    return {f"diffgen {name}": draw(name) for name in ("ddim", "dpmpp_2m", "heun")}


def diffusers_draws(network: Any, shape: Shape, images: int) -> dict[str, Draw]:
    """DDIMPipeline, and a loop over DPMSolverMultistepScheduler, which no pipeline for pixels has."""
    from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler

    def pipeline(steps: int) -> Call:
        pipe = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=1000))
        pipe.set_progress_bar_config(disable=True)
        return lambda: pipe(batch_size=images, num_inference_steps=steps, output_type="np")

    def solver(steps: int) -> Call:
        scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000, algorithm_type="dpmsolver++")

        @torch.inference_mode()
        def loop() -> Tensor:
            scheduler.set_timesteps(steps, device=network.device)
            x = torch.randn(images, *shape, device=network.device)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t).sample, t, x).prev_sample
            return x

        return loop

    return {"diffusers DDIMPipeline": pipeline, "diffusers DPMSolverMultistep": solver}


def k_diffusion_draws(network: Any, shape: Shape, images: int, device: torch.device) -> dict[str, Draw]:
    """k-diffusion's samplers around DiscreteEpsDDPMDenoiser."""
    betas = torch.linspace(1e-4, 0.02, 1000)
    sampling, external = k_diffusion()
    model = external.DiscreteEpsDDPMDenoiser(_Tensors(network), (1 - betas).cumprod(0), quantize=False).to(device)

    def draw(sampler: Callable[..., Tensor]) -> Draw:
        def with_steps(steps: int) -> Call:
            sigmas = model.get_sigmas(steps)

            @torch.inference_mode()
            def call() -> Tensor:
                x = torch.randn(images, *shape, device=device) * sigmas[0]
                return sampler(model, x, sigmas, disable=True)

            return call

        return with_steps

    samplers = {"euler": sampling.sample_euler, "dpmpp_2m": sampling.sample_dpmpp_2m, "heun": sampling.sample_heun}
    return {f"k-diffusion {name}": draw(sampler) for name, sampler in samplers.items()}


class Stub(nn.Module):
    """No network: it returns its input at once."""

    def forward(self, x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        """x [B, C, H, W] as it is."""
        return x


class _Tensors(nn.Module):
    """A network of diffusers that returns a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W], t [B]."""
        return self.network(x, t).sample


@functools.cache
def k_diffusion() -> tuple[Any, Any]:
    """Its samplers and denoisers alone: the package also imports evaluation code with heavy dependencies.

    Raises:
        ImportError: It, or what these two modules need, is not installed.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("k-diffusion is not installed", name="k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


def draws(layout: Layout, images: int, missing: list[str], *, stub: bool) -> dict[str, Draw]:
    """All samplers; with `stub` the networks return their input at once."""
    device, shape = torch.device("cuda" if torch.cuda.is_available() else "cpu"), layout.shape
    network = Stub() if stub else our_network(layout).to(device).eval()
    found = our_draws(network, shape, images, device)
    if layout.diffusers is None:
        return found

    def theirs() -> Any:
        theirs: Any = diffusers_network(layout).to(device).eval()
        if stub:
            from diffusers.models.unets.unet_2d import UNet2DOutput

            theirs.forward = lambda x, t: UNet2DOutput(sample=x)
        return theirs

    found |= clock.offered(missing, "diffusers", lambda: diffusers_draws(theirs(), shape, images))
    return found | clock.offered(missing, "k-diffusion", lambda: k_diffusion_draws(theirs(), shape, images, device))


def sampling(rounds: int, *, layout: Layout = MNIST, quick: bool) -> Row:
    """Images per second with the network of a layout."""
    gpu, missing = torch.cuda.is_available(), list[str]()
    images, calls = (1, 3) if quick else (256, 50) if gpu else (16, 10)
    steps = {name: (calls + 2) // 2 if calls_twice(name) else calls for name in draws(layout, 1, [], stub=True)}
    found = {name: draw(steps[name]) for name, draw in draws(layout, images, missing, stub=False).items()}
    times = clock.take_turns(found, rounds)
    nfe = {name: 2 * steps[name] - 1 if calls_twice(name) else steps[name] for name in found}
    rows = [
        {
            "name": name,
            "nfe": nfe[name],
            "images_per_second": images / time["wall"],
            "calls_per_cpu_second": images * nfe[name] / time["cpu"],
            "calls_per_second": images * nfe[name] / time["wall"],
            "spread": time["spread"],
        }
        for name, time in times.items()
    ]
    return {"layout": layout.name, "images": images, "rows": rows, "missing": missing}


def overhead(rounds: int, *, quick: bool) -> Row:
    """Milliseconds a step beyond the network, which is replaced by a stub, and milliseconds a call beyond its steps."""
    images, missing = 64, list[str]()
    short, long = (2, 4) if quick else (20, 120)
    found = draws(MNIST, images, missing, stub=True)
    calls = {f"{name} {steps}": draw(steps) for name, draw in found.items() for steps in (short, long)}
    times = clock.take_turns(calls, rounds)
    rows = []
    for name in found:
        few, many = (1e3 * times[f"{name} {steps}"]["cpu"] for steps in (short, long))
        step = (many - few) / (long - short)
        rows.append({"name": name, "ms_per_step": step, "ms_per_call": few - short * step})
    return {"images": images, "shape": list(MNIST.shape), "rows": rows, "missing": missing}
