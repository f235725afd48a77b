"""Checkpoints: safetensors and JSON, never code.

A checkpoint folder, `checkpoints/<images>/`, appears by one rename and is never modified:

    model.safetensors   averaged weights; its metadata holds the config of the denoiser, so it can be sampled alone
    model-*.safetensors the same of the run's further averages, if it tracks several; see `diffgen.storage.posthoc`
    state.safetensors   what training needs to go on: weights, optimizer moments, counters
    state.json          written last: sizes and SHA-256 of the others; a folder without it is not a whole checkpoint

`model.safetensors` may come from a stranger; `tensor_file` is how it is opened. Its config is JSON, checked to be plain
bounded data, and can only name table rows (`diffgen.core.registry`).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from diffgen.core.errors import CheckpointError
from diffgen.core.files import folder_atomically, write_atomically, write_json
from diffgen.storage.formats import in_todays_words
from diffgen.storage.instead import follow, holds_no_model, refusal
from diffgen.storage.tensor_file import (
    MAX_DEPTH,
    Tensors,
    check_finite,
    check_plain,
    config_text,
    digest,
    load_tensors,
    on_cpu,
    parse,
    read_header,
    save_tensors,
    sha256_of_file,
    size_of,
    unique_keys,
)

FORMAT = "1"
MAX_STATE = 2**22
OF_AUTOENCODER = "autoencoder/"
OF_MOMENTS = "moments/"
"""What the names begin with of an autoencoder's weights, in the file of a model of its latents, and of moments."""

OTHERS = re.compile(r"model-0\.\d{3}\.safetensors")


class OtherVersionError(CheckpointError):
    """A checkpoint is whole, but of a version of diffgen that this one does not read."""


@dataclass(frozen=True)
class Checkpoint:
    """Averaged weights and what they were trained to be.

    Attributes:
        path: The file.
        config: Plain data: data shape, model, schedule, parameterization, denoiser, sampler, ...
        images: Training images seen.
        weights: By parameter name, on the CPU.
        autoencoder: Weights of the autoencoder whose latents the model was trained on; empty if there is none, or if
            it is kept apart.
        moments: See `gaussian.Moments`; empty where they are not kept.
    """

    path: Path
    config: dict[str, Any]
    images: int
    weights: Tensors
    autoencoder: Tensors = field(default_factory=dict, kw_only=True)
    moments: Tensors = field(default_factory=dict, kw_only=True)


# --- reading ------------------------------------------------------------------------------------------------------


def find_model(path: Path, key: str = "ckpt") -> Path:
    """The model file that a path means.

    Args:
        path: A file, a checkpoint folder, a run directory or its `checkpoints` (the newest one), or `latest` in there.
        key: The setting that it stands at, for sentences.

    Raises:
        CheckpointError: There is none; the sentence says what was looked for, or what stands there instead.
        UsageError: It is a folder of several runs.
    """
    path = follow(path, key)
    if path.exists() and not path.is_dir() and not holds_no_model(path):
        return path
    if (path / "model.safetensors").exists():
        return path / "model.safetensors"
    newest = next(iter(complete(path)), None) or find_newest(path)
    if newest is None:
        raise refusal(path, key, "holds neither model.safetensors nor a complete checkpoints/<images> folder")
    return newest / "model.safetensors"


def find_newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint folder of a run, or None where there is no checkpoint.

    Raises:
        CheckpointError: There are some, but none is complete: such a run must not be taken for a new one.
    """
    folders = run_dir / "checkpoints"
    newest = next(iter(complete(folders)), None)
    for folder in numbered(folders) if newest is None else ():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no state.json; mend it or delete it")
    return newest


def numbered(folders: Path) -> list[Path]:
    """What stands under a number in `<run>/checkpoints`, the newest first, by images seen; no clock is asked."""
    found = [p for p in folders.iterdir() if p.name.isdecimal()] if folders.is_dir() else []
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def complete(folders: Path) -> list[Path]:
    """The complete checkpoint folders among them."""
    return [p for p in numbered(folders) if (p / "state.json").is_file()]


def thinned(folder: Path) -> bool:
    """Whether `rotate` has left a folder its averages alone."""
    return _half_thinned(folder) and not (folder / "state.safetensors").exists()


def _half_thinned(folder: Path) -> bool:
    return not (folder / "state.json").exists() and _has_others(folder)


def _has_others(folder: Path) -> bool:
    return folder.is_dir() and any(OTHERS.fullmatch(file.name) for file in folder.iterdir())


def damage(folder: Path) -> str | None:
    """Why a complete checkpoint folder cannot be used, or None if it can.

    Raises:
        CheckpointError: It is of another version of diffgen, which is no damage.
    """
    try:
        images = {load(folder).images, load_state(folder)[0].get("images"), int(folder.name)}
    except OtherVersionError:
        raise
    except CheckpointError as error:
        return str(error)
    return None if len(images) == 1 else f"{folder} is not what its name says: its files are of other numbers of images"


def load(path: Path, key: str = "ckpt") -> Checkpoint:
    """Read a checkpoint that may come from anyone.

    Args:
        path: See `find_model`.
        key: The setting that it stands at, for sentences.

    Raises:
        CheckpointError: It is missing, damaged, foreign or hostile. No code is run, and no more memory is taken than
            the size of the file.
    """
    about = describe(path, key)
    path, metadata = about.path, about.metadata
    weights = load_tensors(path)
    if digest(weights, metadata["config"]) != metadata.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its weights and config do not match their checksum")
    check_finite(weights, path)
    autoencoder, moments = _part_of(weights, OF_AUTOENCODER), _part_of(weights, OF_MOMENTS)
    return Checkpoint(path, about.config, about.images, weights, autoencoder=autoencoder, moments=moments)


def _part_of(tensors: Tensors, prefix: str) -> Tensors:
    """Take out the tensors whose names begin so; by the rest of their names."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}


def holds_autoencoder(path: Path) -> bool:
    """Whether a model file holds the autoencoder whose latents it was trained on, by its header."""
    return any(name.startswith(OF_AUTOENCODER) for name in read_header(path))


def whole(model: Tensors, autoencoder: Tensors, moments: Tensors) -> Tensors:
    """What the file of a model holds: its weights, and what belongs to them."""
    of_autoencoder = {OF_AUTOENCODER + name: weight for name, weight in autoencoder.items()}
    return {**model, **of_autoencoder, **{OF_MOMENTS + name: tensor for name, tensor in moments.items()}}


@dataclass(frozen=True)
class Description:
    """What a model file says of itself: the checked config, the images seen, and the metadata as they stand there."""

    path: Path
    config: dict[str, Any]
    images: int
    metadata: dict[str, str]


def describe(path: Path, key: str = "ckpt") -> Description:
    """What stands in the header of a model file, without its weights; see `load` for the arguments.

    Raises:
        CheckpointError: See `load`; only the weights' checksum and values are left unchecked.
    """
    try:
        path = find_model(path, key)
        metadata = read_header(path)["__metadata__"]
    except OSError as error:
        raise CheckpointError(f"{key}={str(path)!r} cannot be read: {error.strerror}") from None
    if "format_version" not in metadata:
        raise CheckpointError(f"{path} is the state of a run, not its model: give model.safetensors beside it")
    if metadata["format_version"] != FORMAT:
        raise OtherVersionError(f"{path} was written by another version of diffgen; this one reads format {FORMAT}")
    config = parse(metadata.get("config", ""), path)
    check_plain(config, str(path))
    images = metadata.get("images", "")
    if not images.isdecimal() or len(images) > 18:
        raise CheckpointError(f"{path}: its metadata gives images={images[:20]!r}, not a count")
    return Description(path, in_todays_words(config), int(images), metadata)


def run_config(path: Path) -> dict[str, Any] | None:
    """The config of the run that a model file lies in, as the nearest complete checkpoint has it; None outside of one.

    Args:
        path: The file, as `find_model` finds it.
    """
    folder = path.resolve().parent
    siblings = complete(folder.parent) if folder.parent.name == "checkpoints" else []
    for each in (folder, *siblings):
        try:
            return in_todays_words(_read_counters(each / "state.json")["config"])
        except (CheckpointError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None


def assign(module: torch.nn.Module, weights: Tensors, path: Path) -> None:
    """Load weights into a module on the meta device; see `check_fit`."""
    check_fit(module, weights, path)
    module.load_state_dict(weights, assign=True)


def check_fit(module: torch.nn.Module, weights: Tensors, path: Path) -> None:
    """Require that the names, shapes and types of weights are the module's own.

    Raises:
        CheckpointError: The sentence names the first tensor that differs.
    """
    wanted = module.state_dict()
    for name in [*wanted, *weights]:
        if name not in weights:
            raise CheckpointError(f"{path}: weight {name!r} is missing")
        if name not in wanted:
            raise CheckpointError(f"{path}: weight {name[:80]!r} belongs to no layer of the model")
        if weights[name].shape != wanted[name].shape or weights[name].dtype != wanted[name].dtype:
            shapes = f"{weights[name].dtype} {list(weights[name].shape)}, the model {wanted[name].dtype} "
            raise CheckpointError(f"{path}: weight {name!r} is {shapes}{list(wanted[name].shape)}")


# --- writing ------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    config: Mapping[str, Any],
    images: int,
    model: Tensors,
    state: Tensors,
    counters: Mapping[str, Any],
    others: Mapping[str, tuple[Mapping[str, Any], Tensors]] = MappingProxyType({}),
) -> None:
    """Write a checkpoint folder in one rename.

    Args:
        folder: Where; its parent holds the run's other checkpoints and the file `latest`.
        config: What `load` will give back; plain data.
        images: Training images seen.
        model: The averaged weights.
        state: Tensors that training needs to go on.
        counters: Numbers that training needs to go on.
        others: Config and weights of the run's further averages, by what stands after `model-` in the file's name.

    Raises:
        EnvironmentFault: It cannot be written; earlier checkpoints are untouched.
    """
    with folder_atomically(folder) as temporary:
        _save_model(temporary / "model.safetensors", config, images, model)
        for name, (its_config, weights) in others.items():
            _save_model(temporary / f"model-{name}.safetensors", its_config, images, weights)
        save_tensors(on_cpu(state), temporary / "state.safetensors", {"format": "pt", "library": "diffgen"})
        files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of_file(f)} for f in temporary.iterdir()}
        told = {"format": int(FORMAT), **counters, "files": files}
        write_json(temporary / "state.json", {**told, "sha256": _sha256_of(told)})
    write_atomically(folder.parent / "latest", folder.name + "\n")


def save_model(path: Path, config: Mapping[str, Any], images: int, weights: Tensors) -> None:
    """Write one model file, in its own folder and in one rename, as `find_model` finds it.

    Raises:
        EnvironmentFault: It cannot be written; what stood there is untouched.
    """
    with folder_atomically(path) as temporary:
        _save_model(temporary / "model.safetensors", config, images, weights)


def _save_model(path: Path, config: Mapping[str, Any], images: int, weights: Tensors) -> None:
    weights = on_cpu(weights)
    text = config_text(config)
    about = {"format_version": FORMAT, "config": text, "images": str(images), "sha256": digest(weights, text)}
    save_tensors(weights, path, {"format": "pt", "library": "diffgen", **about})


def load_state(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """Counters and tensors of a checkpoint folder, verified against their checksums.

    Raises:
        CheckpointError: Incomplete, damaged or hostile.
    """
    try:
        counters = _read_counters(folder / "state.json")
        for name in ("model.safetensors", "state.safetensors", *filter(OTHERS.fullmatch, counters["files"])):
            if sha256_of_file(folder / name) != counters["files"][name]["sha256"]:
                raise CheckpointError(f"{folder / name} is damaged: it does not match the checksum in state.json")
        read_header(folder / "state.safetensors")
    except OSError as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{folder / 'state.json'} is damaged") from None
    del counters["files"]
    counters["config"] = in_todays_words(counters["config"])
    return counters, load_tensors(folder / "state.safetensors")


def _read_counters(path: Path) -> dict[str, Any]:
    """A state.json, bounded in size and depth, whose counters are counts.

    Raises:
        CheckpointError: It is too large, or of another version (`OtherVersionError`).
        ValueError, TypeError, AttributeError, KeyError, RecursionError: It is not what was written.
    """
    if size_of(path) > MAX_STATE:
        raise CheckpointError(f"{path} is refused: it is far larger than any run's")
    counters: dict[str, Any] = json.loads(path.read_text(), object_pairs_hook=unique_keys)
    if counters["format"] != int(FORMAT):
        raise OtherVersionError(f"{path} was written by another version of diffgen; this one reads format {FORMAT}")
    if counters.pop("sha256") != _sha256_of(counters):
        raise ValueError("changed after it was written")
    counts = [counters[key] for key in ("step", "images", "micro_batch") if key in counters]
    numbers = [*counts, counters.get("seconds", 0), *(counters.get("scaler") or {}).values()]
    sound = all(type(n) in (int, float) and 0 <= n < 1e15 for n in numbers) and all(type(n) is int for n in counts)
    sound = sound and counters.get("micro_batch", 1) >= 1
    if not sound or not isinstance(counters["config"], dict) or _depth(counters) > MAX_DEPTH + 1:
        raise ValueError("not what was written")
    return counters


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def rotate(folders: Path, keep: int) -> None:
    """Delete all but the newest `keep` (>= 1) complete checkpoints and those that are to stay (`counters["stays"]`).

    Of a run with several averages these are kept, without what training would need to go on: other lengths are made
    from them.
    """
    for folder in filter(_half_thinned, numbered(folders)[keep:]):  # a crash came between
        (folder / "state.safetensors").unlink(missing_ok=True)
    for folder in complete(folders)[keep:]:
        if _stays(folder):
            continue
        if _has_others(folder):
            (folder / "state.json").unlink()  # first: what is left is no checkpoint to go on from
            (folder / "state.safetensors").unlink(missing_ok=True)
        else:
            doomed = folder.with_name(f".del_{folder.name}")
            folder.rename(doomed)  # never half a checkpoint under its name
            shutil.rmtree(doomed, ignore_errors=True)


def _stays(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "state.json").read_text()).get("stays"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # not ours to delete


def _sha256_of(counters: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(counters, sort_keys=True).encode()).hexdigest()
