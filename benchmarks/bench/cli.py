"""The command: what gates cost here, each case checked first and timed beside its twin."""

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.bench import report as bench_report
from benchmarks.bench import table as bench_table
from benchmarks.bench.cases import ALL_GATES, FORMS, GROUPS, POOLED, Plan
from benchmarks.bench.loop import Settings, measure
from spem._messages import unknown
from spem.compare.timing import device_name, fastest_kernels

_MODELS = {"cpu": {"resnet29": 64, "resnet83": 32}, "cuda": {"resnet164": 128, "imagenet50": 256}}
_SHAPES = {
    "cpu": ["64x64x32x32", "64x128x16x16", "64x256x8x8"],
    "cuda": ["256x64x32x32", "256x256x56x56", "256x2048x7x7"],
}
_DTYPES = {"cpu": ["float32"], "cuda": ["bfloat16", "float32"]}
_GATES = {"cpu": ["spem", "se", "eca", "srm", "gct", "sem"], "cuda": list(POOLED)}


def bench(
    *,
    only: list[str] | None = None,
    models: list[str] | None = None,
    batch: int | None = None,
    size: int = 32,
    shapes: list[str] | None = None,
    dtypes: list[str] | None = None,
    formats: list[str] | None = None,
    gates: list[str] | None = None,
    cases: list[str] | None = None,
    kernels: str = "auto",
    pairs: int = 40,
    threads: int = 2,
    memory: bool = True,
    device: str = "auto",
    out: str | None = None,
    report: str | list[str] | bool = False,
) -> int:
    """Measure what gates cost on this device, or report what was measured.

    Before it is timed, every case is checked against the truth, in float64 (training at 16 bits:
    in float32); a red one has no timing. It is timed in turns with the plain network (operations:
    with a copy of the map) and with a second plain one, whose ratio is the noise. Without flags:
    the table of the CPU, or of the GPU where there is one.

    Args:
        only: groups to measure, of [operations,tail,training,inference]; all if not given.
        models: networks of create_model, bottlenecks where they fit, and imagenet50: ResNet-50 at
            224×224.
        batch: images of a batch; if not given: resnet29 64, resnet83 32, imagenet50 256, any other
            128.
        size: side of the images of the others; 32 if not given.
        shapes: maps for operations and tail, each like 64x256x8x8.
        dtypes: of [float32,bfloat16,float16].
        formats: of [NHWC,NCHW]; both if not given.
        gates: gates that read pooled values; on the CPU those of its table if not given. Training
            and inference of ours alone take every gate, [all] of them.
        cases: columns beside plain, of [ours,eager,today,timm,whole,graph]; all that the device has
            if not given. whole: plain, SPEM and timm's compiled whole by torch.compile, which takes
            minutes; graph: on a GPU, plain, ours and SPEM of today as one CUDA graph.
        kernels: the implementation behind ours; auto for the fastest that works here.
        pairs: rounds of each comparison; 40 if not given.
        threads: of the CPU; 2 if not given.
        memory: measure the memory of one run, too; on the CPU in a process of its own.
        device: auto, cpu or cuda.
        out: file of the results, whose rows of the same device, versions and case are replaced;
            benchmarks/results/DEVICE.csv if not given.
        report: measure nothing, but print the tables of this CSV file or [LIST] of them, or else
            of --out, and draw a figure beside each.
    """
    where = _device(device)
    path = Path(out) if out else bench_table.default_path(device_name(where))
    if report:
        files = [path] if report is True else [report] if isinstance(report, str) else report
        for file in map(Path, files or []):
            print(bench_report.markdown(bench_table.read_rows(file)))
            print(f"figure: {bench_report.draw(file)}")
        return 0
    kind = where.type
    if kind != "cuda" and "graph" in (cases or ()):
        raise ValueError("the case graph needs a CUDA device, and this is the CPU")
    known = _MODELS["cpu"] | _MODELS["cuda"]
    plan = Plan(
        groups=only or GROUPS,
        models={m: batch or known.get(m, 128) for m in models or _MODELS[kind]},
        shapes=[_shape(text) for text in shapes or _SHAPES[kind]],
        dtypes=dtypes or _DTYPES[kind],
        formats=formats or ["NHWC", "NCHW"],
        gates=list(ALL_GATES) if gates == ["all"] else gates or _GATES[kind],
        forms=cases or [form for form in FORMS if form != "graph" or kind == "cuda"],
        kernels=fastest_kernels(where) if kernels == "auto" else kernels,
        size=size,
    )
    return _run(plan, path, Settings(where, pairs, threads, memory))


def _run(plan: Plan, path: Path, settings: Settings) -> int:
    """Measure all cases of a plan and return the exit code: 1 if any is red."""
    from spem.train.devices import keep_freed_memory

    if path.exists():
        bench_table.read_rows(path)  # a file that is something else is refused before the work
    keep_freed_memory()
    plan = _available(plan)
    identity = settings.identity()
    print(", ".join(f"{key} {value}" for key, value in identity.items()), flush=True)
    red = 0
    for case, row in measure(plan, settings):
        red += row["state"] != "ok"
        print(bench_report.line(case, row), flush=True)
        bench_table.merge(path, [identity | row])
    print(f"results: {path}" + f"; {red} red, not timed" * bool(red))
    return int(red > 0)


def _available(plan: Plan) -> Plan:
    """Leave out the columns that this machine lacks, and say so."""
    forms = list(plan.forms)
    if "timm" in forms and find_spec("timm") is None:
        forms.remove("timm")
        print("timm is left out: it is not installed")
    return replace(plan, forms=forms)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(auto if name == "auto" else name)


def _shape(text: str) -> tuple[int, int, int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise ValueError(f"the shape {text!r} must be four numbers, NxCxHxW, like 64x256x8x8")
    n, c, h, w = map(int, text.split("x"))
    return n, c, h, w
