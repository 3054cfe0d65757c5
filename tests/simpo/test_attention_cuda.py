"""The one-call CUDA path, with a stand-in for its kernel: gathering, alignment, windows, and the test before use."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from simpo.attention_cuda import HeadShape, VarlenLayout, adapted, fault_of, usable_kernel, varlen_attention
from simpo.attention_windows import window_tiles, windowed_attention
from simpo.packing import PairStore, Segment
from tests.simpo import varlen_double

pytestmark = pytest.mark.quick
Build = Callable[..., Any]
CPU = torch.device("cpu")
SHAPE = HeadShape(heads=4, kv_heads=2, width=8, dtype=torch.float32, window=False)
VERSIONS = [  # the last one has no sliding window
    *((version, width) for version in (varlen_double.varlen_attn, varlen_double.without_groups) for width in (None, 4)),
    (varlen_double.of_torch_2_10, None),
]


def kernel_of(function: Any) -> Any:
    kernel = adapted(function)
    assert kernel is not None
    return kernel


@pytest.mark.parametrize(("version", "window"), VERSIONS)
def test_it_equals_explicit_products_with_all_gradients(random_pairs: Build, version: Any, window: int | None) -> None:
    segments = PairStore.of(random_pairs(5)).micro_batch(range(5)).segments
    tokens = segments[-1].start + sum(segments[-1][1:])
    torch.manual_seed(0)
    inputs = [torch.randn(heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
    grad = torch.randn(tokens, 4, 8)
    one = varlen_attention(*inputs, VarlenLayout(segments, CPU), 0.3, window, kernel_of(version))
    two = windowed_attention(*inputs, window_tiles(segments, window, CPU), 0.3, None)
    assert torch.allclose(one, two, atol=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, grad) for out in (one, two)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_tables_of_two_pairs() -> None:
    layout = VarlenLayout((Segment(0, 2, 1, 2), Segment(5, 1, 1, 0)), CPU)
    assert layout.rows_K.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6]
    assert layout.query_ends.tolist() == [0, 3, 5, 7]
    assert layout.key_ends.tolist() == [0, 3, 7, 9]
    assert layout.first_T.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert layout.again_R2.tolist() == [[0, 3], [1, 4]]
    assert (layout.longest_query, layout.longest_key) == (3, 4)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_passes(dtype: torch.dtype, window: bool) -> None:
    shape = HeadShape(heads=4, kv_heads=1, width=16, dtype=dtype, window=window)
    assert fault_of(kernel_of(varlen_double.varlen_attn), shape, CPU) == ""


def test_the_test_runs_within_any_forward() -> None:
    kernel = kernel_of(varlen_double.varlen_attn)
    with torch.no_grad():
        assert fault_of(kernel, SHAPE, CPU) == ""
    with torch.inference_mode():
        assert fault_of(kernel, SHAPE, CPU) == ""
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        if not seen:  # the first forward alone, as a cached test is
            seen.append(fault_of(kernel, SHAPE, CPU))
        return x.sin().exp()

    x = torch.randn(3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert seen == [""]


def test_a_wrong_kernel_is_found_out() -> None:
    wrong = functools.wraps(varlen_double.varlen_attn)(varlen_double.top_left)
    assert "is off by" in fault_of(kernel_of(wrong), SHAPE, CPU)
    one_key_more = functools.wraps(varlen_double.varlen_attn)(
        lambda *given, window_size, **options: varlen_double.varlen_attn(
            *given, window_size=(window_size[0] + 1, 0), **options
        )
    )
    windowed = HeadShape(heads=4, kv_heads=2, width=8, dtype=torch.float32, window=True)
    assert "is off by" in fault_of(kernel_of(one_key_more), windowed, CPU)
    assert "no kernel image" in fault_of(kernel_of(varlen_double.broken), SHAPE, CPU)
    assert "no sliding window" in fault_of(kernel_of(varlen_double.of_torch_2_10), windowed, CPU)
    assert adapted(lambda query, key, value: query) is None


def test_torchs_own_kernel_is_not_used_where_it_does_not_run() -> None:
    assert usable_kernel(SHAPE, CPU) is None
