"""The idle time of pipelines in theory, to stand beside what is measured.

Each rank has the same work, in pieces: for one microbatch the forward pass, the gradients of inputs
and the gradients of weights of each half of its blocks, six pieces that take equally long. Messages
take no time, and steps follow one another without a barrier. tests/bench/test_bubbles.py compares
these formulas with the orders of work of the installed torch and DeepSpeed.
"""

from collections.abc import Callable

PIECES = 6
"""Pieces of a rank's work on one microbatch."""

IDLE: dict[str, Callable[[int, int], int]] = {
    "gpipe": lambda p, m: 6 * (p - 1),
    "1f1b": lambda p, m: 6 * (p - 1),
    "interleaved": lambda p, m: 3 * (p - 1),
    "zerobubble": lambda p, m: p - 1,
    "zbv": lambda p, m: 2 * max(0, 2 * p - 1 - m),
    "dualpipev": lambda p, m: 2 * (p - 1),
    "deepspeed": lambda p, m: 6 * (p - 1),
    "deepspeed-dualpipev": lambda p, m: 5 * (p - 1) - 1,
}
"""Pieces for which each of p ranks is idle in a step of m microbatches.

gpipe, 1f1b, deepspeed, interleaved: Narayanan et al., 2021 (arXiv 2104.04473). zerobubble: ZB-H1
(Qi et al., 2024, arXiv 2401.10241), with two stages per rank. zbv: ZB-V, from the same paper: none
with 2p - 1 microbatches; with fewer, counted from torch's order. dualpipev: (p - 1) (F&B + B - 3W),
by the table of github.com/deepseek-ai/DualPipe, where p is half of its stages PP, and forward and
backward overlap in communication alone. deepspeed-dualpipev: counted from DeepSpeed's order, which
does not defer gradients of weights: (p - 1) (F&B + B), less one forward pass.
"""


def bubble(name: str, ranks: int, microbatches: int) -> float | None:
    """Return the theoretical idle fraction of a rank; None for methods without a pipeline."""
    if name not in IDLE:
        return None
    idle = IDLE[name](ranks, microbatches)
    return idle / (PIECES * microbatches + idle)
