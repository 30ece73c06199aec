"""Data of a program's own: whatever it is, its batches are a pure function of the step."""

import itertools
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from pipeline_local.data.given import given
from pipeline_local.data.given_batches import test_batches as batches_of_test
from pipeline_local.data.given_batches import train_batches
from pipeline_local.data.sampler import train_indices
from pipeline_local.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Noisy(Dataset):
    """x is the sample's number, and noise from all three global generators."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = [torch.rand(()).item(), random.random(), np.random.rand()]
        return torch.tensor([float(index), *noise]), index % 3


class Odd(Noisy):
    """From its sample 5 on, another shape."""

    def __getitem__(self, index):
        return torch.zeros(4 if index < 5 else 5), 0


def collate_twice(items):
    """Both inputs doubled, with noise."""
    xs, ys = zip(*items, strict=True)
    return torch.stack(xs) * 2 + torch.rand(1), torch.tensor(ys)


def load(data, start=0, count=6, seed=0, size=3):
    return list(train_batches(given(data), size, seed, start, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for pair in zip(left, right, strict=True):
        for one, other in zip(*pair, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


X, Y = torch.arange(20.0).view(10, 2), torch.arange(10, dtype=torch.int32)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X, Y.numpy()),
        TensorDataset(X, Y),
        list(zip(X, Y, strict=True)),
        list(zip(X.numpy(), Y.tolist(), strict=True)),
        Subset(TensorDataset(X, Y), range(10)),
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
        [{"x": a, "label": b} for a, b in zip(X, Y.tolist(), strict=True)],
    ],
)
def test_the_same_samples_give_the_same_batches(data):
    found = load(data)
    for step, (x, y) in enumerate(found):
        indices = [index for _, index in train_indices(10, 3, 0, step)]
        assert torch.equal(x, X[indices])
        assert (y.dtype, y.tolist()) == (torch.int64, indices)


@pytest.mark.parametrize("data", [Noisy(), DataLoader(Noisy(), 3, collate_fn=collate_twice)])
def test_randomness_is_a_function_of_seed_epoch_and_sample(data):
    whole = load(data)
    assert_same(load(data, 2, 4), whole[2:])
    taken = given(data)
    assert_same(list(train_batches(taken, 3, 0, 0, 6, workers=2)), whole)
    assert not torch.equal(load(data, seed=1)[0][0], whole[0][0])
    noise = [tuple(row[1:].tolist()) for x, _ in whole for row in x]
    assert len(set(noise)) == 18, "two epochs of the same samples differ"


def test_noise_does_not_depend_on_the_batch():
    def by_sample(size):
        batches = load(Noisy(), 0, 10 // size, size=size)
        return {int(row[0]): row.tolist() for x, _ in batches for row in x}

    assert by_sample(5) == by_sample(2)


@pytest.mark.parametrize("data", [Noisy(), DataLoader(Noisy(), 3, collate_fn=collate_twice)])
def test_the_callers_generators_are_left_alone(data):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    load(data)
    list(batches_of_test(given(data), 4))
    assert states() == before


def test_reading_for_a_test_is_always_the_same():
    first, again = (list(batches_of_test(given(Noisy()), size)) for size in (4, 5))
    assert torch.equal(torch.cat([x for x, _ in first])[:10], torch.cat([x for x, _ in again]))


@pytest.mark.parametrize(
    ("y", "filled"),
    [
        (torch.arange(10), lambda y: y == -100),
        (torch.ones(10), torch.isnan),
        (torch.ones(10, 4, dtype=torch.bool), torch.isnan),
        (torch.ones(10, 2, 3, dtype=torch.uint8), lambda y: y == -100),
    ],
    ids=["class", "value", "several labels", "map"],
)
@pytest.mark.parametrize("x", [torch.ones(10, 3, 4), torch.ones(10, 7, dtype=torch.int32)])
def test_the_last_test_batch_is_filled_up(x, y, filled):
    found = list(batches_of_test(given((x, y)), 4))
    assert [len(b) for b, _ in found] == [4, 4, 4]
    for a, b in found:
        assert (a.dtype, a.shape[1:], b.shape[1:]) == (x.dtype, x.shape[1:], y.shape[1:])
    last_x, last_y = found[-1]
    assert (last_x[:2] == 1).all()
    assert not last_x[2:].any()
    assert filled(last_y[2:]).all()
    assert not filled(torch.cat([b for _, b in found])[:10]).any()


def test_a_batch_of_one_sample_or_all():
    assert len(list(batches_of_test(given((X, Y)), 10))) == 1
    ((x, _),) = load((X[:1], Y[:1]), size=1, count=1)
    assert torch.equal(x, X[:1])
    with pytest.raises(UserError, match="must not exceed the 10 training samples: got 11"):
        load((X, Y), size=11)


def test_a_loader_brings_its_settings():
    taken = given(DataLoader(TensorDataset(X, Y), batch_size=4, num_workers=2, shuffle=True))
    assert (taken.batch_size, taken.workers, taken.shuffled) == (4, 2, True)
    plain = given((X, Y))
    assert (plain.batch_size, plain.workers, plain.shuffled) == (None, None, True)


def test_a_sequential_loader_stays_sequential():
    taken = given(DataLoader(TensorDataset(X, Y), batch_size=4))
    found = [y.tolist() for _, y in train_batches(taken, 4, 0, 1, 3)]
    assert found == [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_pil_images_and_masks():
    def sample(i):
        picture = np.full((4, 5, 3), 51 * i, np.uint8)
        return Image.fromarray(picture), Image.fromarray(picture[..., 0])

    (x, y), *_ = batches_of_test(given([sample(i) for i in range(3)]), 3)
    assert (x.dtype, x.shape, y.dtype, y.shape) == (
        torch.float32,
        (3, 3, 4, 5),
        torch.int64,
        (3, 4, 5),
    )
    assert torch.allclose(x[2], torch.tensor(0.4))
    assert (y[2] == 102).all()
    assert type(x) is torch.Tensor


def palette(**facts):
    """Two pixels: colour 1 of a palette, then colour 0."""
    image = Image.new("P", (2, 1))
    image.putpalette([51, 102, 153, 204, 255, 0])
    image.putpixel((0, 0), 1)
    image.info |= facts
    return image


RED_GREEN_BLUE = [[0.8, 0.2], [1.0, 0.4], [0.0, 0.6]]
SIXTEEN = np.array([[0x3333, 0xFFFF]], np.uint16)


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (palette(), RED_GREEN_BLUE),
        (palette(transparency=1), [*RED_GREEN_BLUE, [0.0, 1.0]]),
        (palette().convert("PA"), [*RED_GREEN_BLUE, [1.0, 1.0]]),
        (Image.fromarray(SIXTEEN), [[0.2, 1.0]]),
        (Image.frombytes("I;16B", (2, 1), SIXTEEN.astype(">u2").tobytes()), [[0.2, 1.0]]),
        (Image.fromarray(np.array([[51, 255]], np.uint8)), [[0.2, 1.0]]),
    ],
)
def test_an_image_is_the_colours_that_it_shows(image, levels):
    x, _ = given([(image, 0)]).samples[0]
    assert (x.dtype, type(x)) == (torch.float32, torch.Tensor)
    torch.testing.assert_close(x[:, 0], torch.tensor(levels))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_unknown_range_are_refused(dtype):
    with pytest.raises(UserError, match=r"8 or 16 bits: got 32 in mode [FI]; return an array"):
        given([(Image.fromarray(np.ones((3, 3), dtype)), 0)])


def test_a_mapped_file_is_read_by_parts(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same(load((mapped, Y)), load((X, Y)))


def test_the_form_says_what_comes():
    form = given((X.to(torch.bfloat16), torch.ones(10, 2, 3))).form
    assert (form.x_shape, form.x_dtype) == ((2,), torch.bfloat16)
    assert (form.y_shape, form.y_dtype) == ((2, 3), torch.float32)
    assert str(form) == "x [2] bfloat16, y [2, 3] float32"


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], 0)])


def lists_only(items):
    return [items]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "by index, so that any step can be resumed: got Stream; pass"),
        (DataLoader(Stream()), "by index, .*got Stream; pass"),
        ((x for x in [1]), "got generator; pass"),
        (3, "got int; pass"),
        ([], "data has no samples: got an empty list"),
        ((X[:0], Y[:0]), "data has no samples: got none"),
        ((X, Y[:9]), r"one entry per sample each: got \[10, 2\] and \[9\]"),
        ((X, torch.tensor(3)), r"got \[10, 2\] and \[\]"),
        ([(X[0], 1, 2)], r"must be a pair \(x, y\): got tuple of 3 from index 0"),
        ([X[0], X[1]], r"must be a pair \(x, y\): got Tensor from index 0"),
        ([("a cat", 1)], "tensors, arrays, numbers or images: got str; convert"),
        ((np.array(["a"]), np.array([1])), "tensors, arrays, numbers or images: got ndarray"),
        ([(X[0], 1), (X[0, 0], 1)], r"got x \[\] .* for sample 1, and x \[2\]"),
        ([(X[0], 1), (X[0], 1.0)], "got .* y .* float32 for sample 1, and .* int64 for the first"),
        ([{"a": X[0], "b": 1}], r"y: got a, b, .* none is label or .*; rename one, or pass pairs"),
        ([{"a": X[0], "label": 1}], "no column for x: got a, of which none is image or"),
        (DataLoader(Noisy(), sampler=WeightedRandomSampler([1.0] * 10, 10)), "got WeightedRandom"),
        (DataLoader(Noisy(), sampler=RandomSampler(Noisy(), replacement=True)), "got RandomSamp"),
        (DataLoader(Noisy(), batch_sampler=[[0, 1]]), "once: got list; pass a Dataset"),
        (DataLoader(Noisy(), collate_fn=lists_only), "collate_fn must give .* got list of 1 for 1"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line(data, message):
    with pytest.raises(UserError, match=message) as caught:
        given(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_later_sample_of_another_shape_is_named(workers):
    taken = given(Odd())
    with pytest.raises(UserError, match=r"got x \[5\] .* for sample [5-9], and x \[4\]") as caught:
        list(train_batches(taken, 5, 0, 0, 2, workers))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="for sample 5, and"):
        list(batches_of_test(taken, 3))


def test_a_loader_process_gets_what_cannot_be_imported():
    class Local(Noisy):
        """Nobody can import it."""

    here, there = (list(train_batches(given(Local()), 5, 0, 0, 2, workers)) for workers in (0, 1))
    assert all(map(torch.equal, itertools.chain(*here), itertools.chain(*there)))


def test_what_a_loader_process_cannot_get_is_said():
    data = Noisy()
    data.lock = threading.Lock()
    with pytest.raises(UserError, match=r"cannot be handed to loader processes: got .*lock"):
        next(train_batches(given(data), 5, 0, 0, 2, workers=1))
    assert len(load(data, count=2)) == 2


def test_a_hugging_face_data_set():
    import datasets

    pictures = [Image.fromarray(np.full((4, 5), 51 * i, np.uint8)) for i in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int8")})
    rows = {"image": pictures, "label": [0, 1, 2, 3, 4]}
    found = given(datasets.Dataset.from_dict(rows, features=features))
    (x, y), *_ = batches_of_test(found, 5)
    assert (x.shape, x.dtype, y.tolist()) == ((5, 1, 4, 5), torch.float32, [0, 1, 2, 3, 4])
    assert torch.allclose(x[4], torch.tensor(0.8))
    tokens = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "labels": [0, 1, 0, 1]})
    form = given(tokens).form
    assert (form.x_shape, form.x_dtype, form.y_shape) == ((3,), torch.int64, ())
    with pytest.raises(UserError, match="got IterableDataset; pass"):
        given(tokens.to_iterable_dataset())
