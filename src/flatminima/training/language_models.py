"""Language models that continue a prompt: causal ones, and those of encoder and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require
from flatminima.training.built import Built, first_line, read_config, together
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet
from flatminima.training.vocabulary import BYTES, byte_tokenizer

TINY = "gpt2-tiny"
TINY_CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
"""GPT-2's architecture, about a thousandth of its size: random weights, 132,928 of them."""


def build(name: str, data: DataSet) -> Built:
    """The language model of that name, drawn from torch's global generator where random.

    Attention is the eager one: Hessian-vector products need its second derivative, which the fused
    kernels do not have. Models of random weights read and write bytes (`byte_tokenizer`).

    Args:
        name: "gpt2-tiny", `config:FILE`, or a local folder or hub id of a transformers model.
        data: Whose texts it is for.

    Raises:
        InputError: no such model, or it writes no text.
    """
    if name == TINY:
        return _from_config(dict(TINY_CONFIG), name)
    if name.startswith("config:"):
        return _from_config(read_config(Path(name.removeprefix("config:"))), name)
    if name in ("mlp", "cnn", "bert-small", "minilm"):
        raise InputError(
            f"the model {name!r} writes no text, and {data.name} asks for rationales: use {TINY}, "
            "or a folder or hub id of a language model, such as gpt2 or google/flan-t5-small"
        )
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise InputError(f"no such model folder: {name}")
    return _pretrained(name)


def _from_config(settings: dict[str, Any], name: str) -> Built:
    transformers = require("transformers", "text")
    kind = settings.pop("model_type", None)
    if kind is None:
        raise InputError(f'the config of {name!r} has no model_type, such as "gpt2" or "t5"')
    tokenizer = byte_tokenizer(settings.get("n_positions", settings.get("n_ctx", 1024)))
    special = {
        "vocab_size": BYTES,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    try:
        config = transformers.AutoConfig.for_model(kind, **{**settings, **special})
        if config.is_encoder_decoder:
            config.decoder_start_token_id = tokenizer.pad_token_id
        model = _auto(config).from_config(config, attn_implementation="eager")
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot use the config of {name!r}: {first_line(error)}") from error
    model.config.architectures = [type(model).__name__]  # as from_pretrained sets it
    return _built(model, tokenizer, random_weights=True)


def _pretrained(name: str) -> Built:
    transformers = require("transformers", "text")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        model = _auto(config).from_pretrained(name, attn_implementation="eager")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers and safetensors raise types of all kinds here
        raise InputError(
            f"cannot load the language model {name!r}: {first_line(error)}; give a folder that "
            "save_pretrained wrote, or a hub id while online"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _built(model, tokenizer, random_weights=False)


def _auto(config: Any) -> Any:
    transformers = require("transformers", "text")
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _built(model: Any, tokenizer: Any, *, random_weights: bool) -> Built:
    config = model.config
    config.pad_token_id = tokenizer.pad_token_id
    start = None
    if config.is_encoder_decoder:
        start = getattr(config, "decoder_start_token_id", None)
        start = config.pad_token_id if start is None else start
    encoding = Encoding(tokenizer=tokenizer, decoder_start=start)
    companions = together(config.save_pretrained, tokenizer.save_pretrained)
    return Built(model, encoding, "transformers", random_weights, companions)
