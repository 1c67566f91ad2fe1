"""A benchmark from end to end, on tiny models; what it refuses to compare, to build, to call a target."""

import json
import sys

import pytest
import torch
from compare import memory
from compare.__main__ import main
from compare.cadenza_runner import CadenzaRunner, prepare_variant
from compare.curves import run_curve, sweep_axis
from compare.equality import compare_outputs
from compare.geometry import geometry, write
from compare.peer import TransformersConfig, TransformersRunner
from compare.processes import SubprocessJob, run_in_subprocess
from compare.run import BenchConfig, run_benchmark
from compare.sweep import best_configs, run_sweep, sweep_configs, sweep_table
from compare.targets import check_targets
from safetensors.torch import load_file, save_file

from cadenza.apps.bench import BenchJob
from cadenza.core.errors import BenchmarkError

WHERE = {"device": torch.device("cpu"), "threads": 1}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "model"
    write(geometry("musicgen-small", quick=True), place)
    return place


@pytest.fixture
def compare(capsys, monkeypatch):
    """The program, run in this process; its status, what it printed and what it complained of."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_a_run_from_end_to_end(compare, tmp_path):
    quickly = ("--quick", "--threads", 1, "--repeats", 2, "--no-fresh", "--variants", "float32,bfloat16")
    status, out, err = compare("musicgen-small", *quickly, "--curves", "guidance", "--out", tmp_path)
    assert status == 0, err
    report = json.loads((tmp_path / "musicgen-small.json").read_text())
    assert list(report["results"]) == ["cadenza float32", "cadenza bfloat16", "transformers float32, sdpa"]
    assert report["equal"]["codes_equal"] and report["equal"]["max_abs_difference"] <= 1e-4
    ours, peer = report["results"]["cadenza float32"], report["results"]["transformers float32, sdpa"]
    assert ours["steps"] == peer["steps"] == 20 + 3
    assert len(ours["total_seconds"]["all"]) == 2 and len(peer["total_seconds"]["all"]) == 1
    ratio = peer["total_seconds"]["median"] / ours["total_seconds"]["median"]
    assert ours["faster_than"]["transformers float32, sdpa"] == pytest.approx(ratio)
    bound = report["bounds"]["bandwidth"] / (ours["bound"]["weights"] + ours["bound"]["memory"])
    assert ours["share_of_bound"] == pytest.approx(ours["steps_per_second"]["median"] / bound)
    parts = ours["seconds"]
    assert set(parts) == {"text", "lm", "codec"} and all(one["min"] > 0 for one in parts.values())
    assert 0 < ours["first_sound"]["min"]
    text = (tmp_path / "musicgen-small.md").read_text()
    assert "All codes are the same" in text and "these numbers say nothing" in text and "## Targets" not in text
    assert text in out
    assert "(musicgen-small-guidance.png)" in text and (tmp_path / "musicgen-small-guidance.png").stat().st_size > 5000
    three = [point["at"] for point in report["curves"]["guidance"]["points"]["transformers float32, sdpa"]]
    assert three == [1, 2] and "it has no such guidance" in text


@pytest.mark.parametrize("name", ["encodec-24khz", "encodec-32khz"])
def test_codecs_alone(name):
    report = run_benchmark(BenchConfig(name, 0.4, repeats=2, threads=1, quick=True), say=quiet)
    assert report["equal"]["share_of_codes_that_differ"] <= 1e-3
    assert [len(one["seconds"]["decode"]["all"]) for one in report["results"].values()] == [2, 2]
    assert set(report["results"]["cadenza float32"]["seconds"]) == {"encode", "decode"}


def test_what_is_ours_alone():
    report = run_benchmark(BenchConfig("starter", 0.4, ("float32",), repeats=1, fresh=False, quick=True), say=quiet)
    assert list(report["results"]) == ["cadenza float32"] and "equal" not in report
    assert report["results"]["cadenza float32"]["threads"] == 1  # as the program runs it


def test_other_weights_are_not_the_same_sound(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state["decoder.lm_heads.1.weight"] = state["decoder.lm_heads.1.weight"].flip(0).contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    peer = TransformersRunner(folder, TransformersConfig(), **WHERE)
    assert compare_outputs(CadenzaRunner(folder, "float32", **WHERE), peer, BenchJob(0.4))["frames"] == 20
    with pytest.raises(BenchmarkError, match="% of the codes differ"):
        compare_outputs(CadenzaRunner(tmp_path, "float32", **WHERE), peer, BenchJob(0.4))


def test_a_process_of_its_own_says_what_it_held(folder, tmp_path):
    kept = prepare_variant(folder, "bfloat16", tmp_path)
    found = run_in_subprocess(SubprocessJob(str(kept), 0.8, 1, "cpu", variant="bfloat16", streamed=True))
    moments = [found["seconds"][name] for name in ("imported", "loaded", "first sound", "end")]
    assert moments == sorted(moments) and moments[0] > 0 and found["pieces"] > 1
    memory = found["memory"]
    parameters = sum(x.numel() for x in CadenzaRunner(folder, "float32", **WHERE).system.generator.parameters())
    assert memory["language model"] == 2 * parameters
    assert memory["peak"] >= memory["after loading"] >= memory["libraries"] > 50e6
    with pytest.raises(BenchmarkError, match="neither a folder nor a bundled model"):
        run_in_subprocess(SubprocessJob(str(tmp_path / "nothing"), 0.4, 1, "cpu", variant="float32"))


def test_a_sweep_finds_the_best_and_keeps_what_does_not_run(folder, tmp_path):
    configs = [
        TransformersConfig(),
        TransformersConfig(cache="static"),
        TransformersConfig("bfloat16", "eager"),
        TransformersConfig(attention="none such"),
    ]
    found = run_sweep(folder, configs, **WHERE, jobs=(BenchJob(0.2), BenchJob(0.4)), say=quiet)
    rows = {TransformersConfig(**row["config"]): row for row in found["cells"]}
    assert "error" in rows[configs[3]] and "does not run" in "\n".join(sweep_table(found))
    assert rows[configs[0]]["same_codes"] == rows[configs[1]]["same_codes"] == 1.0
    finals = {config: row["final_steps_per_second"] for config, row in rows.items() if "final_steps_per_second" in row}
    assert TransformersConfig(**found["best"]) == max(finals, key=lambda config: finals[config])
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"sweep": found}))
    assert best_configs(path)[0].dtype == "float32" and TransformersConfig(**found["best"]) in best_configs(path)
    path.write_text("{}")
    with pytest.raises(BenchmarkError, match="is not the result of a sweep"):
        best_configs(path)


def test_the_cells_of_a_sweep_are_different_and_begin_with_the_usual():
    for kind in ("cpu", "cuda"):
        found = list(sweep_configs(torch.device(kind)))
        assert found[0] == TransformersConfig() and len(set(found)) == len(found) >= 8


def test_a_point_that_takes_the_peer_too_long_is_left_out(folder, monkeypatch):
    monkeypatch.setattr("compare.curves.PATIENCE", 0.0)
    found = run_curve(sweep_axis("batch", quick=True), [TransformersRunner(folder, TransformersConfig(), **WHERE)], say=quiet)
    assert [point["at"] for points in found["points"].values() for point in points] == [1]
    assert "at 2: it might take more than 0 s" in found["left_out"][0]


def test_targets_are_reached_or_missed_or_not_measured():
    results = {
        "cadenza int8": {
            "steps_per_second": {"median": 52.0},
            "times_real_time": {"median": 1.01},
            "share_of_bound": 0.6,
            "faster_than": {"transformers float32, sdpa": 8.5, "transformers bfloat16, sdpa": 5.0},
            "first_sound": {"median": 2.0},
        },
        "transformers float32, sdpa": {},
    }
    held = {"cadenza int8, streamed": {"memory": {"peak": 1.1e9}}, "cadenza int8, whole": {"memory": {"peak": 1.3e9}}}
    report = {"model": "musicgen-small", "device": "cpu", "quick": False, "job": {"seconds": 30.0}, "results": results}
    found = {one["what"]: one["reached"] for one in check_targets(report | {"fresh": held})}
    assert found == {
        "int8: times real time, end to end": True,
        "int8: steps a second": False,
        "int4: steps a second": None,
        "int8: share of the measured bound": True,
        "int4: share of the measured bound": None,
        "int8: times as fast as transformers in float32, end to end": True,
        "int8: seconds from the call to the first sound": False,
        "int8: peak resident memory, streamed, GB": True,
        "int8: peak resident memory, whole, GB": False,
    }
    assert check_targets(report | {"job": {"seconds": 2.0}}) == [] and check_targets(report | {"quick": True}) == []


def test_a_model_too_large_is_refused_before_it_is_built(monkeypatch):
    shape = geometry("musicgen-large")
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 10**9)
    monkeypatch.setattr(memory, "available_memory_on", lambda device: 10 * 10**9)
    with pytest.raises(
        BenchmarkError, match="what would fit: musicgen-small, musicgen-stereo-small, encodec-24khz, encodec-32khz"
    ):
        memory.fits_in_memory(shape, ("float32",), (TransformersConfig(),), torch.device("cpu"))
    small = geometry("musicgen-small")
    assert not memory.fits_in_memory(
        small, ("float32", "int8"), (TransformersConfig(),), torch.device("cpu")
    )  # one after the other
    monkeypatch.setattr(memory, "available_memory", lambda: 40 * 10**9)
    monkeypatch.setattr(memory, "available_memory_on", lambda device: 40 * 10**9)
    assert memory.fits_in_memory(small, ("float32", "int8"), (TransformersConfig(),), torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("musicgen-smoll",), "'musicgen-smoll' is neither a folder nor a bundled model"),
        (("musicgen-small", "--variants", "int9"), "'int9' is not a variant"),
        (("musicgen-small", "--curves", "lenght"), "unknown curve 'lenght'"),
        (("musicgen-small", "--seconds", 0), "--seconds must be above 0"),
        (("musicgen-small", "--peer-from", "nowhere.json"), "nowhere.json is not the result of a sweep"),
        (("encodec-24khz", "--sweep"), "a codec has one configuration"),
    ],
)
def test_mistakes_are_one_message(compare, tmp_path, arguments, said):
    status, _, err = compare(*arguments, "--quick", "--no-fresh", "--out", tmp_path / "out")
    assert status == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "out").exists()


def test_without_a_transformers_that_has_musicgen(compare, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = compare("musicgen-small", "--quick", "--out", tmp_path)
    assert status == 2 and "no MusicGen" in err and "--no-peer" in err
