"""Randomness as a pure function: nothing random is ever saved, shared or left over.

Initial weights are drawn from (seed, block), dropout from (seed, module, step), the data order from
(seed, epoch), augmentation from (seed, epoch, sample). So no placement, worker count or resume
changes a result.
"""

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one use of randomness, named by its path.

    Stable across processes, machines and Python versions.
    """
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A fresh CPU generator, seeded by `derive`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def reseed(device: torch.device, seed: int, *path: str | int) -> None:
    """Seed the global generators that operations on `device` draw from, by `derive`.

    torch.manual_seed visits every backend there is, at some twenty times the cost.
    """
    value = derive(seed, *path)
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
