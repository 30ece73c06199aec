"""Randomness as a pure function: no state of a generator is ever saved or shared.

Initial weights are drawn from (seed, block), dropout from (seed, module, step), the data order from
(seed, epoch), augmentation from (seed, epoch, sample). So no placement, worker count or resume
changes a result.
"""

import hashlib

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
    """Seeds the global generators that operations on `device` draw from, by `derive`.

    It costs about a twentieth of torch.manual_seed, which seeds every backend.
    """
    value = derive(seed, *path)
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
