from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, Encoded, Encoding, collate, encode, load


def batches(part: Encoded, size: int = 4, **options: Any) -> list[dict[str, Any]]:
    return list(DataLoader(part, batch_size=size, collate_fn=collate, **options))


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[SEP]", "it", "is", "number", *map(str, range(20))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B", special_tokens=[("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def test_images_in_memory() -> None:
    task = load(DataSpec(), 0)
    first, *_, last = batches(encode(task.train, task), size=32)
    assert first["inputs"].shape == (32, 1, 8, 8)
    assert last["inputs"].shape == (8, 1, 8, 8)
    assert first["inputs"].dtype == torch.float32
    assert first["targets"].dtype == first["index"].dtype == torch.int64
    assert first["index"].tolist() == list(range(32))
    assert first["targets"].tolist() == task.train.targets[:32].tolist()
    assert torch.equal(first["inputs"], torch.from_numpy(task.train.inputs[:32]))


def test_the_index_follows_shuffling_and_subsets() -> None:
    task = load(DataSpec(), 0)
    part = encode(task.train, task, Encoding(flatten=True))
    subset = Subset(part, [7, 3, 9])
    (batch,) = DataLoader(subset, batch_size=3, collate_fn=collate)
    assert batch["index"].tolist() == [7, 3, 9]
    torch.manual_seed(0)
    for batch in batches(part, 50, shuffle=True):
        expected = torch.from_numpy(task.train.inputs[batch["index"].numpy()]).flatten(1)
        assert torch.equal(batch["inputs"], expected)
        assert batch["targets"].tolist() == task.train.targets[batch["index"]].tolist()


def test_normalization_channels_and_size() -> None:
    task = load(DataSpec(), 0)
    encoding = Encoding(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channels=3)
    plain = torch.from_numpy(task.train.inputs[:5])
    made = encode(task.train, task, encoding).__getitems__(range(5))["inputs"]
    assert made.shape == (5, 3, 8, 8)
    assert torch.allclose(made[:, 1], (plain[:, 0] - 0.4) / 0.2)
    larger = encode(task.train, task, Encoding(size=16, flatten=True))[0]["inputs"]
    assert larger.shape == (1, 256)
    asked = load(DataSpec(image_size=4), 0)
    assert encode(asked.train, asked, Encoding(size=16))[0]["inputs"].shape == (1, 1, 4, 4)


def test_files_are_decoded_resized_and_normalized(photos: Path) -> None:
    task = load(DataSpec(str(photos)), 0)
    plain = encode(task.train, task, Encoding(size=6))
    first = batches(plain)[0]["inputs"]
    assert first.shape == (4, 3, 6, 6)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    scaled = batches(encode(task.train, task, Encoding(size=6, mean=(0.5,), std=(0.25,))))[0]
    assert torch.allclose(scaled["inputs"], (first - 0.5) / 0.25)
    gray = encode(task.train, task, Encoding(size=6, channels=1, flatten=True))
    assert gray[0]["inputs"].shape == (1, 36)


def test_augmentation_changes_training_images_and_can_be_repeated(photos: Path) -> None:
    for data, encoding in ((str(photos), Encoding(size=8)), ("digits", Encoding())):
        task = load(DataSpec(data, augment="standard"), 0)
        plain = batches(encode(task.train, task, encoding))
        part = encode(task.train, task, encoding, augment=True)
        torch.manual_seed(1)
        one = batches(part)
        two = batches(part)
        torch.manual_seed(1)
        again = batches(part)
        assert one[0]["inputs"].shape == plain[0]["inputs"].shape
        assert not torch.equal(one[0]["inputs"], plain[0]["inputs"])
        assert not torch.equal(one[0]["inputs"], two[0]["inputs"])
        for first, second in zip(one, again, strict=True):
            assert torch.equal(first["inputs"], second["inputs"])
            assert 0 <= first["inputs"].min() <= first["inputs"].max() <= 1
        assert torch.equal(one[0]["targets"], plain[0]["targets"])


def test_augmentation_resumes_from_the_state_of_the_generator() -> None:
    task = load(DataSpec(augment="standard"), 0)
    part = encode(task.train, task, augment=True)
    torch.manual_seed(5)
    part.__getitems__(range(10))
    state = torch.get_rng_state()
    expected = part.__getitems__(range(10, 20))["inputs"]
    torch.set_rng_state(state)
    fresh = encode(task.train, task, augment=True)
    assert torch.equal(fresh.__getitems__(range(10, 20))["inputs"], expected)


def test_augmentation_is_off_unless_asked_for_twice() -> None:
    task, plain = load(DataSpec(augment="standard"), 0), load(DataSpec(), 0)
    inputs = torch.from_numpy(task.test.inputs)
    assert torch.equal(batches(encode(task.test, task), 797)[0]["inputs"], inputs)
    unasked = encode(plain.train, plain, augment=True)
    assert torch.equal(batches(unasked, 200)[0]["inputs"], torch.from_numpy(plain.train.inputs))


def test_texts_are_padded_to_the_longest_of_the_batch(reviews: Path, tokenizer: Any) -> None:
    task = load(DataSpec(str(reviews)), 0)
    encoding = Encoding(tokenizer=tokenizer)
    batch = batches(encode(task.train, task, encoding))[0]
    assert set(batch["inputs"]) == {"input_ids", "attention_mask"}
    assert batch["inputs"]["input_ids"].shape == (4, 5)
    assert batch["inputs"]["input_ids"].dtype == torch.int64
    assert batch["targets"].shape == batch["index"].shape == (4,)
    short = load(DataSpec(str(reviews), max_length=3), 0)
    assert encode(short.train, short, encoding)[0]["inputs"]["input_ids"].shape == (1, 3)


def test_pairs_of_texts(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\n" + "it is,number,0\nit,is number 3,1\n" * 10)
    task = load(DataSpec(str(path), text_column="a,b"), 0)
    ids = batches(encode(task.train, task, Encoding(tokenizer=tokenizer)))[0]["inputs"]["input_ids"]
    assert (ids == 2).sum(dim=1).tolist() == [1, 1, 1, 1]


def test_an_empty_part_has_no_batches(reviews: Path, tokenizer: Any) -> None:
    task = load(DataSpec(str(reviews), validation_fraction=0.0), 0)
    assert batches(encode(task.validation, task, Encoding(tokenizer=tokenizer))) == []


def test_vectors(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("a,b,label\n" + "1,2,0\n3,5,1\n" * 10)
    task = load(DataSpec(str(path)), 0)
    batch = batches(encode(task.train, task))[0]
    assert batch["inputs"].shape == (4, 2)
    assert batch["inputs"].dtype == torch.float32


def test_worker_processes_and_pickling(photos: Path) -> None:
    task = load(DataSpec(str(photos), augment="standard"), 0)
    part = encode(task.train, task, Encoding(size=8), augment=True)
    assert len(pickle.loads(pickle.dumps(part))) == len(part)
    part = encode(task.train, task, Encoding(size=8))
    here, there = batches(part), batches(part, num_workers=1)
    assert torch.equal(here[0]["inputs"], there[0]["inputs"])


def test_an_encoding_from_an_image_processor() -> None:
    processor = SimpleNamespace(
        image_mean=[0.5] * 3, image_std=[0.2] * 3, size={"shortest_edge": 256}, crop_size=None
    )
    made = Encoding.from_image_processor(processor)
    assert (made.mean, made.std, made.size, made.channels) == ((0.5,) * 3, (0.2,) * 3, 256, 3)
    cropped = SimpleNamespace(do_normalize=False, image_mean=[0.5] * 3, crop_size={"height": 224})
    assert Encoding.from_image_processor(cropped).mean is None
    assert Encoding.from_image_processor(cropped).size == 224


def test_what_a_model_must_bring(reviews: Path, tokenizer: Any) -> None:
    task = load(DataSpec(str(reviews)), 0)
    with pytest.raises(InputError, match="texts need a tokenizer"):
        encode(task.train, task)
    tokenizer.pad_token = None
    with pytest.raises(InputError, match=r"no padding token: set tokenizer.pad_token"):
        encode(task.train, task, Encoding(tokenizer=tokenizer))


def test_encodings_that_do_not_fit(photos: Path, draw: Callable[..., Path]) -> None:
    digits = load(DataSpec(), 0)
    for encoding, message in (
        (Encoding(mean=(0.5,)), "a mean needs a std"),
        (Encoding(mean=(0.5,), std=(0.0,)), "must be positive"),
        (Encoding(mean=(0.5, 0.5), std=(1.0, 1.0)), "2 means for 1 channels"),
    ):
        with pytest.raises(InputError, match=message):
            encode(digits.train, digits, encoding)[0]
    draw(photos / "cat" / "0.png", size=(40, 30))
    task = load(DataSpec(str(photos), augment="standard"), 0)
    with pytest.raises(InputError, match=r"augmented images need a size: .*--image-size"):
        encode(task.train, task, augment=True)
    whole = DataSpec(str(photos), test_fraction=0.05, validation_fraction=0.0)
    mixed = next(
        part
        for part in (load(whole, seed).train for seed in range(9))
        if photos / "cat" / "0.png" in part.inputs
    )
    with pytest.raises(InputError, match=r"differ in size \(10 x 12 and 30 x 40 pixels\)"):
        encode(mixed, task).__getitems__(range(len(mixed)))
    with pytest.raises(InputError, match="takes 4 channels and the images have 3"):
        encode(task.train, task, Encoding(size=8, channels=4))[0]


def test_an_image_lost_during_the_run(photos: Path) -> None:
    task = load(DataSpec(str(photos)), 0)
    part = encode(task.train, task, Encoding(size=8))
    Path(str(task.train.inputs[0])).unlink()
    with pytest.raises(InputError, match=r"cannot be read any more .*: bring the file back"):
        part[0]
