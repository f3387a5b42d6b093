"""The transformers Trainer with the mixin."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import flatminima
from flatminima.integrations.transformers import PerturbedTrainerMixin

from .cases import assert_same_bits, bert, counting, language_model, sentences, state_of, texts


class OurTrainer(PerturbedTrainerMixin, Trainer):
    pass


class MeanTrainer(OurTrainer):
    """BERT takes `num_items_in_batch` and ignores it, so the Trainer must divide by itself."""

    loss_is_scaled_for_ga = False


class Losses(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.seen.append(logs["loss"])


def arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "warmup_steps": 2,
            "max_grad_norm": 0.5,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            **options,
        }
    )


def train(model, folder, data=None, trainer=OurTrainer, method=None, resume=None, **options):
    """Train and return the trainer; `method` is its name and its options."""
    ours = {}
    if method is not None:
        name, *given = method
        ours = {"perturb": name, "perturb_options": given[0] if given else {}}
    losses = Losses()
    made = trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=sentences() if data is None else data,
        callbacks=[losses],
        **ours,
    )
    made.train(resume_from_checkpoint=resume)
    made.losses = losses.seen
    return made


STRENGTH = {"sigma": 0.02}
METHODS = [
    ("nso", STRENGTH),
    ("nso", {**STRENGTH, "running_statistics": "clean"}),
    ("nso-one-pass", STRENGTH),
    ("sam", {"rho": 0.05}),
    ("looksam", {"rho": 0.05, "k": 2}),
    ("friendly-sam", {"rho": 0.05}),
]


@pytest.mark.parametrize(
    ("build", "data"), [(bert, sentences), (language_model, texts)], ids=["bert", "gpt2"]
)
@pytest.mark.parametrize("name", ["plain", "nso", "nso-one-pass", "sam", "gsam"])
def test_strength_0_is_the_plain_trainer_bit_for_bit(tmp_path, name, build, data):
    options = {"gradient_accumulation_steps": 2, "max_steps": 3}
    theirs = train(build(dropout=0.1), tmp_path, data(), Trainer, **options)
    strength = flatminima.perturb.card(name).strength
    method = (name, {strength: 0.0} if strength else {})
    ours = train(build(dropout=0.1), tmp_path, data(), method=method, **options)
    assert_same_bits(state_of(ours.model), state_of(theirs.model))
    assert ours.losses == theirs.losses


def by_hand(model, data, accumulate=1, bf16=False, **options):
    """The loop that a Trainer with `arguments` runs, written out."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    base = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
    )
    optimizer = flatminima.NSO(base, seed=3, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 2 if step < 2 else (4 - step) / 2
    )
    model.train()
    batches = [default_data_collator(data[s : s + 8]) for s in range(0, len(data), 8)]
    for step in range(4):
        for micro in range(accumulate):
            batch = batches[(step * accumulate + micro) % len(batches)]
            for part in optimizer.passes(batch):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model(**part).loss
                (loss / accumulate).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("signs", ["paired", "split"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_equals_a_loop_by_hand(tmp_path, signs, bf16, accumulate):
    ours = train(
        bert(dropout=0.0),
        tmp_path,
        trainer=MeanTrainer,
        method=("nso", {"sigma": 0.02, "signs": signs}),
        bf16=bf16,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
        optim="adamw_torch",
    ).model
    theirs = by_hand(bert(dropout=0.0), sentences(), accumulate, bf16=bf16, sigma=0.02, signs=signs)
    assert_same_bits(state_of(ours), state_of(theirs))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("method", "passes", "gradients"),
    [
        (("plain",), 1, 1),
        (("nso", {"sigma": 0.02}), 2, 2),
        (("nso", {"sigma": 0.02, "num_perturbations": 2, "clean_weight": 0.5}), 5, 5),
        (("nso-one-pass", {"sigma": 0.02}), 2, 1),
        (("sam", {"rho": 0.05}), 2, 2),
    ],
    ids=lambda v: str(v[0]) if isinstance(v, tuple) else None,
)
def test_forwards_and_backwards_are_those_of_the_method(
    tmp_path, method, passes, gradients, accumulate
):
    model = bert()
    with counting(model) as count:
        train(model, tmp_path, method=method, gradient_accumulation_steps=accumulate)
    micro_batches = 4 * accumulate
    assert count.forwards == count.backwards == passes * micro_batches
    assert sum(count.samples) == gradients * 8 * micro_batches


@pytest.mark.parametrize(("accumulate", "bf16"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    "method", [*METHODS, ("plain",)], ids=lambda m: "-".join(str(part) for part in m)
)
def test_resumed_from_a_checkpoint_it_goes_on_bit_for_bit(tmp_path, method, accumulate, bf16):
    options = {
        "gradient_accumulation_steps": accumulate,
        "bf16": bf16,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = train(bert(), tmp_path / "run", method=method, **options)
    at = tmp_path / "run" / "checkpoint-3"
    resumed = train(bert(seed=1), tmp_path / "run", method=method, resume=str(at), **options)
    assert_same_bits(state_of(resumed.model), state_of(whole.model))
    assert resumed.losses[-1] == whole.losses[-1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_halves_of_a_batch_of_texts_count_by_their_tokens(tmp_path, accumulate):
    """With hardly any noise the halves add up to the whole, whatever part of it is padding."""
    options = {"gradient_accumulation_steps": accumulate, "optim": "sgd", "max_grad_norm": 1e9}
    whole = train(language_model(), tmp_path, texts(), method=("plain",), **options)
    halves = train(
        language_model(), tmp_path, texts(), method=("nso-one-pass", {"sigma": 1e-9}), **options
    )
    for ours, theirs in zip(halves.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert halves.losses == pytest.approx(whole.losses, rel=1e-5)


def test_a_label_smoother_and_a_loss_of_ones_own_see_the_parts(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        found = cross_entropy(outputs["logits"], labels, reduction="sum")
        return found / num_items_in_batch

    methods = [("plain",), ("nso-one-pass", {"sigma": 1e-9})]
    for options in ({"label_smoothing_factor": 0.1}, {"loss": loss}):
        both = []
        for name, *given in methods:
            trainer = OurTrainer(
                model=bert(dropout=0.0),
                args=arguments(
                    tmp_path, **{k: v for k, v in options.items() if k != "loss"}, optim="sgd"
                ),
                train_dataset=sentences(),
                compute_loss_func=options.get("loss"),
                perturb=name,
                perturb_options=given[0] if given else None,
            )
            trainer.train()
            both.append(trainer.model)
        for ours, theirs in zip(*(model.parameters() for model in both), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_logged_loss_is_the_one_at_home_where_a_pass_ran_there(tmp_path):
    plain = train(bert(dropout=0.0), tmp_path, method=("plain",), max_steps=1)
    sam = train(bert(dropout=0.0), tmp_path, method=("sam", {"rho": 0.5}), max_steps=1)
    nso = train(bert(dropout=0.0), tmp_path, method=("nso", {"sigma": 0.1}), max_steps=1)
    assert sam.losses == plain.losses
    assert nso.losses != plain.losses


def test_gradient_checkpointing_changes_nothing(tmp_path):
    for method in (("nso", {"sigma": 0.02}), ("sam", {"rho": 0.05})):
        one, other = (
            train(bert(), tmp_path, method=method, max_steps=2, gradient_checkpointing=on)
            for on in (False, True)
        )
        assert_same_bits(state_of(one.model), state_of(other.model))


def test_the_method_may_be_a_callable_or_come_with_the_optimizer(tmp_path):
    by_name = train(bert(), tmp_path, method=("nso", {"sigma": 0.02}), max_steps=2)
    model = bert()
    made = OurTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2),
        train_dataset=sentences(),
        perturb=lambda base: flatminima.NSO(base, sigma=0.02),
    )
    made.train()
    assert_same_bits(state_of(made.model), state_of(by_name.model))
    model = bert()
    ours = flatminima.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.02)
    given = OurTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2),
        train_dataset=sentences(),
        optimizers=(ours, None),
    )
    given.train()
    assert ours.steps == 2


def test_training_twice_wraps_once(tmp_path):
    trainer = train(bert(), tmp_path, method=("nso", {"sigma": 0.02}), max_steps=2)
    first = trainer.optimizer.optimizer
    trainer.train()
    assert trainer.optimizer.optimizer is first
    assert first.steps == 4


def test_a_gradient_scaler_reaches_the_methods_that_need_it(tmp_path):
    scaler = torch.amp.GradScaler("cpu")
    for name, strength in (("usam", "rho"), ("nso", "sigma")):
        trainer = OurTrainer(
            model=bert(), args=arguments(tmp_path), perturb=name, perturb_options={strength: 0.1}
        )
        trainer.accelerator.scaler = scaler
        assert trainer.create_optimizer().scaler is scaler


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"the trainer needs a method:\n\n    class NSOTrainer"),
        ({"perturb": "nsso"}, "did you mean 'nso'"),
        ({"perturb": "nso"}, "'nso' needs sigma; start with"),
        ({"perturb": "nso", "perturb_options": {"rho": 1}}, "unknown option of 'nso' 'rho'"),
        ({"perturb": "nso", "perturb_options": {"sigma": -1}}, "sigma must be finite"),
        (
            {"perturb": lambda base: base, "perturb_options": {"sigma": 1}},
            "perturb_options are for a method given by name",
        ),
    ],
)
def test_what_is_wrong_with_the_method_is_said_at_once(tmp_path, given, message):
    with pytest.raises(flatminima.InputError, match=message):
        OurTrainer(model=bert(), args=arguments(tmp_path), **given)


def test_two_methods_and_a_callable_that_wraps_nothing_are_refused(tmp_path):
    model = bert()
    ours = flatminima.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.02)
    with pytest.raises(flatminima.InputError, match="optimizers= has NSO already"):
        OurTrainer(model=model, args=arguments(tmp_path), optimizers=(ours, None), perturb="sam")
    trainer = OurTrainer(model=model, args=arguments(tmp_path), perturb=lambda base: base)
    with pytest.raises(flatminima.InputError, match="must return the wrapped optimizer"):
        trainer.create_optimizer()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_what_takes_the_optimizers_place_is_refused(tmp_path, monkeypatch, kind):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    with pytest.raises(flatminima.InputError, match="OurTrainer does not work with"):
        OurTrainer(
            model=bert(),
            args=arguments(tmp_path),
            perturb="nso",
            perturb_options={"sigma": 0.1},
        )


def test_optimizers_that_step_within_backward_are_refused(tmp_path):
    with pytest.raises(flatminima.InputError, match="optim='lomo': it steps within backward"):
        OurTrainer(model=bert(), args=arguments(tmp_path, optim="lomo"), perturb="plain")


def test_our_optimizer_in_a_plain_trainer_says_what_is_missing(tmp_path):
    model = bert()
    ours = flatminima.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.02)
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=sentences(),
        optimizers=(ours, None),
    )
    with pytest.raises(RuntimeError, match=r"docs/how-to shows what transformers"):
        trainer.train()


@pytest.mark.parametrize("name", ["usam", "rsam"])
def test_methods_that_follow_the_size_of_gradients_refuse_accumulation(tmp_path, name):
    with pytest.raises(flatminima.InputError, match="gradient_accumulation_steps makes"):
        train(bert(), tmp_path, method=(name, {"rho": 0.1}), gradient_accumulation_steps=2)
