"""What a network is exported as. Every file is read again and compared before it has its name."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline_local.errors import UserError, first_line

WEIGHTS, PROGRAM, ONNX = ".safetensors", ".pt2", ".onnx"
SUFFIXES = (WEIGHTS, PROGRAM, ONNX)
"""The endings of exported files: weights, a program of torch.export, and ONNX."""

FORMATS = dict(zip(("safetensors", "torch_export", "onnx"), SUFFIXES, strict=True))
"""The names of the formats, for those who would rather name one than end a file with it."""

TOLERANCE = 1e-3
"""Of outputs, relative to the largest one: other kernels add up in another order."""

Run = Callable[[Tensor], Tensor]


def named(output: Path, name: str | None) -> Path:
    """Return the file in a format: with its ending, where it has none of another format.

    Args:
        output: as the user has named it.
        name: of `FORMATS`; None: what the ending says.

    Raises:
        UserError: the ending is another format's.
    """
    if name is None or output.suffix == FORMATS[name]:
        return output
    if output.suffix in SUFFIXES:
        raise UserError(
            f"--format: {name} files end in {FORMATS[name]}, got --output {output}; leave out one"
        )
    return output.with_name(output.name + FORMATS[name])


def check_libraries(output: Path) -> None:
    """Refuse ONNX where its libraries are missing.

    Raises:
        UserError: they are.
    """
    if output.suffix != ONNX:
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"--output: {output} needs {error.name}, which is missing;"
            ' pip install "pipeline-local[onnx]"'
        ) from None


def write_weights(state: Mapping[str, Tensor], metadata: dict[str, str], output: Path) -> None:
    """Write a state dict as safetensors, with metadata in the header.

    Raises:
        UserError: it cannot be written, or is not what was written.
    """
    copies = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    with _new(output) as path:
        path.touch()
        mode = path.stat().st_mode
        save_file(copies, path, metadata=metadata)
        path.chmod(mode)  # safetensors lets nobody else read its files
        found = load_file(path)
        if found.keys() != copies.keys() or not all(
            torch.equal(_bytes(found[name]), _bytes(value)) for name, value in copies.items()
        ):
            raise UserError(f"--output: {output} does not hold what was written; try another disk")


def write_program(
    network: nn.Module, example: Tensor, metadata: dict[str, str], output: Path
) -> None:
    """Write a network as a program, for batches of any size, and compare it on the CPU.

    Args:
        network: in evaluation mode.
        example: random inputs [B, ...] of at least two samples.
        metadata: is stored beside it.
        output: ends in .pt2 or .onnx.

    Raises:
        UserError: the network cannot be exported, the file cannot be written, or its outputs are
            others than those of the network.
    """
    write, read = (_write_pt2, _read_pt2) if output.suffix == PROGRAM else (_write_onnx, _read_onnx)
    with torch.no_grad(), warnings.catch_warnings(), _new(output) as path:
        warnings.simplefilter("ignore")  # of libraries about themselves
        try:
            write(network, example[:2], metadata, path)
            run = read(path)
            pairs = [(network(batch), run(batch)) for batch in (example, example[:1])]
        except OSError:
            raise
        except Exception as error:  # a network may do anything, and exporters raise anything
            reason = first_line(error)
            raise UserError(
                f"--output: this network cannot be exported as {output.suffix} ({reason}); take"
                f" {WEIGHTS}, or let it depend on no values, and on x.shape[0] instead of len(x)"
            ) from error
        for wanted, found in pairs:
            _compare(wanted, found, output)


@contextmanager
def _new(output: Path) -> Iterator[Path]:
    """A path beside the new file, which gets its name if all goes well, and is removed if not."""
    path = output.with_name(f".{output.stem}.partial-{os.getpid()}{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield path
        _give_name(path, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {output} cannot be written ({error}); name another") from None
    finally:
        path.unlink(missing_ok=True)


def _give_name(path: Path, output: Path) -> None:
    """Not to be overwritten is what another process may have written there meanwhile."""
    try:
        os.link(path, output)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.rename(output)


def _compare(wanted: Tensor, found: Tensor, output: Path) -> None:
    if found.shape != wanted.shape:
        shapes = f"{list(found.shape)} instead of {list(wanted.shape)}"
        raise UserError(f"--output: {output.suffix} gives outputs {shapes}; take {WEIGHTS}")
    worst, limit = (found - wanted).abs().max(), TOLERANCE * wanted.abs().max()
    if not worst <= limit:  # also what is not a number
        raise UserError(
            f"--output: {output.suffix} gives other outputs than the network: they differ by"
            f" {worst.item():.3g}, and may by {limit.item():.3g}; take {WEIGHTS}"
        )


def _any_batch() -> Any:  # noqa: ANN401 (as torch.export wants it)
    return ({0: torch.export.Dim("batch", min=1)},)


def _write_pt2(network: nn.Module, example: Tensor, metadata: dict[str, str], path: Path) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
    torch.export.save(program, path, extra_files=dict(metadata))


def _read_pt2(path: Path) -> Run:
    run: Run = torch.export.load(path).module()
    return run


def _write_onnx(network: nn.Module, example: Tensor, metadata: dict[str, str], path: Path) -> None:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=_any_batch(),
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    assert program is not None, "dynamo gives a program"
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def _bytes(value: Tensor) -> Tensor:
    """A tensor that equals another one where all bits are the same, NaN among them."""
    return value.reshape(-1).view(torch.uint8) if value.numel() else value
