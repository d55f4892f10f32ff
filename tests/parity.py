"""The one tolerance rule: not worse than PyTorch at the same precision."""

import torch
from torch import Tensor


def assert_parity(
    actual: Tensor, naive: Tensor, truth: Tensor, what: str = "value", ulps: int = 4
) -> None:
    """Check |actual − truth| <= 2·|naive − truth| + 4 ulp, in the largest element.

    Args:
        actual: the result under test.
        naive: the same by separate PyTorch operations at the same precision.
        truth: the same in float64.
        what: how the message calls it.
        ulps: the 4 of the rule; more only where the machine under test rounds otherwise.
    """
    assert actual.shape == truth.shape, f"{what}: {tuple(actual.shape)} for {tuple(truth.shape)}"
    if not truth.numel():
        return
    ulp = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    error = (actual.double() - truth).abs().max().item()
    allowed = 2 * (naive.double() - truth).abs().max().item() + ulps * ulp
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"
