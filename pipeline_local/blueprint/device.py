"""A device, as far as a plan depends on it."""

from dataclasses import dataclass

import torch

from pipeline_local.errors import UserError


@dataclass(frozen=True)
class Device:
    """What a stage computes on.

    Attributes:
        type: torch's name of it: cpu, cuda, ...; a GPU's kernels keep other tensors (fake_mode.py).
        memory: bytes that it has, where its ranks share it with nobody; None where nobody says.
        workspaces: bytes that its libraries keep for themselves once they have worked, such as
            cuBLAS for each thread that has asked it for something; 0 where nobody says.
    """

    type: str = "cpu"
    memory: int | None = None
    workspaces: int = 0

    @classmethod
    def named(cls, type_: str) -> "Device":
        """One of a type that can be planned for from anywhere.

        Raises:
            UserError: it is neither cpu nor cuda.
        """
        if type_ not in ("cpu", "cuda"):
            raise UserError(f"--device: cpu or cuda, got {type_}")
        return cls(type_)

    @classmethod
    def here(cls) -> "Device":
        """This host's accelerator, if it has one, else its CPU."""
        found = torch.accelerator.current_accelerator(check_available=True)
        return cls("cpu" if found is None else found.type)
