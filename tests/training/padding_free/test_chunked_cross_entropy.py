"""The loss from the hidden states of labelled tokens is, with its gradients, that of all logits at once."""

import pytest
import torch
from torch.nn import functional

from tuneport.training.padding_free import chunked_cross_entropy
from tuneport.training.padding_free.chunked_cross_entropy import Head, losses, summed_loss

TOKENS, SIZE, WORDS = 23, 8, 40


def plain(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    logits = head.linear(hidden) * head.factor
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def inputs(bias: bool) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Linear(SIZE, WORDS, bias=bias), torch.randn(TOKENS, SIZE), torch.randint(0, WORDS, (TOKENS,))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("held", [1, WORDS * 5, WORDS * 1000])
@pytest.mark.parametrize(("factor", "cap", "bias"), [(1.0, None, False), (0.5, 2.0, True), (3.0, None, True)])
def test_the_sum_and_its_gradients_are_exact_whatever_the_size_of_a_chunk(
    *, smoothing: float, held: int, factor: float, cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_cross_entropy, "LOGITS_ELSEWHERE", held)
    linear, hidden, targets = inputs(bias)
    head = Head(linear=linear, factor=factor, cap=cap)
    found = []
    for compute in (
        lambda states: functional.cross_entropy(
            plain(head, states), targets, reduction="sum", label_smoothing=smoothing
        ),
        lambda states: summed_loss(head, states, targets, smoothing),
    ):
        states = hidden.clone().requires_grad_()
        linear.zero_grad()
        loss = compute(states)
        (loss * 0.37).backward()
        found.append([loss.detach(), states.grad, *(p.grad.clone() for p in linear.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_its_memory_is_not_taken() -> None:
    linear, hidden, targets = inputs(bias=False)
    linear.requires_grad_(False)
    states = hidden.requires_grad_()
    loss = summed_loss(Head(linear=linear), states, targets)
    assert loss.grad_fn.gradients[1] is None  # type: ignore[union-attr]
    loss.backward()
    assert linear.weight.grad is None and states.grad is not None


def test_in_bfloat16_gradients_are_as_near_as_those_of_the_plain_loss() -> None:
    linear, hidden, targets = inputs(bias=True)
    head, exact, found = Head(linear=linear), hidden.clone().requires_grad_(), []
    functional.cross_entropy(linear(exact), targets, reduction="sum").backward()
    for compute in (
        lambda states: functional.cross_entropy(linear(states).float(), targets, reduction="sum"),
        lambda states: summed_loss(head, states, targets),
    ):
        states = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute(states)
        loss.backward()
        found.append(float((states.grad - exact.grad).norm() / exact.grad.norm()))  # type: ignore[operator, union-attr]
    assert found[1] < 1.5 * found[0] and found[1] < 0.02


def test_losses_and_first_choices_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_cross_entropy, "LOGITS_ELSEWHERE", WORDS * 5)
    linear, hidden, targets = inputs(bias=True)
    targets[::2] = linear(hidden).argmax(-1)[::2]
    head = Head(linear=linear, cap=3.0)
    found, logits = losses(head, hidden, targets), plain(head, hidden)
    assert torch.allclose(found[:, 0], functional.cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    assert torch.equal(found[:, 1], (logits.argmax(-1) == targets).float()) and 0 < found[:, 1].mean() < 1


def test_logits_of_a_batch_are_never_in_memory() -> None:
    """The largest tensor that is made holds the logits of a chunk, or the head's gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            output = func(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                self.numbers = max(self.numbers, output.numel())
            return output

    words, tokens = 30_000, 4000
    linear = torch.nn.Linear(16, words, bias=False)
    hidden, targets = torch.randn(tokens, 16, requires_grad=True), torch.randint(0, words, (tokens,))
    with Largest() as largest:
        summed_loss(Head(linear=linear), hidden, targets).backward()
    assert 0 < largest.numbers <= chunked_cross_entropy.LOGITS_ELSEWHERE < words * tokens / 5
