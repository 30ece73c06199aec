"""Sealed files: not a bit can change, nor a byte be lost, without being noticed."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline_local.record import sealed
from pipeline_local.record.sealed import BrokenSealError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FACTS = {"step": "7"}


@pytest.fixture
def path(tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors = {"w": torch.randn(2, 3, generator=g), "step": torch.tensor(5.0), "n": torch.arange(2)}
    sealed.write(tmp_path / "a.safetensors", tensors, FACTS)
    return tmp_path / "a.safetensors"


def broken(path):
    try:
        sealed.verify(path)
    except BrokenSealError as error:
        return str(error)
    return None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (5, 1, 3)], ids=str)
def test_tensors_come_back_as_they_were(tmp_path, dtype, shape):
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "x": (torch.rand(shape) * 9).to(dtype)}
    path = tmp_path / "a.safetensors"
    sealed.write(path, tensors, FACTS)
    for found in (sealed.read(path), load_file(path)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert sealed.verify(path)["step"] == "7"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_read_is_aligned_as_if_it_had_been_computed(tmp_path):
    """Wherever it lies in the file: matrix products differ in the last bits otherwise."""
    path = tmp_path / "a.safetensors"
    for length in range(1, 20):
        sealed.write(path, {"a": torch.rand(length), "x": torch.rand(8, 8)}, FACTS)
        assert all(tensor.data_ptr() % 64 == 0 for tensor in sealed.read(path).values())


def test_every_flipped_bit_is_noticed(path):
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert broken(path), f"byte {position} of {len(data)}"
    path.write_bytes(data)
    assert broken(path) is None


def test_every_cut_is_noticed(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert broken(path), f"{length} of {len(data)} bytes"
    path.write_bytes(data + b" ")
    assert "does not match its checksum" in broken(path)


def test_a_file_of_zeros_is_noticed(path):
    """What a file system may leave after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))
    assert "no checksum" in broken(path)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    assert broken(tmp_path / "folder") == "cannot be read (Is a directory)"
    assert broken(tmp_path / "nothing") == "is missing"
    with pytest.raises(BrokenSealError, match="is missing"):
        sealed.read(tmp_path / "nothing")


def test_a_sealed_file_of_no_tensors_at_all(tmp_path):
    sealed.write(tmp_path / "a", {}, FACTS)
    assert sealed.read(tmp_path / "a") == {}


def test_the_order_of_the_tensors_leaves_no_trace(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.zeros(1, dtype=torch.int64)}
    sealed.write(tmp_path / "a", tensors, FACTS)
    sealed.write(tmp_path / "b", dict(reversed(tensors.items())), FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
