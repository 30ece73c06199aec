"""Token files, byte by byte as others write them."""

import pickle
import struct

import numpy as np
import pytest

from pipeline_local.data.tokens import shards
from pipeline_local.data.tokens.shards import Shard, TokenStream, contents, open_shard
from pipeline_local.errors import UserError

IDS = [5, 0, 300, 65535, 7]


def llm_c(path, ids, magic=20240520, version=1, dtype="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())
    return path


def megatron(path, documents, dtype="<u2", code=8):
    """As `megatron.core.datasets.indexed_dataset` writes them."""
    path.write_bytes(b"".join(np.array(ids, dtype).tobytes() for ids in documents))
    lengths = [len(ids) for ids in documents]
    size = np.dtype(dtype).itemsize
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    index += np.array(lengths, "<i4").tobytes()
    index += (np.cumsum([0, *lengths])[:-1] * size).astype("<i8").tobytes()
    index += np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    path.with_suffix(".idx").write_bytes(index)
    return path


def test_nano_gpt(tmp_path):
    path = tmp_path / "train.bin"
    np.array(IDS, np.uint16).tofile(path)
    assert open_shard(path).ids().tolist() == IDS


def test_llm_c(tmp_path):
    assert open_shard(llm_c(tmp_path / "a.bin", IDS)).ids().tolist() == IDS
    large = [*IDS, 128_000]
    path = llm_c(tmp_path / "b.bin", large, 20240801, 7, "<u4")
    assert open_shard(path).ids().tolist() == large


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4), ("<i8", 5)])
def test_megatron(tmp_path, dtype, code):
    shard = open_shard(
        megatron(tmp_path / "a.bin", [[1, 2, 3], [], [4, 70000 % 65536]], dtype, code)
    )
    assert shard.ids().tolist() == [1, 2, 3, 4, 4464]


def test_a_stream_passes_the_borders_of_its_shards(tmp_path):
    whole = list(range(23))
    parts = [whole[:4], [], whole[4:5], whole[5:]]
    paths = [llm_c(tmp_path / f"{i}.bin", part) for i, part in enumerate(parts)]
    stream = TokenStream(tuple(map(open_shard, paths)))
    assert len(stream) == 23
    for start in range(24):
        for stop in range(start, 26):
            assert stream.read(start, stop).tolist() == whole[start:stop]
    assert stream.read(0, 3).dtype == np.int64
    assert len(pickle.dumps(stream)) < 2000, "loader processes get names, no ids"
    assert pickle.loads(pickle.dumps(stream)).read(3, 6).tolist() == [3, 4, 5]


def test_contents_are_of_all_ids_and_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", 2)
    paths = [llm_c(tmp_path / "a.bin", IDS), megatron(tmp_path / "b.bin", [[-3, 9]], "<i4", 4)]
    found = contents([open_shard(path) for path in paths])
    assert [(each.lowest, each.highest) for each in found] == [(0, 65535), (-3, 9)]
    scanned = []
    real = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda shard: scanned.append(shard) or real(shard))
    assert contents([open_shard(path) for path in paths]) == found
    assert not scanned
    llm_c(paths[0], [*IDS[:-1], 8, 9])
    shards.forget()
    changed = contents([open_shard(path) for path in paths])
    assert changed[0].digest != found[0].digest
    assert changed[1] == found[1]


def test_the_same_bytes_have_other_ids_in_another_dtype(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"\xff" * 4)
    for shard, highest in {Shard(path, "uint16", 2): 65535, Shard(path, "int32", 1): -1}.items():
        assert contents([shard])[0].highest == highest


def test_damaged_files_are_named(tmp_path):
    def refused(path, reason):
        with pytest.raises(UserError, match=reason) as caught:
            open_shard(path)
        assert str(path.with_suffix("")) in str(caught.value)

    path = tmp_path / "a.bin"
    path.write_bytes(b"123")
    refused(path, "3 bytes, where 1 ids of uint16 take 2")
    llm_c(path, IDS)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "1032 bytes, where 5 ids of uint16 take 1034")
    refused(llm_c(path, IDS, version=2), "version 2, and 1 is known")
    refused(megatron(path, [[1.0]], "<f4", 7), "no index of Megatron's")
    megatron(path, [[1, 2], [3]])
    path.write_bytes(bytes(4))
    refused(path, "4 bytes, where 3 ids")
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:36])
    with pytest.raises(UserError, match=r"a\.idx \(it is cut off\)"):
        open_shard(path)
    with pytest.raises(UserError, match="No such file"):
        open_shard(tmp_path / "none.bin")
