"""The writer: training goes on, one write at a time, and no failure is lost."""

import threading

import pytest
import torch
from test_checkpoint import make, save, state, step

from pipeline_local.errors import UserError
from pipeline_local.record import sealed
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.writer import Writer


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", 1)


@pytest.fixture
def writer(checkpoints):
    writer = Writer(checkpoints, keep=2)
    yield writer
    writer.close()


@pytest.fixture
def gate(monkeypatch):
    """Lets no write begin before it is set."""
    gate, write = threading.Event(), sealed.write

    def gated(*args):
        assert gate.wait(60)
        write(*args)

    monkeypatch.setattr(sealed, "write", gated)
    yield gate
    gate.set()


def test_training_goes_on_and_what_is_written_is_of_the_step(writer, checkpoints, gate):
    module = make(0)
    step(module, 0)
    expected = {name: value.clone() for name, value in state(module).items()}
    writer.save([module], 1)
    step(module, 1)  # while nothing has been written yet
    writer.check()
    assert checkpoints.latest() is None
    gate.set()
    writer.wait()
    assert checkpoints.latest() == 1
    restored = make(0, seed=9)
    checkpoints.load(restored, 1)
    assert expected.keys() == state(restored).keys()
    assert all(torch.equal(expected[name], value) for name, value in state(restored).items())
    assert not torch.equal(expected["head.weight"], module.head.weight)


def test_at_most_one_write_is_under_way(writer, checkpoints, gate):
    module = make(0)
    writer.save([module], 1)
    second = threading.Thread(target=writer.save, args=([module], 2))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the second save has not waited for the first write"
    gate.set()
    second.join(60)
    writer.wait()
    assert checkpoints.latest() == 2
    assert checkpoints.problems(1) == {}


def test_closing_waits_for_the_last_write(checkpoints):
    writer = Writer(checkpoints, keep=2)
    writer.save([make(0)], 5)
    writer.close()
    writer.close()
    assert checkpoints.latest() == 5


def test_the_bytes_are_those_of_a_plain_save(writer, checkpoints, tmp_path):
    module = make(0)
    step(module, 0)
    writer.save([module], 1)
    writer.wait()
    plain = Checkpoints(tmp_path / "plain", 1)
    save(plain, [module], 1)
    name = "step-00000001/module-001.safetensors"
    assert (plain.folder / name).read_bytes() == (checkpoints.folder / name).read_bytes()


def fails(writer):
    """In the background: how the failure is told at the next step, and only once."""
    writer._writing.exception(60)
    with pytest.raises(UserError) as caught:
        writer.check()
    writer.check()
    return str(caught.value)


def test_a_folder_that_cannot_be_written_is_told_at_the_next_step(writer, checkpoints):
    writer.save([make(0)], 1)
    writer.wait()
    (checkpoints.folder / "step-00000002").write_text("in the way")
    writer.save([make(0)], 2)
    message = fails(writer)
    assert "step-00000002 cannot be written (File exists); earlier ones are complete" in message
    assert message.endswith("then resume the run")
    assert checkpoints.latest(lambda line: None) == 1


def test_a_full_disk_is_told_at_the_next_save(writer, checkpoints, monkeypatch):
    writer.save([make(0)], 1)
    writer.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed.os, "fsync", full)
    writer.save([make(0)], 2)
    with pytest.raises(UserError, match="No space left on device"):
        writer.save([make(0)], 3)
    assert checkpoints.latest(lambda line: None) == 1
    assert not list(checkpoints.folder.glob("*/*.partial"))


def test_the_stage_of_the_last_module_prunes_once_all_modules_are_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    first, last = Writer(checkpoints, keep=1), Writer(checkpoints, keep=1)
    for number in (1, 2):
        last.save([make(1)], number)
        last.wait()
        first.save([make(0)], number)
        first.wait()
    assert len(list(tmp_path.iterdir())) == 2, "step 2 was not complete when the last stage looked"
    last.save([make(1)], 3)
    last.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    first.close()
    last.close()
