"""The properties of a device that a plan depends on."""

from dataclasses import dataclass

import torch

from pipeline_local.errors import UserError


@dataclass(frozen=True)
class Device:
    """The device that a stage computes on.

    Attributes:
        type: torch's device type: cpu, cuda, ...; GPU kernels keep other tensors (fake_mode.py).
        memory: its bytes, where each rank has a device of its own; None where not known.
        workspaces: the bytes that its libraries keep for themselves once they have been used, such
            as cuBLAS for each thread; 0 where not known.
    """

    type: str = "cpu"
    memory: int | None = None
    workspaces: int = 0

    @classmethod
    def named(cls, type_: str) -> "Device":
        """Returns a device of a type that can be planned for on any host.

        Raises:
            UserError: the type is neither cpu nor cuda.
        """
        if type_ not in ("cpu", "cuda"):
            raise UserError(f"--device: cpu or cuda, got {type_}")
        return cls(type_)

    @classmethod
    def here(cls) -> "Device":
        """Returns this host's accelerator, if it has one, else its CPU."""
        found = torch.accelerator.current_accelerator(check_available=True)
        return cls("cpu" if found is None else found.type)
