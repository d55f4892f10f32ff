"""`python -m benchmarks.bench`: what it refuses, what is red, what it writes and reports."""

from dataclasses import replace

import pytest
import torch
from benchmarks.bench import networks as bench_networks
from benchmarks.bench import table as bench_table
from benchmarks.bench.__main__ import main
from benchmarks.bench.capture import fresh_dynamo
from benchmarks.bench.cases import ALL_GATES, Case, Plan
from benchmarks.bench.cli import bench
from benchmarks.bench.loop import Settings, measure
from benchmarks.bench.memory import case_memory
from benchmarks.bench.report import markdown
from benchmarks.bench.runs import NetworkRun, ready
from benchmarks.bench.targets import verdicts

from spem import kernels
from spem.compare.timing import RedCaseError, check_parity, interleave, ratios

CPU = torch.device("cpu")
TAIL = Case("tail", "forward and backward", (4, 16, 5, 5), "float32", "NHWC", "spem", "ours")
PLAN = Plan(
    groups=["operations", "tail"],
    models={},
    shapes=[(4, 16, 5, 5)],
    dtypes=["float32"],
    formats=["NHWC"],
    gates=["spem"],
    forms=["ours", "today"],
    kernels="eager",
)
SMALL = {
    "only": ["tail"],
    "shapes": ["4x16x5x5"],
    "gates": ["spem"],
    "formats": ["NHWC"],
    "cases": ["ours", "today"],
    "kernels": "eager",
    "pairs": 3,
    "threads": 1,
    "memory": False,
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"only": ["training", "sleep"]}, "sleep"),
        ({"gates": ["sge"]}, "sge"),
        ({"gates": ["all"]}, "cbam whole"),
        ({"formats": ["HWCN"]}, "HWCN"),
        ({"dtypes": ["int8"]}, "int8"),
        ({"cases": ["yesterday"]}, "yesterday"),
        ({"kernels": "magic"}, "magic"),
        ({"device": "tpu"}, "tpu"),
        ({"cases": ["graph"]}, "needs a CUDA device"),
        ({"shapes": ["4x16x5"]}, "NxCxHxW"),
        ({"size": 4}, "at least 8"),
        ({"models": ["resnet29"], "batch": 1}, "at least 2"),
        ({"pairs": 1}, "at least 2"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_wrong_flags_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bench(**SMALL | {"out": str(tmp_path / "x.csv")} | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "gate",
    [
        pytest.param(gate, marks=() if gate in ("gc", "cbam whole", "simam") else pytest.mark.gates)
        for gate in ALL_GATES
    ],
)
@pytest.mark.parametrize("group", ["training", "inference"])
def test_networks_of_ours_alone_take_every_gate(gate, group):
    axes = {"groups": [group], "forms": ["ours"], "gates": [gate], "size": 16}
    plan = replace(PLAN, models={"resnet11": 4}, **axes)
    rows = [row for _, row in measure(plan, Settings(CPU, 2, 1, memory=False))]
    assert [row["state"] for row in rows] == ["ok"] * len(rows)
    assert rows[-1]["gate"] == gate


def test_a_plan_begins_each_place_with_the_plain_network():
    plan = replace(PLAN, groups=["training"], models={"resnet29": 8}, forms=["ours", "whole"])
    cases = [str(case) for case in plan.cases()]
    assert cases == [
        f"training resnet29 8x3x32x32 float32 NHWC: {column}"
        for column in (
            "no gate, torch, eager",
            "no gate, ours, eager",
            "no gate, torch, whole",
            "spem, ours, eager",
            "spem, ours, whole",
        )
    ]


def test_on_a_gpu_graphs_stand_beside_the_plain_network_in_one():
    gates = ["spem", "se"]
    forms = ["ours", "today", "timm", "whole", "graph"]
    plan = replace(PLAN, gates=gates, forms=forms, groups=["inference"], models={"imagenet50": 2})
    cases = list(plan.cases())
    assert {case.shape for case in cases} == {(2, 3, 224, 224)}
    ways = {way: [(c.gate, c.form) for c in cases if c.way == way] for way in ("whole", "graph")}
    assert ways["whole"] == [("none", "torch"), ("spem", "ours"), ("se", "timm")]
    ours = [(gate, "ours") for gate in ("none", *gates)]
    assert set(ways["graph"]) == {("none", "torch"), ("spem", "today"), *ours}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("group", ["training", "inference"])
def test_what_a_graph_replays_is_checked(group):
    case = Case(group, "resnet20", (8, 3, 32, 32), "bfloat16", "NHWC", "spem", "ours", "graph")
    run = NetworkRun(case, torch.device("cuda"))
    run.check()
    times = interleave({"graph": run.work()}, 2, torch.device("cuda"))
    assert min(times["graph"]) > 0


@pytest.mark.parametrize("form", ["ours", "today", "torch"])
def test_every_form_computes_the_same(form):
    ready(replace(TAIL, form=form), CPU).check()


def test_networks_computed_by_others_are_checked_exactly(monkeypatch):
    class Off(torch.nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.gate = gate

        def forward(self, x):
            return self.gate(x) * (1 + 1e-6)

    class Forms:
        @staticmethod
        def rewrite(_, gates):
            return [bench_networks._Foreign(gate.channels, Off(gate)) for gate in gates]

    monkeypatch.setattr(bench_networks, "formulations", Forms)
    with pytest.raises(RedCaseError, match="error"):
        NetworkRun(replace(TAIL, form="today"), CPU).check()


def test_parity_allows_twice_the_naive_error_and_four_ulp():
    truth = {"y": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    naive = [{"y": torch.tensor([1.0, 2.001])}, {"y": torch.tensor([1.0, 2.0])}]
    check_parity({"y": torch.tensor([1.0, 2.0019])}, naive, truth, order=float("inf"))
    with pytest.raises(RedCaseError, match="y: error"):
        check_parity({"y": torch.tensor([1.0, 2.0021])}, naive, truth, order=float("inf"))
    with pytest.raises(RedCaseError, match="y: error nan"):
        check_parity({"y": torch.tensor([1.0, float("nan")])}, naive, truth, order=float("inf"))


def test_a_wrong_case_has_no_timing(monkeypatch):
    right = kernels.eager.Eager.recalibrate
    monkeypatch.setattr(
        kernels.eager.Eager, "recalibrate", lambda *xs, **keys: right(*xs, **keys) * 1.01
    )
    plan = replace(PLAN, groups=["operations"])
    rows = {str(case): row for case, row in measure(plan, Settings(CPU, 2, 1, memory=False))}
    red = {case for case, row in rows.items() if row["state"] != "ok"}
    assert red == {case for case in rows if "recalibrate" in case and "ours" in case}
    for case, row in rows.items():
        assert ("seconds" in row) == (case not in red)


def test_the_recompile_limit_is_red():
    double = torch.compile(lambda x: 2 * x, dynamic=False, backend="eager")

    def run():
        with fresh_dynamo():
            for size in range(2, 12):
                double(torch.ones(size))

    with pytest.raises(RedCaseError, match="recompile limit"):
        run()


def test_rounds_are_interleaved_in_turning_order():
    order = []
    works = {name: lambda n=name: lambda: order.append(n) for name in "abc"}
    seconds = interleave(works, 3, CPU)
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert ratios({"x": [2.0, 6.0, 4.0], "y": [1.0, 2.0, 4.0]}, "x", "y")[50] == 2


@pytest.mark.hard
def test_memory_is_measured_in_a_process_of_its_own():
    shape = (16, 64, 32, 32)
    used = case_memory(replace(TAIL, shape=shape), threads=1)
    # The output, the gradients of both inputs and of the output at least.
    assert used is None or used > 3 * 4 * 16 * 64 * 32 * 32


def test_rows_are_written_replaced_and_reported(tmp_path, capsys):
    path = tmp_path / "x.csv"
    assert bench(**SMALL, out=str(path)) == 0
    first = bench_table.read_rows(path)
    assert bench(**SMALL, out=str(path)) == 0
    assert [row["gate"] for row in bench_table.read_rows(path)] == [row["gate"] for row in first]
    assert {row["state"] for row in first} == {"ok"}
    assert "results: " in capsys.readouterr().out
    assert bench(report=True, out=str(path)) == 0
    text = capsys.readouterr().out
    assert "### Tail" in text
    assert text.count("| forward and backward |") == len(first) / 2
    assert path.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("form", ["--report --out {}", "--report {}", "--report [{}]"])
def test_the_report_of_the_command(form, tmp_path, capsys):
    path = tmp_path / "x.csv"
    bench(**SMALL, out=str(path))
    capsys.readouterr()
    assert main([*form.format(path).split()]) == 0
    assert f"figure: {path.with_suffix('.png')}" in capsys.readouterr().out


def test_another_table_is_left_alone(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no table of benchmarks\.bench"):
        bench(**SMALL, out=str(path))
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(FileNotFoundError, match="no results"):
        bench(report=str(tmp_path / "none.csv"))


def row(gate, form, way, ratio, **changes):
    """Return a row of the table; all quantiles are the same."""
    place = {
        "processor": "cpu",
        "group": "training",
        "subject": "resnet29",
        "shape": "64x3x32x32",
        "dtype": "float32",
        "format": "NHWC",
        "gate": gate,
        "form": form,
        "way": way,
        "state": "ok",
        "baseline": "plain",
        "seconds": "0.1",
    }
    ratios = {name: str(ratio) for name in bench_table.COLUMNS if name[:6] in ("ratio_", "noise_")}
    return dict.fromkeys(bench_table.COLUMNS, "") | place | ratios | changes


def test_targets_compare_our_fastest_way_with_plain_in_its_fastest():
    rows = [
        row("none", "torch", "eager", 1.0),
        row("none", "torch", "whole", 0.8),
        row("spem", "ours", "compiled", 0.9),
        row("spem", "ours", "eager", 1.2),
        row("spem", "today", "eager", 1.8),
    ]
    found = {v.title: v for v in verdicts(rows)}
    assert found["SPEM / plain"].measured == pytest.approx(0.9 / 0.8)
    assert found["SPEM / plain"].reached is False
    assert found["SPEM eager / plain eager"].measured == 1.2
    today = found["SPEM as users write it today, eager / ours"]
    assert (today.measured, today.reached) == (2.0, True)
    assert found["SE / plain"].reached is None
    text = markdown(rows)
    assert "| SE / plain | resnet29, batch 64, float32 | NHWC | training | ≤ 1.06 |  | not" in text


def test_targets_of_a_gpu_name_their_networks_and_count_memory_and_epochs():
    gpu = {"processor": "cuda", "dtype": "bfloat16"}
    small = gpu | {"subject": "resnet164", "shape": "128x3x32x32"}
    large = gpu | {"subject": "imagenet50", "shape": "256x3x224x224"}
    rows = [
        row("none", "torch", "eager", 1.0, **small, memory="1000"),
        row("none", "torch", "graph", 0.4, **small),
        row("spem", "ours", "triton", 1.5, **small, memory="990"),
        row("spem", "ours", "graph", 0.408, **small, seconds="0.016"),
        row("spem", "today", "eager", 4.08, **small),
        row("none", "torch", "eager", 1.0, **large),
        row("none", "torch", "whole", 0.8, **large),
        row("spem", "ours", "whole", 0.84, **large),
        row("spem", "ours", "triton", 0.98, **large),
    ]
    found = {(v.subject.partition(",")[0], v.title): v for v in verdicts(rows)}
    memory = found["resnet164", "SPEM / plain eager, memory of a step"]
    assert (memory.measured, memory.reached) == (0.99, True)
    best = found["resnet164", "SPEM / plain"]
    assert best.measured == pytest.approx(1.02)
    assert best.reached
    today = found["resnet164", "SPEM as users write it today, eager / ours"]
    assert today.measured == pytest.approx(10)
    whole = found["imagenet50", "both compiled whole, SPEM / plain"]
    assert whole.measured == pytest.approx(1.05)
    assert not whole.reached
    assert found["imagenet50", "SPEM by our kernels, eager / plain eager"].measured == 0.98
    assert ("imagenet50", "SPEM / plain eager, memory of a step") not in found
    text = markdown(rows)
    # 128 images in 16 ms; 164 epochs of 50,000.
    assert "| 8000 |" in text
    assert "17.1 minutes" in text
