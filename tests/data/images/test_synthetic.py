import torch

from pipeline_local.data.images.synthetic import SyntheticDataset


def test_images_depend_on_split_and_index_alone():
    train, test = SyntheticDataset("train", 8), SyntheticDataset("test", 8)
    image, label = train[13]
    assert (image.shape, image.dtype, label) == ((3, 8, 8), torch.uint8, 3)
    assert torch.equal(image, SyntheticDataset("train", 8)[13][0])
    assert not torch.equal(image, train[23][0])
    assert not torch.equal(image, test[13][0])


def test_labels_agree_with_the_items():
    test = SyntheticDataset("test", 4)
    assert len(test) == 1024
    assert test.labels[:30].tolist() == [test[i][1] for i in range(30)]


def test_a_class_is_told_from_its_mean_image():
    train, test = SyntheticDataset("train", 16), SyntheticDataset("test", 16)
    samples = [train[i][0].float() for i in range(100)]
    means = torch.stack([torch.stack(samples[c::10]).mean(0) for c in range(10)])
    guesses = [(means - test[i][0]).square().sum((1, 2, 3)).argmin().item() for i in range(50)]
    assert guesses == test.labels[:50].tolist()


def test_any_size_is_possible():
    assert SyntheticDataset("train", 5)[0][0].shape == (3, 5, 5)
