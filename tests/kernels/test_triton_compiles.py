"""The Triton kernels through Triton's compiler, for devices that need not be here."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is made for Linux")

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spem.kernels.triton import backward as triton_backward
from spem.kernels.triton import layout as triton_layout
from spem.kernels.triton import pool as triton_pool
from spem.kernels.triton import recalibrate as triton_recalibrate
from spem.kernels.triton import short as triton_short
from spem.kernels.triton.backward import input_gradient, sums
from spem.kernels.triton.pool import pool
from spem.kernels.triton.recalibrate import recalibrate

AMPERE, HOPPER = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Recorded:
    """Stands in for a kernel and compiles it for what it is launched with."""

    def __init__(self, kernel, target, compiled):
        self.kernel, self.target, self.compiled = kernel, target, compiled

    def __getitem__(self, grid):
        assert 0 < grid[0] < 2**31
        return self.launch

    def launch(self, *args, **options):
        names = self.kernel.arg_names
        given = dict(zip(names, args, strict=False))
        given |= {name: options.pop(name) for name in names if name in options}
        signature, constants, facts = {}, {}, {}
        for position, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, given[parameter.name]
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                facts[position,] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or value is None or value == 1:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
                if value % 16 == 0:
                    facts[position,] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, facts)
        compiled = compile_kernel(source, target=self.target, options=options)
        self.compiled[self.kernel.__name__] = compiled.asm["ptx"]


@pytest.fixture
def compiled(monkeypatch, tmp_path, request):
    """The PTX of every kernel that a test launches, by the kernel's name."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = {}
    for module in (triton_pool, triton_short, triton_recalibrate, triton_backward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            kernel = Recorded(getattr(module, name), request.param, code)
            monkeypatch.setattr(module, name, kernel)
    return code


def launch_all(x, number=2):
    """Launch all kernels, with this number of coefficients."""
    values, places = torch.empty(x.shape[:2]), torch.empty(x.shape[:2], dtype=torch.int32)
    coefficients = (values,) * number
    pool(x, True)
    recalibrate(x, coefficients, x, True)
    sums(x, x, x, coefficients)
    input_gradient(x, x, coefficients, *(values,) * 3, places, values, places, values)


@pytest.mark.parametrize(
    ("compiled", "shape", "layout", "dtype"),
    [
        (HOPPER, (4, 64, 56, 56), torch.channels_last, torch.bfloat16),
        (HOPPER, (4, 64, 56, 56), torch.contiguous_format, torch.bfloat16),
        (HOPPER, (64, 32, 7, 7), torch.contiguous_format, torch.float32),
        (AMPERE, (4, 64, 8, 8), torch.channels_last, torch.float16),
        (AMPERE, (2, 3, 7, 7), torch.channels_last, torch.float64),
    ],
    indirect=["compiled"],
)
@pytest.mark.parametrize("number", [2, 4, 6])
def test_kernels_compile(compiled, shape, layout, dtype, number):
    launch_all(torch.empty(shape, dtype=dtype, memory_format=layout), number)
    assert len(compiled) >= 4
    for name, code in compiled.items():
        # A fixed seed repeats: no sum may depend on who comes first.
        assert "atom." not in code, name
        assert "red.global" not in code, name


@pytest.mark.parametrize("compiled", [HOPPER], indirect=True)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("number", [2, 6])
def test_maps_are_read_in_whole_vectors(compiled, layout, number):
    x = torch.empty((4, 64, 32, 32), dtype=torch.bfloat16, memory_format=layout)
    launch_all(x, number)
    loads = compiled["_pool_kernel"].count("ld.global.v4.b32")
    pool(x, False)  # with extrema, values at position 0 are loaded alone
    assert compiled["_pool_kernel"].count("ld.global.v4.b32") == loads
    for name in ("_pool_kernel", "_recalibrate_kernel", "_sums_kernel", "_input_gradient_kernel"):
        assert "ld.global.v4.b32" in compiled[name], name
        assert "ld.global.b16" not in compiled[name], name


@pytest.mark.parametrize("compiled", [HOPPER], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_short_maps_are_read_in_whole_vectors_and_each_by_one_lane(compiled, dtype):
    x = torch.empty((64, 128, 7, 7), dtype=dtype)
    pool(x, True)
    sums(x, x, x)
    assert compiled.keys() == {"_short_pool_kernel", "_short_sums_kernel"}
    for code in compiled.values():
        assert "ld.global.v4.b32" in code
        assert "ld.global.b" not in code
        assert "shfl" not in code


@pytest.mark.parametrize("compiled", [HOPPER], indirect=True)
def test_extrema_hand_nan_on(compiled):
    # The interpreter does in any case, a device only when told to.
    pool(torch.empty((64, 64, 32, 32), dtype=torch.bfloat16), True)
    assert "max.NaN.f32" in compiled["_pool_kernel"]
    assert "min.NaN.f32" in compiled["_pool_kernel"]


def test_maps_beyond_32_bits_are_addressed_in_64():
    # 2³¹ elements: too many for a test to hold, so the plan is checked, not the result.
    x = torch.empty((2048, 256, 64, 64), dtype=torch.bfloat16, device="meta")
    layout = triton_layout.layout_of(x)
    assert layout.maps * layout.positions == 2**31
    for plan in (triton_layout.reading(layout, 2), triton_layout.writing(layout)):
        assert plan.programs * plan.iterations * plan.block_l * plan.constants["BLOCK_M"] == 2**31
        assert plan.programs < 2**31
