"""Randomness as a pure function: no state of a generator is ever saved or shared.

Initial weights are drawn from (seed, block), dropout from (seed, module, step), the data order from
(seed, epoch), augmentation from (seed, epoch, sample). So no placement, worker count or resume
changes a result.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """Returns a 63-bit seed for one use of randomness, which `path` names.

    Stable across processes, machines and Python versions.
    """
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Returns a new CPU generator, seeded by `derive`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def reseed(device: torch.device, seed: int, *path: str | int) -> None:
    """Seeds the global generators that code on `device` draws from, by `derive`: torch's, Python's
    and NumPy's.

    It costs about a tenth of torch.manual_seed, which seeds every backend.
    """
    value = derive(seed, *path)
    seed_generators(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def seed_generators(value: int) -> None:
    """Seeds torch's, Python's and NumPy's global generators on the CPU."""
    torch.default_generator.manual_seed(value)
    seed_host(value)


def branch() -> int:
    """Begins a new stream of Python's and NumPy's global generators, which `seed_host` can repeat.

    Returns:
        Its seed, which is drawn from the stream before.
    """
    value = random.getrandbits(32)
    seed_host(value)
    return value


def seed_host(value: int) -> None:
    """Seeds Python's and NumPy's global generators."""
    random.seed(value)
    np.random.seed(value % 2**32)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the three global generators on the CPU back at the end, as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
