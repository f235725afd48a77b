"""Feed the reading of checkpoints with damaged and hostile files; write benchmarks/results/fuzz.json.

    nice python scripts/fuzz.py [--inputs 100000] [--seed 0] [--only config] [--out FILE.json]

Each input is a mutation of a real checkpoint, drawn by Hypothesis. It must load, or be refused with a `CheckpointError`
of one printable line; anything else ends the run with the smallest input that shows it. Where an input is a valid file
with hostile content, its checksums are made right, so that the content is reached.
"""

import argparse
import copy
import hashlib
import json
import math
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import safetensors.torch
import torch
from hypothesis import strategies as st

from diffgen import __version__
from diffgen.build import make_model, restore
from diffgen.core.errors import CheckpointError, NonFiniteError
from diffgen.core.registry import build
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.samplers.prior import PRIORS
from diffgen.nets import AUTOENCODERS, DataShape
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.walk import check_sampler
from diffgen.storage import autoencoder_file, checkpoint, tensor_file

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from benchmark.facts import machine  # noqa: E402
from cases import config as yaml_config  # noqa: E402
from mutations import alike, byte_edits, dump, edited, edits, mangled, settings  # noqa: E402

SECONDS = 1.0  # of processor time that one input may take
LONGEST = 1000  # characters of a sentence
CHUNK = 1000  # Hypothesis remembers every input of a run

UNET = {**yaml_config("model", "unet_tiny"), "channels": 4, "channel_mult": [1], "attention_resolutions": [4]}
VAE = {**yaml_config("model", "vae_tiny"), "channels": 4, "latent_channels": 1, "patch": 2}
LATENTS = {
    **{"name": "latents", "background": "white", "range": None, "size": [1, 8, 8], "autoencoder": VAE},
    **{"hash": "", "likelihood": "logistic", "mean": [0.1], "std": [0.9]},
}
DATA = {
    "kind": {"name": "pixels", "background": "white", "range": None},
    "size": [1, 4, 4],
    "num_classes": 2,
    "augment_labels": 0,
}
GROUPS = {
    group: [yaml_config(group, path.stem) for path in sorted((ROOT / "configs" / group).glob("*.yaml"))]
    for group in ("schedule", "parameterization", "sampler")
}
GROUPS["sampler"] = [row for row in GROUPS["sampler"] if row["name"] not in ("auto", *PRIORS, *JUMPERS)]
MODELS: list[dict[str, Any]] = [
    {"model": UNET},
    {"model": {**yaml_config("model", "mlp"), "width": 8, "blocks": 1}},
    {"model": UNET, "data": {**DATA, "kind": LATENTS, "classes": ["a", "b"]}},
    {
        "model": VAE,
        "data": {**DATA, "num_classes": 0, "classes": []},
        "objective": yaml_config("objective", "autoencode"),
        "schedule": yaml_config("schedule", "rectified_flow"),
        "parameterization": {"name": "x0"},
        "sampler": {"name": "prior"},
    },
]
"""Parts of a config that go with each network."""

# --- files --------------------------------------------------------------------------------------------------------


def join(header: Any, payload: bytes) -> bytes:
    """A safetensors file with any header."""
    text = dump(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + payload


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def signed(header: Any, payload: bytes) -> bytes:
    """The same with the checksum that fits, where the library can read the file at all."""
    with suppress(Exception):  # else it is refused before its checksum matters
        text = header["__metadata__"]["config"]
        header["__metadata__"]["sha256"] = tensor_file.digest(safetensors.torch.load(join(header, payload)), text)
    return join(header, payload)


class Seeds:
    """Real checkpoint folders, one for each network, and a folder to write inputs into."""

    def __init__(self, folder: Path) -> None:
        self.config = {
            "data": {**DATA, "classes": ["a", "b"]},
            "denoiser": {"sigma_data": 0.5, "scale_input": True},
            "objective": {"name": "denoise"},
            "guidance": 1.0,
            **{group: rows[0] for group, rows in GROUPS.items()},
            **MODELS[0],
        }
        self.config["parameterization"] = {"name": "v"}
        self.models, self.file = [], folder / "model.safetensors"
        torch.manual_seed(0)
        self.autoencoder = build(AUTOENCODERS, VAE, DataShape((1, 8, 8))).state_dict()
        for number, parts in enumerate(MODELS):
            self.models.append(self._save(folder / "seeds" / str(number), {**self.config, **parts}))
        self.state = folder / "seeds" / "0"
        self.state_json = json.loads((self.state / "state.json").read_text())
        self.state_tensors = (self.state / "state.safetensors").read_bytes()
        for seed in self.models:
            self.read(seed)  # the seeds themselves are sound, and what is imported late is now there
        checkpoint.load_state(self.state)

    def _save(self, folder: Path, config: dict[str, Any]) -> bytes:
        torch.manual_seed(0)
        weights = make_model(config).state_dict()
        if config["data"]["kind"]["name"] == "latents":
            weights = checkpoint.whole(weights, self.autoencoder, {})
            config = self.hashed(config)
        state = {"loss_sum": torch.zeros(()), **{f"optimizer.model.{k}/step": torch.ones(()) for k in weights}}
        counters = {"step": 8, "images": 128, "seconds": 0.5, "loss_count": 0, "scaler": None, "config": config}
        checkpoint.save(folder, config, 128, weights, state, counters)
        return (folder / "model.safetensors").read_bytes()

    def hashed(self, config: Any) -> Any:
        """The config with the hash that fits its autoencoder, if it names one: what lies behind it is tried too."""
        config = copy.deepcopy(config)
        with suppress(Exception):
            kind = config["data"]["kind"]
            kind["hash"] = autoencoder_file.Found(kind["autoencoder"], self.autoencoder).hash
        return config

    def read(self, data: bytes) -> None:
        """Read a model file as `diffgen-sample` does, up to the network, and as an autoencoder."""
        self.file.write_bytes(data)
        with suppress(CheckpointError):
            autoencoder_file.find(str(self.file), "latent")
        restore(checkpoint.load(self.file))

    def sample(self, data: bytes) -> None:
        """Read a model file as `diffgen-sample` does, and draw an image unless its own sampler takes many steps."""
        self.file.write_bytes(data)
        saved = checkpoint.load(self.file)
        trained, sampler = restore(saved), saved.config["sampler"]
        check_sampler(saved, trained)
        if sampler["steps"] <= 4 and sampler["name"] != "ode":
            cpu, off = torch.device("cpu"), Guidance(scale=1.0)
            Sampling.from_config(trained, sampler, guidance=off, seed=0, device=cpu).draw([0], [1])

    def resume(self, state_json: bytes, state_tensors: bytes) -> None:
        """Read a training state as resuming does."""
        (self.state / "state.json").write_bytes(signed_state(state_json))
        (self.state / "state.safetensors").write_bytes(state_tensors)
        checkpoint.load_state(self.state)


# --- targets ------------------------------------------------------------------------------------------------------

Draw = Callable[..., Any]
Reading = Callable[[], None]
which = st.integers(0, len(MODELS) - 1)
spacings = st.sampled_from(["auto", "uniform", "quadratic", "karras", "logsnr"])
levels = st.lists(st.floats(1e-4, 100), min_size=1, max_size=4, unique=True).map(lambda values: sorted(values)[::-1])


def of_bytes(seeds: Seeds, draw: Draw) -> Reading:
    """A model file with damaged bytes."""
    return partial(seeds.read, mangled(seeds.models[draw(which)], draw(byte_edits)))


def of_header(seeds: Seeds, draw: Draw) -> Reading:
    """A model file with an edited header, and the checksum that fits."""
    header, payload = split(seeds.models[draw(which)])
    return partial(seeds.read, signed(edited(header, draw(edits)), payload))


def of_config(seeds: Seeds, draw: Draw) -> Reading:
    """A model file with any parts, edited, and the checksum that fits."""
    number = draw(which)
    header, payload = split(seeds.models[number])
    parts = {group: draw(st.sampled_from(rows)) for group, rows in GROUPS.items()}
    parts["sampler"] = {**parts["sampler"], "spacing": draw(spacings), "sigmas": draw(st.none() | st.none() | levels)}
    config = {**seeds.config, **parts, **MODELS[number]}
    section = draw(st.sampled_from(["", *config]))
    changes = draw(settings)
    config = {**config, section: edited(config[section], changes)} if section else edited(config, changes)
    header["__metadata__"]["config"] = dump(seeds.hashed(config) if draw(st.booleans()) else config)
    return partial(seeds.read, signed(header, payload))


def of_sampling(seeds: Seeds, draw: Draw) -> Reading:
    """A sound file with other numbers in the parts that a sampler meets; an image is drawn with it."""
    header, payload = split(seeds.models[0])
    config = {**seeds.config, **{group: draw(st.sampled_from(rows)) for group, rows in GROUPS.items()}}
    config["sampler"] = {**config["sampler"], "steps": draw(st.integers(1, 4)), "spacing": draw(spacings)}
    for group in ("schedule", "denoiser", "sampler"):
        config[group] = edited(config[group], draw(st.lists(alike, max_size=1)))
    header["__metadata__"]["config"] = dump(config)
    return partial(seeds.sample, signed(header, payload))


def of_weights(seeds: Seeds, draw: Draw) -> Reading:
    """A model file with other tensors, and the checksum that fits."""
    header, _ = split(seeds.models[0])
    names = st.sampled_from([*header]) | st.text(max_size=8)
    kinds, sides = st.sampled_from([*tensor_file.DTYPES]), st.lists(st.integers(0, 5), max_size=5)
    changed = draw(st.dictionaries(names, st.tuples(kinds, sides), max_size=3))
    fill = draw(st.sampled_from([b"\0", b"\x3f", b"\x7f", b"\xff", b"\x01"]))
    payload = b""
    for name, entry in list(header.items()) + [(name, None) for name in changed if name not in header]:
        if name == "__metadata__":
            continue
        kind, shape = changed.get(name, (entry and entry["dtype"], entry and entry["shape"]))
        size = tensor_file.DTYPES[kind] * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(payload), len(payload) + size]}
        payload += (fill if name in changed else b"\0") * size
    return partial(seeds.read, signed(header, payload))


def signed_state(state_json: bytes) -> bytes:
    """A state.json with its checksum made right, where it can be: what lies behind the checksum is tried too."""
    try:
        counters = json.loads(state_json)
        counters.pop("sha256", None)
        return json.dumps({**counters, "sha256": checkpoint._sha256_of(counters)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return state_json


def of_state_json(seeds: Seeds, draw: Draw) -> Reading:
    """A state.json with damaged bytes or edited values."""
    if draw(st.booleans()):
        text = dump(edited(seeds.state_json, draw(edits))).encode("utf-8", "surrogatepass")
    else:
        text = mangled(json.dumps(seeds.state_json).encode(), draw(byte_edits))
    return partial(seeds.resume, text, seeds.state_tensors)


def of_state_tensors(seeds: Seeds, draw: Draw) -> Reading:
    """A state.safetensors with damaged bytes or an edited header, and the checksum that fits."""
    header, payload = split(seeds.state_tensors)
    whole = draw(st.booleans())
    data = join(edited(header, draw(edits)), payload) if whole else mangled(seeds.state_tensors, draw(byte_edits))
    files = seeds.state_json["files"]
    sums = {**files, "state.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    return partial(seeds.resume, json.dumps({**seeds.state_json, "files": sums}).encode(), data)


TARGETS: dict[str, Callable[[Seeds, Draw], Reading]] = {
    "bytes": of_bytes,
    "header": of_header,
    "config": of_config,
    "sampling": of_sampling,
    "weights": of_weights,
    "state.json": of_state_json,
    "state.safetensors": of_state_tensors,
}
SHARES = {"config": 4, "sampling": 2, "header": 2, "bytes": 1, "weights": 1, "state.json": 1, "state.safetensors": 1}


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the inputs of a target."""

    inputs: int = 0
    loaded: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0

    def count(self, call: Reading) -> None:
        """Read one input, and require that it loads or is refused as it should be."""
        self.inputs += 1
        started = time.process_time()
        try:
            call()
            self.loaded += 1
        except (CheckpointError, NonFiniteError) as error:  # the latter of drawing, where numbers overflow
            self.refused += 1
            sentence = str(error)
            assert sentence.isprintable(), repr(sentence)
            assert len(sentence) <= LONGEST, sentence
        seconds = time.process_time() - started
        self.slowest_seconds = max(self.slowest_seconds, round(seconds, 3))
        assert seconds <= SECONDS, f"{seconds} s"


def fuzz(target: str, inputs: int, seed: int) -> Tally:
    """Try `inputs` inputs of one target, at most `CHUNK` with one seed.

    Raises:
        Exception: What the smallest input that breaks the promise raised.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        seeds = Seeds(Path(folder))

        def run(data: Any) -> None:
            tally.count(TARGETS[target](seeds, data.draw))

        for number, start in enumerate(range(0, inputs, CHUNK)):
            limits = hypothesis.settings(
                max_examples=min(CHUNK, inputs - start),
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            hypothesis.seed(seed + number)(limits(hypothesis.given(st.data())(run)))()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    tallies = {}
    shares = {args.only: 1} if args.only else SHARES
    for target, share in shares.items():
        tallies[target] = fuzz(target, math.ceil(args.inputs * share / sum(shares.values())), args.seed)
        print(target, tallies[target], flush=True)
    result = {
        "inputs": sum(tally.inputs for tally in tallies.values()),
        "neither_loaded_nor_refused": sum(t.inputs - t.loaded - t.refused for t in tallies.values()),
        "targets": {name: asdict(tally) for name, tally in tallies.items()},
        "seconds": round(time.monotonic() - started),
        "peak_memory_growth_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "seed": args.seed,
        "machine": machine(),
        "versions": {
            "diffgen": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
            "hypothesis": hypothesis.__version__,
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
