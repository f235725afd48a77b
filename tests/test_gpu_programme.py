"""The measurements that wait for a GPU run without one, and what they would say of one is right."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: Patch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def work(tmp_path: Path) -> Any:
    """Tiny networks, with a minute to go."""
    from programme.work import Work

    return Work(tmp_path, tiny=True, data=None, deadline=time.monotonic() + 60)


# --- what the profiler and the compiler say -----------------------------------------------------------------------------


def test_a_trace_is_counted() -> None:
    from benchmark import trace

    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("kernel", "triton_poi_fused_0", 0, 1000),
        event("kernel", "void cudnn::ops::nchwToNhwcKernel<float>", 500, 1000),
        event("gpu_memcpy", "Memcpy HtoD", 3000, 500),
        event("gpu_user_annotation", "ProfilerStep#1", 0, 9000),
        event("cuda_runtime", "cudaLaunchKernelExC", 0, 5),
        event("cuda_driver", "cuLaunchKernel", 5, 5),
        event("cuda_runtime", "cudaGraphLaunch", 10, 5),
        event("cuda_runtime", "cudaMemcpyAsync", 20, 5),
        {"ph": "M", "name": "process_name"},
    ]
    assert trace.counted(events) == {"kernels": 2, "launches": 3, "conversions": 1, "busy_ms": 2.0}


def test_graphs_and_breaks_are_counted() -> None:
    from benchmark import trace
    from torch._dynamo.utils import counters

    def broken(x: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        torch._dynamo.graph_break()
        return x.cos()

    torch._dynamo.reset()
    counters.clear()
    assert trace.compiled() == {}
    torch.compile(broken, backend="eager")(torch.ones(2))
    assert trace.compiled() == {"graphs": 2, "breaks": 1, "from_cache": False}


def test_figures_of_a_step(work: Any, monkeypatch: Patch) -> None:
    """Launches are of one step, and a GPU that waits for its host is said to."""
    from programme import steps

    class Seen:
        name, peak = "diffgen, bfloat16, compiled", 1.234

        def look(self) -> dict[str, Any]:
            return {"kernels": 2000, "launches": 2000, "conversions": 20, "busy_ms": 100.0, "graphs": 1, "breaks": 0}

    row = steps.looked_at(Seen(), 0.010, 20)  # type: ignore[arg-type]
    assert row == {
        "step_ms": 10.0, "peak_gb": 1.23, "kernels": 100, "launches": 100, "conversions": 1,
        "graphs": 1, "breaks": 0, "busy": 0.5, "bound": "host",
    }  # fmt: skip
    assert steps.looked_at(Seen(), 0.005, 20)["bound"] == "device"  # type: ignore[arg-type]
    monkeypatch.setattr(Seen, "look", lambda self: {"kernels": 20})
    assert steps.looked_at(Seen(), 0.005, 20)["graphs"] == 0, "it was to be compiled, and was not"  # type: ignore[arg-type]
    assert steps.broken(row) == steps.broken({"name": "eager"}) == []
    assert steps.broken({"graphs": 3, "breaks": 2}) == ["compiled to 3 graphs with 2 breaks"]
    monkeypatch.setattr(steps.speed, "peak_tflops", lambda device, precision: 1000.0 if precision == "bf16" else None)
    assert steps.pace("diffgen, bfloat16", 5000.0, 40.0) == {"images_per_second": 5000.0, "tflops": 200.0, "mfu": 0.2}
    assert "mfu" not in steps.pace("diffgen, float32", 5000.0, 40.0)


# --- order, time and what is kept ---------------------------------------------------------------------------------------


def test_without_a_gpu_it_refuses(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_programme

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_programme.py"])
    with pytest.raises(SystemExit) as left:
        gpu_programme.main()
    assert left.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: this needs a GPU that PyTorch can use; --tiny")


def test_a_part_is_measured_once(monkeypatch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_programme

    monkeypatch.setattr(gpu_programme, "PARTS", {"machine": gpu_programme.PARTS["machine"]})
    said = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["gpu_programme.py", "--tiny", f"--out={tmp_path}"])
        assert gpu_programme.main() == 0
        said.append(capsys.readouterr().out)
    assert ["machine: peaks, " in text for text in said] == [True, False]
    (path,) = tmp_path.glob("gpu-tiny-networks-*.json")
    machine = json.loads(path.read_text())["machine"]
    assert "mean nothing" in machine["facts"]["device"]
    assert machine["facts"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [row["name"] for row in machine["pieces"]["peaks"]["rows"]] == ["float32", "tf32", "bfloat16"]
    assert all(row["matrix_tflops"] > 0.001 for row in machine["pieces"]["peaks"]["rows"])
    assert f"| peaks | {machine['pieces']['peaks']['copy_tb_per_second']:.3g} |" in said[1]
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, "work"]


def test_a_piece_is_made_alone(monkeypatch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_programme

    monkeypatch.setattr(gpu_programme, "PARTS", {"machine": gpu_programme.PARTS["machine"]})
    arguments = ["--tiny", f"--out={tmp_path}", "--part", "machine", "--piece", "fa"]
    monkeypatch.setattr(sys, "argv", ["gpu_programme.py", *arguments])
    assert gpu_programme.main() == 0
    said = capsys.readouterr().out
    assert "machine: facts, " in said and "machine: peaks, " not in said
    assert "at most: peaks\n" in said


def test_results_go_on_where_they_stopped(tmp_path: Path) -> None:
    from programme.results import Results

    here, there, pieces = tmp_path / "here", tmp_path / "there", ["a", "b", "c", "d"]
    there.mkdir()
    (there / "gpu-nvidia-h100-2026-01-02.json").write_text(json.dumps({"p": {"facts": {}, "pieces": {"a": {"x": 1}}}}))
    (there / "gpu-nvidia-h100-pcie-2026-09-09.json").write_text("{}")
    results = Results("NVIDIA H100", [here], others=[there])
    assert results.name == "gpu-nvidia-h100-2026-01-02.json"
    results.add("p", {"date": "today"}, "b", {"error": ["no"]})
    results.add("p", {"date": "today"}, "c", {"unfinished": "half", "x": 2})
    assert Results("NVIDIA H100", [here]).pieces("p") == {"a": {"x": 1}, **results.pieces("p")}
    assert results.left("p", pieces) == ["c", "d"]
    results.begin_again("p", pieces)
    assert results.left("p", pieces) == ["b", "c", "d"], "what has figures stays until all have some"
    for name in "bcd":
        results.add("p", {}, name, {"x": 3})
    results.begin_again("p", ["b"])
    assert results.left("p", pieces) == ["b"], "one piece is done again, the others stay"
    results.add("p", {}, "b", {"x": 4})
    results.begin_again("p", pieces)
    assert results.left("p", pieces) == pieces


@pytest.fixture
def pieces(monkeypatch: Patch) -> list[str]:
    """A part with a piece of each fate; the names of those that were called."""
    from programme import child
    from programme.work import Piece, Skipped, Unfinished

    called: list[str] = []

    def ends(name: str, error: BaseException | None) -> Callable[[Any], dict[str, Any]]:
        def run(work: Any) -> dict[str, Any]:
            called.append(name)
            if error:
                raise error
            return {"x": 1}

        return run

    fates = {
        "long": (9.0, None),
        "left out": (0.1, Skipped("needs CUDA")),
        "half": (0.1, Unfinished("half of it", {"y": 2})),
        "good": (0.1, None),
        "bad": (0.1, RuntimeError("it broke")),
        "after": (0.1, None),
    }
    part = type("Part", (), {"pieces": {name: Piece(time, ends(name, e)) for name, (time, e) in fates.items()}})
    monkeypatch.setattr(child, "PARTS", {"part": part})
    return called


def test_a_process_makes_what_the_time_suffices_for_until_one_fails(tmp_path: Path, pieces: list[str]) -> None:
    from programme import child
    from programme.work import Work

    told: list[dict[str, Any]] = []
    wanted = [["part", name] for name in ("long", "left out", "half", "good", "bad", "after")]
    child.make(wanted, Work(tmp_path, tiny=False, data=None, deadline=time.monotonic() + 60), told.append)
    assert pieces == ["left out", "half", "good", "bad"]
    assert [message["piece"][1] for message in told[::2]] == pieces
    rows = [message["row"] for message in told[1::2]]
    assert all(row.pop("took") >= 0 for row in rows)
    assert rows[:3] == [{"skipped": "needs CUDA"}, {"y": 2, "unfinished": "half of it"}, {"x": 1}]
    assert rows[3]["error"][-1] == "RuntimeError: it broke"


def test_a_process_that_dies_or_hangs_is_a_row(work: Any, monkeypatch: Patch) -> None:
    from programme import parent
    from programme.work import Work

    def program(text: str) -> None:
        command = [sys.executable, "-c", f"import json, os, sys, time\n{text}"]
        monkeypatch.setattr(
            parent, "started",
            lambda wanted, work, log: subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log.open("ab"), text=True, start_new_session=True
            ),
        )  # fmt: skip

    begin = "print(json.dumps({'piece': ['p', 'a']}), flush=True)\n"
    program(f"{begin}print(json.dumps({{'row': {{'x': 1}}}}))\nprint(json.dumps({{'piece': ['p', 'b']}}), flush=True)\n"
            "print('boom', file=sys.stderr, flush=True)\nos._exit(7)")  # fmt: skip
    (first, second) = parent.answers([("p", "a"), ("p", "b")], work)
    assert first == ("p", "a", {"x": 1})
    assert second[2]["error"] == ["boom", "its process ended with 7"]
    monkeypatch.setattr(parent, "GRACE", 0.5)
    program(f"{begin}time.sleep(60)")
    began = time.monotonic()
    ((_, _, row),) = parent.answers([("p", "a")], Work(work.folder, tiny=True, data=None, deadline=began))
    assert row["error"][-1].startswith("killed, perhaps since it took longer than")
    assert time.monotonic() - began < 30
    program("sys.exit('no module named torch')")
    with pytest.raises(SystemExit, match="no module named torch"):
        list(parent.answers([("p", "a")], work))


def test_what_went_wrong_is_told_and_the_rest_is_made(work: Any, monkeypatch: Patch) -> None:
    """A process that met an error is followed by another one, which goes on behind it."""
    import gpu_programme
    from programme.results import Results

    def fake(wanted: list[tuple[str, str]], work: Any) -> Any:
        for part, piece in list(wanted):
            bad = {"bad": {"error": ["no"]}, "wrong": {"wrong": ["2 is not 3"]}}
            yield part, piece, {**bad.get(piece, {}), "took": 0.1}
            if piece == "bad":
                return

    monkeypatch.setattr(gpu_programme, "answers", fake)
    for names, well in ((["good", "bad", "good2"], False), (["good", "wrong"], False), (["good"], True)):
        results = Results("x", [work.folder / names[-1]])
        assert gpu_programme.make([("p", name) for name in names], work, results, {}) is well
        assert list(results.pieces("p")) == names


# --- the parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_steps_on_random_pictures(work: Any) -> None:
    from programme import recipes, steps

    told = steps.recipe("cifar10_fast", work)
    (row,) = told["rows"]
    assert row["images_per_second"] == pytest.approx(1000 * told["batch"] / row["step_ms"])
    assert row["first_step_seconds"] > 0
    assert told["data"] == "random data"
    real = recipes.cost(recipes.RECIPES["cifar10_fast"])
    assert real["parameters"] == pytest.approx(27.9e6, rel=0.01)


@pytest.mark.slow
def test_the_speed_run_stops_in_time_and_goes_on(work: Any, monkeypatch: Patch) -> None:
    from programme import commands, speed_run
    from programme.work import Unfinished, Work

    folder, early = work.folder / "speed-run", [True]
    monkeypatch.setattr(Work, "left", lambda self: -1 if early and len(commands.logged(folder)) >= 3 else 1)
    with pytest.raises(Unfinished, match=r"of 0\.03 minutes trained") as stopped:
        speed_run.run(work)
    early.clear()
    row = speed_run.run(work)
    assert row["minutes"] >= 0.03 > stopped.value.figures["minutes"]
    assert row["images"] > stopped.value.figures["images"] > 0
    assert row["parts"] == 2
    assert row["data"] == "random data"
    assert row["steps_skipped"] == 0 and "wrong" not in row
    first = stopped.value.figures["first"]
    assert row["first"][: len(first)] == first, "the log went on"
    assert row["first"][0]["lr"] < 1e-6, "the warm-up begins at the beginning"
    assert speed_run.minutes(Work(work.folder, tiny=False, data=None, deadline=0)) == 22


def test_a_shorter_speed_run_says_so(tmp_path: Path) -> None:
    """It has a run directory of its own, and the page does not call it the recipe."""
    import gpu_table
    from programme import speed_run
    from programme.work import Work

    whole, short = (Work(tmp_path, False, None, 0, minutes) for minutes in (None, 6))
    assert speed_run.length(whole) == {}
    assert speed_run.place(whole) == tmp_path / "speed-run"
    assert "train.minutes=6" in speed_run.settings(short)
    assert [speed_run.place(short).name, speed_run.log(short).name] == ["speed-run-6", "speed-run-6.log"]
    assert gpu_table.told(speed_run.length(short)) == ", 6 minutes instead of the recipe's 22"


def test_the_768_features_are_those_of_the_network_of_fid(tmp_path: Path, monkeypatch: Patch) -> None:
    """With weights at random, batch norm folded into the file as its makers did."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    from programme.inception_768 import Inception768
    from safetensors.torch import save_file

    monkeypatch.setattr(theirs, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    torch.manual_seed(0)
    network, folded = theirs("random", ["768"], "no file"), {}
    for name, layer in network.named_modules():
        if hasattr(layer, "bn") and name < "Mixed_7":
            for values in (layer.bn.weight, layer.bn.running_var):
                torch.nn.init.uniform_(values, 0.5, 2)
            torch.nn.init.normal_(layer.bn.running_mean, std=0.1)
            scale = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
            folded[f"{name}.weight"] = layer.conv.weight * scale[:, None, None, None]
            folded[f"{name}.bias"] = layer.bn.bias - layer.bn.running_mean * scale
    save_file(folded, tmp_path / "weights.safetensors")
    extract = Inception768(tmp_path / "weights.safetensors", torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)  # of which neither makes another size
    (wanted,) = network(pixels)
    # theirs divides by 128, not 127.5
    shifted = (pixels.float() - 128) / 128
    monkeypatch.setattr("programme.inception_768.to_float", lambda _: shifted)
    torch.testing.assert_close(extract(pixels)[0], wanted, rtol=1e-3, atol=1e-5)


def test_losses_that_differ_are_wrong(work: Any, monkeypatch: Patch) -> None:
    from programme import agreement

    def run(work: Any, folder: Path, precision: str, compiles: str) -> dict[str, Any]:
        return {"name": compiles, "losses": [1.0, 0.9, 0.8, 0.5 if compiles == "false" else end]}

    monkeypatch.setattr(agreement, "trained", run)
    for end, wrong in ((0.505, None), (0.6, ["the last losses differ by 20.0%"])):
        told = agreement.compared(work, "no")
        assert told["largest_difference"] == pytest.approx(end / 0.5 - 1)
        assert told.get("wrong") == wrong


def test_a_junit_report_is_read(tmp_path: Path) -> None:
    from programme import suite

    cases = ['name="a"/>', 'name="b"><failure>no</failure></testcase>', 'name="c"><skipped/></testcase>']
    cases += ['name="d"><error/></testcase>']
    body = "".join(f'<testcase classname="tests.test_gpu" {case}' for case in cases)
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    told = suite.outcome(tmp_path / "r.xml")
    assert told == {
        "passed": 1, "failed": 2, "not_run": 1,
        "wrong": ["tests.test_gpu::b failed", "tests.test_gpu::d failed"],
    }  # fmt: skip


def test_recompiles_are_counted(work: Any, monkeypatch: Patch, command: Any, tiny_model: Path) -> None:
    from programme import commands, draws

    said = command("sample", f"ckpt={tiny_model}", "n=2", f"out={work.folder / 'here'}").out
    twice = said + "V1127 [0/1] [__recompiles] Recompiling function forward in unet.py:279\n"
    monkeypatch.setattr(draws, "checkpoint", lambda work: tiny_model)
    for text, wrong in ((said, None), (twice, ["the network was compiled 2 times"])):
        monkeypatch.setattr(commands, "run", lambda *_, text=text, **__: commands.Done(0, text, 1.0))
        told = draws.command(work)
        assert told.get("wrong") == wrong
        assert told["images_per_second"] > 0
        assert told["nfe"] == 7  # heun in 4 steps


def test_what_a_full_card_must_give(work: Any, monkeypatch: Patch) -> None:
    from programme import faults
    from programme.work import Skipped

    with pytest.raises(Skipped, match="needs CUDA"):
        faults.small_card(work)
    halved = "warning: out of memory with 512 images at once: going on with micro-batches of 256; ..."
    for piece, code, text, wrong in (
        (faults.small_card, 0, halved, []),
        (faults.small_card, 0, "100%", ["no micro-batch was halved"]),
        (
            faults.small_card,
            1,
            f"{halved}\nTraceback",
            [f"exit code 1, not 0: {halved}\nTraceback", "there was a traceback"],
        ),
        (faults.no_room, 75, "error: out of memory", []),
        (faults.no_room, 0, "100%", ["exit code 0, not 75: 100%"]),
    ):
        monkeypatch.setattr(faults, "crowded", lambda work, gib, end=(code, text, {}): end)
        assert piece(work)["wrong"] == wrong


def test_variants_change_what_they_say(monkeypatch: Patch) -> None:
    from benchmark import sampling
    from benchmark.layouts import TINY
    from programme import variants

    from diffgen.training.trainer import Trainer

    step, asked = Trainer._step, []
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.append(options))
    with variants.cuda_graphs():
        torch.compile(None, dynamic=False)
        assert Trainer._step is not step
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
    assert Trainer._step is step
    with variants.cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    plain = sampling.our_network(TINY).encoder[0].conv0.weight
    with variants.channels_last():
        weight = sampling.our_network(TINY).encoder[0].conv0.weight
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in (plain, weight)] == [False, True]


def test_group_norm_in_16_bits_sees_no_float32(monkeypatch: Patch) -> None:
    from programme import variants

    norm, x, seen = torch.nn.GroupNorm(2, 4), torch.randn(3, 4, 5, 5), []
    plain, group_norm = norm(x), variants.F.group_norm

    def watched(x: torch.Tensor, groups: int, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((x.dtype, weight.dtype, torch.is_autocast_enabled("cpu")))
        return group_norm(x, groups, weight, *rest)

    monkeypatch.setattr(variants.F, "group_norm", watched)
    with variants.group_norm_in_16_bits(), torch.autocast("cpu", torch.bfloat16):
        low = norm(x.bfloat16())
    assert seen == [(torch.bfloat16, torch.bfloat16, False)]
    torch.testing.assert_close(low.float(), plain, rtol=0, atol=0.05)


def test_what_is_judged(work: Any, tmp_path: Path) -> None:
    from programme import judge
    from programme.work import Skipped, Unfinished, Work

    with pytest.raises(Skipped, match="random data"):
        judge.subject(Work(tmp_path, tiny=False, data=None, deadline=0))
    real = Work(tmp_path, tiny=False, data=tmp_path, deadline=0)
    with pytest.raises(Unfinished):
        judge.subject(real)
    (tmp_path / "speed-run").mkdir()
    (tmp_path / "speed-run" / "status.json").write_text('{"state": "done"}')
    assert judge.subject(real)[1] == ["n=10000", f"dataset.root={tmp_path}"]


def test_few_steps_begin_from_a_flow_that_is_over(tmp_path: Path) -> None:
    from programme import few_steps
    from programme.work import Skipped, Unfinished, Work

    work = Work(tmp_path, tiny=False, data=None, deadline=0)
    with pytest.raises(Unfinished, match="is not over"):
        few_steps.ect(work)
    with pytest.raises(Skipped, match="random data"):
        few_steps.neon(work)
    assert few_steps.judged(work, tmp_path) == [], "of random data there is only speed"
    assert "train.minutes=3.0" in few_steps.settings(work, "ect", "method=ect")


def test_what_a_run_says_of_its_memory() -> None:
    from programme import commands

    assert commands.peak("9%  0.5 GiB  ETA\n100%  img/s  11.2 GiB  ETA 0:00") == {"peak_gb": 11.2}
    assert commands.peak("memory unknown") == {}


# --- what is told -------------------------------------------------------------------------------------------------------


def test_the_document_says_what_the_files_say(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_table

    monkeypatch.setattr(sys, "argv", ["gpu_table.py", "--check"])
    assert gpu_table.main() == 0, capsys.readouterr().out


def test_tables_show_figures_and_what_is_missing(tmp_path: Path) -> None:
    import gpu_table

    facts = {"device": "NVIDIA H100", "machine": "EPYC", "date": "today", "commit": "abc", "versions": {"torch": "9"}}
    rows = [{"name": "diffgen", "images_per_second": 8123.4, "mfu": 0.3217, "graphs": 1}, {"name": "peer", "mfu": 0.1}]
    training = {
        "net": {"batch": 512, "data": "random data", "rows": rows, "missing": ["k-diffusion: not installed"]},
        "other": {"error": ["Traceback", "RuntimeError: no"]},
        "third": {"skipped": "needs CUDA"},
    }
    judged = {"classifier": {"images": 10_000, "figures": {"fd": 1.5, "extractor": "classifier"}}}
    parts = {"judge": judged, "training": training}
    path = tmp_path / "gpu-h100-2026-01-01.json"
    path.write_text(json.dumps({name: {"facts": facts, "pieces": pieces} for name, pieces in parts.items()}))
    text = gpu_table.document(f"top\n{gpu_table.BEGIN}\nold\n{gpu_table.END}\nend\n", [path])
    assert text.startswith("top\n")
    assert text.endswith(f"{gpu_table.END}\nend\n")
    assert "old" not in text
    assert text.count("NVIDIA H100, EPYC; today; torch 9. diffgen at abc.") == 1
    assert "net, batch 512, random data:\n\n|  | images/s | MFU | graphs |\n" in text
    assert "| diffgen | 8,123 | 32% | 1 |\n| peer | - | 10% | - |\n" in text
    assert "- net: k-diffusion: not installed.\n- other: **failed**, `RuntimeError: no`.\n" in text
    assert "- third: skipped, needs CUDA." in text
    assert text.index("Training steps") < text.index("The speed-run's images")
    assert "    Frechet distance (classifier)            1.5" in text
    assert "\n\n\n" not in text
    assert gpu_table.NOT_MEASURED in gpu_table.document(text, [])


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    """Four minutes of two quiet cores."""
    command = [sys.executable, "scripts/gpu_programme.py", "--tiny", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left of" not in done.stdout
    from programme.parts import PARTS

    (path,) = tmp_path.glob("gpu-*.json")
    written = json.loads(path.read_text())
    assert list(written) == list(PARTS)
    for part, section in written.items():
        assert all("error" not in row and not row.get("wrong") for row in section["pieces"].values()), part
        skipped = [name for name, row in section["pieces"].items() if "skipped" in row]
        assert len(skipped) < len(section["pieces"]), f"nothing of {part} was made"
    assert (tmp_path / "gpu-speed-run.png").is_file()
    assert "![a grid](images/gpu-speed-run.png)" in done.stdout
