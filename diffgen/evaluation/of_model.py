"""Metrics of a model itself, which draw no images: those that are asked for, each with a bar."""

from dataclasses import dataclass
from pathlib import Path

from diffgen.core.console import Reporter
from diffgen.core.eval_settings import EvalSettings
from diffgen.data.latents import Latents
from diffgen.data.splits import Splits
from diffgen.evaluation import autoencoders, held_out, model, text
from diffgen.evaluation.drawing import batch_of
from diffgen.evaluation.model import Row
from diffgen.evaluation.reconstruction import Coder
from diffgen.evaluation.reference import Reference
from diffgen.sampling.drawing import Sampling


@dataclass(frozen=True)
class OfModel:
    """What they need.

    Attributes:
        settings: Which are asked for.
        sampling: The model, on its device.
        splits: The data set.
        texts: Of a model of text, what that is read beside.
        reference: Features, where a metric looks at some.
        n: How many examples to look at.
        out: Folder for pictures.
        reporter: Shows the bars.
    """

    settings: EvalSettings
    sampling: Sampling
    splits: Splits
    texts: text.Texts | None
    reference: Reference | None
    n: int
    out: Path
    reporter: Reporter

    def figures(self) -> Row:
        """All of them; the main process computes this alone."""
        row = self._reconstruction() if "reconstruction" in self.settings.wanted else {}
        if self.sampling.trained.objective.discrete:
            return row | self._masked()
        if autoencoders.is_autoencoder(self.sampling.trained):
            return row | self._elbo()
        return row | self._of_path()

    def _masked(self) -> Row:
        """The bound of masked diffusion, and of text what it is read beside."""
        if "bits" not in self.settings.wanted:
            return {}
        source, which = held_out.judge(self.splits)
        sampling, seed = self.sampling, self.settings.seed
        batch = batch_of(self.settings, sampling)
        with self.reporter.progress(min(self.n, len(source)), 0) as line:
            row = model.masked_bits(sampling.trained, sampling.device, source, self.n, seed, batch, line.update)
        row |= {"bits_of": which}
        return row | text.beside_bits(row, self.texts) if self.texts else row

    def _of_path(self) -> Row:
        """Likelihood, its bound, and errors by noise level."""
        denoiser, device = self.sampling.denoiser, self.sampling.device
        n, seed, wanted, kind = self.n, self.settings.seed, self.settings.wanted, self.sampling.trained.kind
        latents = kind if isinstance(kind, Latents) else None
        source, which = held_out.judge(self.splits)
        count = min(n, len(source))
        row: Row = {}
        if "bits" in wanted:
            with self.reporter.progress(count, 0) as line:
                row |= model.bits(denoiser, device, source, n, seed, line.update, latents) | {"bits_of": which}
        steps = model.chain_length(denoiser.schedule)
        if "vlb" in wanted and steps is not None:
            with self.reporter.progress(count, 0) as line:
                row |= model.vlb(denoiser, steps, device, source, n, seed, line.update) | {"vlb_of": which}
        if "denoising" in wanted:
            more = min(n, len(self.splits.test)) if self.splits.test else 0
            with self.reporter.progress(min(n, len(self.splits.train)) + more, 0) as line:
                row |= model.denoising(denoiser, device, self.splits, n, seed, self.out, line.update, latents)
        return row

    def _elbo(self) -> Row:
        """Bounds of an autoencoder."""
        if "elbo" not in self.settings.wanted:
            return {}
        source, which = held_out.judge(self.splits)
        trained, device = self.sampling.trained, self.sampling.device
        with self.reporter.progress(min(self.n, len(source)), 0) as line:
            row = autoencoders.elbo(trained, device, source, self.n, self.settings.seed, line.update)
        return row | {"elbo_of": which}

    def _reconstruction(self) -> Row:
        """How pictures come back, of an autoencoder or the one whose latents a model was trained in."""
        coder, device = Coder.of(self.sampling.denoiser, self.sampling.trained.kind), self.sampling.device
        assert coder is not None and self.reference is not None
        source, which = held_out.judge(self.splits)
        with self.reporter.progress(min(self.n, len(source)), 0) as line:
            row = autoencoders.reconstruction(
                coder.to(device), device, source, self.n, self.reference, self.out, line.update
            )
        return row | {"reconstruction_of": which}
