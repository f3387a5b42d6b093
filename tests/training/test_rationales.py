"""Language models fine-tuned on rationales: tokens, loss, generation, and whole runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.objectives import LanguageModel
from flatminima.training import language_models, loop
from flatminima.training.data import DataSpec, encode, load
from flatminima.training.data.answers import completion, prompt
from flatminima.training.data.rationales import examples_of
from flatminima.training.loader import loader
from flatminima.training.measuring import measure_target
from flatminima.training.pretrain import pretrain
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume
from flatminima.training.tasks import Rationales
from flatminima.training.tasks.rationales import replies_of
from flatminima.training.vocabulary import BYTES, byte_tokenizer

CPU = torch.device("cpu")
DATA = "arithmetic(steps=3;train=24;validation=8;test=12;source=40)"
TRIPLES = [
    ("Can a penguin fly?", "Penguins are birds. They swim.", "no"),
    ("Is 7 > 3?", "", "yes"),
    ("How much is 20 plus 22? Say it in Ω.", "20 + 22 = 42.", "42"),
    ("Which (A) x (B) y?", "It is y.", "B"),
]
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 1,
    "n_positions": 256,
    "dropout_rate": 0.0,
}


def recipe(**values):
    small = {"data": DATA, "epochs": 2, "batch_size": 8, "max_length": 64, "pretrain": False}
    measures = {"probes": 2, "draws": 2, "measure_samples": 8}
    return Recipe.from_flat({**small, **measures, **values})


@pytest.fixture(scope="module")
def data():
    return load(DataSpec(DATA, max_length=160), 0)


@pytest.fixture(params=["causal", "encoder-decoder"])
def built(request, data, tmp_path):
    name = language_models.TINY
    if request.param == "encoder-decoder":
        (tmp_path / "t5.json").write_text(json.dumps(T5))
        name = f"config:{tmp_path / 't5.json'}"
    torch.manual_seed(0)
    found = language_models.build(name, data)
    # At GPT-2's usual scale every text would be continued alike.
    for parameter in found.model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    found.model.double().eval()
    return found


def batch_of(data, built, triples=TRIPLES):
    encoded = encode(examples_of(triples), data, built.encoding)
    (batch,) = loader(encoded, len(triples))
    return batch


def test_only_the_rationale_and_the_answer_count_and_each_position_predicts_the_next(data, built):
    batch, tokenizer = batch_of(data, built), built.encoding.tokenizer
    start, inputs, targets = built.encoding.decoder_start, batch["inputs"], batch["targets"]
    for row, (question, rationale, answer) in enumerate(TRIPLES):
        asked = tokenizer(prompt(question)).input_ids
        wanted = [*tokenizer(completion(rationale, answer)).input_ids, tokenizer.eos_token_id]
        whole = asked + wanted if start is None else [start, *wanted]
        told = 1 if start is not None else len(asked)
        read = inputs["input_ids" if start is None else "decoder_input_ids"][row].tolist()
        for position in range(targets.shape[1]):
            inside = position + 1 < len(whole)
            counts = inside and position + 1 >= told
            assert targets[row, position] == (whole[position + 1] if counts else -100)
            assert not inside or read[position] == whole[position]
        encoded = whole[:-1] if start is None else asked
        assert inputs["attention_mask"][row].sum() == len(encoded)
        assert inputs["input_ids"][row, : len(encoded)].tolist() == encoded


def test_the_bytes_give_back_every_text():
    tokenizer = byte_tokenizer(100)
    for text in ("3+5=1 The answer is 1.", "Ω, naïve \n\t x", " ."):
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.encode())
        assert max(ids) < BYTES - 1
        assert tokenizer.decode(ids) == text


def test_the_loss_of_one_sample_is_the_models_own(data, built):
    for triple in TRIPLES:
        batch = batch_of(data, built, [triple])
        if built.encoding.decoder_start is None:
            last = batch["targets"][:, -1:]
            ids = torch.cat([batch["inputs"]["input_ids"], last], dim=1)
            labels = torch.cat([torch.full_like(last, -100), batch["targets"]], dim=1)
            own = built.model(input_ids=ids, labels=labels).loss
        else:
            own = built.model(input_ids=batch["inputs"]["input_ids"], labels=batch["targets"]).loss
        torch.testing.assert_close(LanguageModel()(built.model, batch).float(), own.float())


def test_the_loss_of_a_batch_is_the_mean_of_its_samples_whatever_their_lengths(data, built):
    alone = [LanguageModel()(built.model, batch_of(data, built, [t])) for t in TRIPLES]
    together = LanguageModel()(built.model, batch_of(data, built))
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_texts_generated_together_are_those_generated_one_by_one(data, built):
    together = replies_of(built.model, batch_of(data, built)["asked"])
    encoded = encode(examples_of(TRIPLES), data, built.encoding)
    alone = [replies_of(built.model, batch["asked"])[0] for batch in loader(encoded, 1)]
    assert together == alone
    assert len({reply.text for reply in together}) == len(TRIPLES)


class Knowing(nn.Module):
    """Writes given texts, whatever it is asked; its logits are all alike."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, texts):
        super().__init__()
        self.texts, self.tokenizer = list(texts), byte_tokenizer(100)

    def forward(self, input_ids, attention_mask):
        return torch.zeros(*input_ids.shape, BYTES)

    def generate(self, input_ids, attention_mask, **settings):
        texts = [self.texts.pop(0) for _ in input_ids]
        ends = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        return torch.cat([input_ids, ends], dim=1)


def test_answers_are_counted(data):
    texts = [" The answer is no.", " The answer is yes.", " 42.", " Yes. The answer is (A)."]
    encoding = language_models.build(language_models.TINY, data).encoding
    encoded = encode(examples_of(TRIPLES), data, encoding)
    seen = []
    score = Rationales().score(Knowing(texts), loader(encoded, 3), CPU, seen.extend)
    assert score == {"accuracy": 0.5, "loss": pytest.approx(np.log(BYTES)), "answered": 0.75}
    assert [reply.answer for reply in seen] == ["no", "yes", None, "a"]


def test_rationales_that_are_too_long_are_refused(data):
    long = examples_of([*TRIPLES, ("Why?", "so " * 60, "yes")])
    encoding = language_models.build(language_models.TINY, data).encoding
    with pytest.raises(InputError, match="1 of 5 rationales have more than 160 tokens"):
        encode(long, data, encoding)


def test_a_run_learns_writes_what_it_wrote_and_can_be_measured(tmp_path):
    out = tmp_path / "a"
    results = finetune(recipe(perturb="nso", lr=0.005), out, say=lambda text: None)
    found = results["metrics"]
    assert 0 < found["test_loss"] < np.log(BYTES) - 1
    assert np.isfinite(found["hessian_trace"])
    assert found["gradients_per_step"] == 2
    kept = json.loads((out / "predictions.json").read_text())
    assert len(kept["label"]) == len(kept["predicted"]) == 12
    right = np.mean([a == b for a, b in zip(kept["label"], kept["predicted"], strict=True)])
    assert right == found["test_accuracy"]
    for example in kept["examples"].values():
        assert set(example) == {"text", "question", "generated", "answer"}
    report, _ = measure_target(str(out), {})
    assert report.trace.value == pytest.approx(found["hessian_trace"], rel=1e-4)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    asked = recipe(perturb="nso", measure=False)
    finetune(asked, tmp_path / "whole", say=lambda text: None)
    save, saves = loop.save, []

    def stop(*given):
        save(*given)
        saves.append(given)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(asked, tmp_path / "cut", say=lambda text: None)
    monkeypatch.setattr(loop, "save", save)
    resume(tmp_path / "cut", say=lambda text: None)
    files = [tmp_path / run / "checkpoints/last/model.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_folder_of_a_run_is_a_model_for_the_next(tmp_path):
    finetune(recipe(measure=False), tmp_path / "a", say=lambda text: None)
    folder = tmp_path / "a/checkpoints/last"
    again = recipe(model=str(folder), measure=False, lr=0.0, epochs=1)
    second = finetune(again, tmp_path / "b", say=lambda text: None)
    first = json.loads((tmp_path / "a/results.json").read_text())
    assert second["metrics"]["test_loss"] == pytest.approx(first["metrics"]["test_loss"], rel=1e-5)


def test_an_encoder_decoder_trains(tmp_path):
    (tmp_path / "t5.json").write_text(json.dumps(T5))
    model = f"config:{tmp_path / 't5.json'}"
    results = finetune(recipe(model=model, perturb="sam", lr=0.01), tmp_path / "a", say=print)
    assert results["metrics"]["test_loss"] < np.log(BYTES) - 0.5
    assert np.isfinite(results["metrics"]["top_eigenvalue"])


def test_pretraining_on_direct_answers_is_kept(data):
    def fresh():
        torch.manual_seed(3)
        return language_models.build(language_models.TINY, data)

    def pretrained(told):
        built = fresh()
        pretrain(built.model, data, built.encoding, 0, Rationales(), told)
        return built

    said = []
    first = pretrained(lambda *given: said.append(given))
    again = pretrained(lambda *given: pytest.fail("it was trained anew"))
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (batch,) = loader(encode(data.source, data, first.encoding), 40)
    loss = LanguageModel()
    assert len(said) == 8
    assert loss(first.model, batch) < loss(fresh().model, batch) - 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, "writes no text.*use gpt2-tiny"),
        ({"data": "digits", "model": "gpt2-tiny"}, "is for --task rationales"),
        ({"objective": "cross-entropy"}, "take language-model"),
        ({"data": "digits", "objective": "language-model"}, "a loss of rationales"),
        ({"model": "./nowhere"}, "no such model folder"),
        ({"task": "rationales", "data": "digits"}, "--task rationales does not fit digits"),
        ({"augment": "standard"}, "changes images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(recipe(**changes), tmp_path / "a", say=lambda text: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_embd": 8}, "no model_type"), ({"model_type": "vit"}, "cannot use the config")],
)
def test_configs_that_write_no_text_are_refused(tmp_path, data, settings, message):
    (tmp_path / "c.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message):
        language_models.build(f"config:{tmp_path / 'c.json'}", data)


def test_logits_that_do_not_fit_the_targets_are_refused():
    with pytest.raises(InputError, match=r"logits of shape \(2, 3\)"):
        LanguageModel()(nn.Linear(4, 3), (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)))
