"""Data of several domains: read, left out, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from flatminima.errors import InputError
from flatminima.training.data.encode import encode
from flatminima.training.data.load import domains_of, load
from flatminima.training.data.rotated_digits import ANGLES, turned
from flatminima.training.data.spec import DataSpec
from flatminima.training.recipe import Recipe

SITES = ("north", "south", "west")


def table(path, rows=24, sites=SITES, classes=2):
    lines = ["x1,x2,label,site"]
    for row in range(rows):
        site = sites[row % len(sites)]
        lines.append(f"{row},{row % 5},{(row // len(sites)) % classes},{site}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def shown(dataset, part):
    return {dataset.domains[i] for i in np.unique(part.domains)}


def test_a_column_of_a_table_names_the_domains_and_is_no_feature(tmp_path):
    data = table(tmp_path / "t.csv")
    found = load(DataSpec(data=data, domain_column="site"), 0)
    assert found.domains == SITES
    assert found.train.inputs.shape[1] == 2
    rows = [row for part in (found.train, found.validation, found.test) for row in part.domains]
    assert np.bincount(rows).tolist() == [8, 8, 8]


def test_each_row_keeps_its_domain(tmp_path):
    lines = ["text,label,site"] + [
        f"from {SITES[i % 3]},{(i // 3) % 2},{SITES[i % 3]}" for i in range(30)
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    spec = DataSpec(data=str(tmp_path / "t.csv"), domain_column="site", train_size=10)
    found = load(spec, 0)
    for part in (found.train, found.validation, found.test):
        for text, place in zip(part.inputs, part.domains, strict=True):
            assert text == f"from {found.domains[place]}"


def test_a_left_out_domain_is_all_of_the_test_set_and_none_of_the_rest(tmp_path):
    spec = DataSpec(data=table(tmp_path / "t.csv"), domain_column="site", test_domain="south")
    found = load(spec, 0)
    assert shown(found, found.test) == {"south"}
    assert len(found.test) == 8
    assert shown(found, found.train) | shown(found, found.validation) == {"north", "west"}
    assert len(found.train) + len(found.validation) == 16
    assert found.report["test"]["per_domain"] == {"north": 0, "south": 8, "west": 0}
    assert "domain south" in found.report["test"]["origin"]


def test_splits_of_the_source_are_pooled_but_for_validation(tmp_path):
    for split, rows in (("train", 24), ("validation", 12), ("test", 6)):
        table(tmp_path / f"{split}.csv", rows)
    spec = DataSpec(data=str(tmp_path), domain_column="site", test_domain="west")
    found = load(spec, 0)
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 8, 14)
    assert shown(found, found.validation) == {"north", "south"}


def test_numbers_are_names_too(tmp_path):
    data = table(tmp_path / "t.csv", sites=("10", "9", "2"))
    spec = DataSpec(data=data, domain_column="site")
    assert domains_of(spec, 0) == ("2", "9", "10")
    recipe = Recipe.from_flat({"data": data, "domain_column": "site", "test_domain": 9})
    found = load(recipe.data, 0)
    assert shown(found, found.test) == {"9"}


@pytest.fixture
def folders(tmp_path):
    numbers = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for label in ("cat", "dog"):
            (tmp_path / domain / label).mkdir(parents=True)
            for i in range(6):
                pixels = numbers.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / label / f"{i}.png")
    return tmp_path


def test_folders_of_domains_hold_folders_of_classes(folders):
    spec = DataSpec(data=str(folders), domain_folders=True, test_domain="sketch")
    found = load(spec, 0)
    assert found.domains == ("photo", "sketch")
    assert found.classes == ("cat", "dog")
    assert {path.parent.parent.name for path in found.test.inputs} == {"sketch"}
    assert {path.parent.parent.name for path in found.train.inputs} == {"photo"}
    for path, label in zip(found.test.inputs, found.test.targets, strict=True):
        assert path.parent.name == found.classes[label]


def test_without_the_flag_the_upper_folders_are_the_classes(folders):
    assert load(DataSpec(data=str(folders)), 0).classes == ("photo", "sketch")


def test_hub_data_may_name_their_domains(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": [f"word {i}" for i in range(24)],
        "label": [i % 2 for i in range(24)],
        "site": [(i // 2) % 3 for i in range(24)],
    }
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "site": datasets.ClassLabel(names=list(SITES)),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    spec = DataSpec(data=str(tmp_path / "saved"), domain_column="site", test_domain="north")
    found = load(spec, 0)
    assert found.domains == SITES
    assert shown(found, found.test) == {"north"}


def test_batches_carry_the_domain(tmp_path):
    found = load(DataSpec(data=table(tmp_path / "t.csv"), domain_column="site"), 0)
    batch = encode(found.train, found)[3]
    assert batch["domain"].tolist() == [found.train.domains[3]]


def test_two_bits_are_what_they_say():
    found = load(DataSpec(data="two-bits(samples=20000;noise=0)"), 0)
    assert found.domains == ("0.2", "0.1", "0.9")
    for part, rates in ((found.train, {0: 0.2, 1: 0.1}), (found.test, {2: 0.9})):
        assert set(np.unique(part.domains)) == set(rates)
        said = part.inputs > 0
        for place, rate in rates.items():
            of = part.domains == place
            wrong = (said[of] != part.targets[of, None]).mean(0)
            assert wrong == pytest.approx([0.25, rate], abs=0.015)
    again = load(DataSpec(data="two-bits(samples=20000;noise=0)"), 0)
    assert np.array_equal(again.train.inputs, found.train.inputs)
    other = load(DataSpec(data="two-bits", test_domain="0.1"), 0)
    assert shown(other, other.train) == {"0.2", "0.9"}


def test_digits_are_turned_by_the_angle_of_their_domain():
    found = load(DataSpec(data="rotated-digits", test_domain="75"), 0)
    assert shown(found, found.test) == {"75"}
    sizes = found.report["train"]["per_domain"]
    assert sizes["75"] == 0
    assert set(sorted(sizes.values())[1:]) == {299, 300}
    one = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(turned(one, 90), np.rot90(one, axes=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(turned(one, 0), one, atol=1e-6)
    assert found.domains == tuple(str(angle) for angle in ANGLES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"test_domain": "norht"}, "did you mean 'north'"),
        ({"domain_column": "sight"}, "did you mean 'site'"),
        ({"domain_column": "label", "label_column": "label"}, "for something else"),
        (
            {"domain_column": None, "text_column": "site", "test_domain": "north"},
            "has none: take rotated-digits or two-bits, .* --domain-column",
        ),
        ({"domain_folders": True}, "leave one out"),
        (
            {"domain_column": None, "text_column": "site", "domain_folders": True},
            "is for folders of images",
        ),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, given, words):
    data = table(tmp_path / "t.csv")
    with pytest.raises(InputError, match=words):
        load(DataSpec(**{"data": data, "domain_column": "site", **given}), 0)


def test_a_single_domain_is_refused(tmp_path, folders):
    spec = DataSpec(data=table(tmp_path / "t.csv", sites=("north",)), domain_column="site")
    with pytest.raises(InputError, match="single domain 'north'"):
        load(spec, 0)
    with pytest.raises(InputError, match="has none"):
        load(DataSpec(data="digits", test_domain="3"), 0)


def test_a_class_that_only_the_left_out_domain_has_is_refused(tmp_path):
    lines = ["x,label,site"] + [f"{i},{i % 2},{'ab'[i // 10]}" for i in range(20)] + ["7,2,b"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    spec = {"data": str(tmp_path / "t.csv"), "domain_column": "site"}
    with pytest.raises(InputError, match="'b' has the class '2', which no other domain has"):
        load(DataSpec(**spec, test_domain="b"), 0)
    # One that some domain to train on lacks is shift, not a mistake.
    assert len(load(DataSpec(**spec, test_domain="a", validation_fraction=0), 0).train) == 11


def test_a_row_without_a_domain_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("x,label,site\n1,0,a\n2,1,\n3,0,b\n")
    with pytest.raises(InputError, match="domain in row 2"):
        load(DataSpec(data=str(tmp_path / "t.csv"), domain_column="site"), 0)


@pytest.mark.parametrize("option", ["samples=1", "samples=2.5", "flip=2", "colour=1"])
def test_two_bits_refuse_what_they_cannot_be(option):
    with pytest.raises(InputError, match="two-bits"):
        load(DataSpec(data=f"two-bits({option})"), 0)
