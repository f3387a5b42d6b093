"""peft: which frozen weights an adapter adapts."""

from __future__ import annotations

from torch import Tensor, nn

from flatminima.errors import InputError, require


def adapted_weights(model: nn.Module) -> list[Tensor]:
    """The frozen weights that the adapters of a peft model adapt.

    An adapted layer computes with W0 + BA (LoRA). Noise on W0 is noise on that sum, the weight as
    it will be once merged; the gradients go to the adapters:

        optimizer = flatminima.NSO(
            torch.optim.AdamW([
                {"params": [p for p in model.parameters() if p.requires_grad], "sigma": 0.0},
                {"params": adapted_weights(model), "perturb_frozen": True},
            ]),
            sigma=0.01,
        )

    Args:
        model: A model from `peft.get_peft_model`.

    Returns:
        The `weight` of each adapted layer, once each, in the model's order.

    Raises:
        InputError: the model has no adapters, one of them adapts something else than a `weight`, or
            peft is not installed.
    """
    layer_type = require("peft.tuners.tuners_utils", "peft").BaseTunerLayer
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, layer_type):
            layer = module.get_base_layer()
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, Tensor):
                raise InputError(
                    f"an adapted {type(layer).__name__} has no single weight: give the optimizer "
                    "the frozen tensors to be perturbed yourself"
                )
            found.setdefault(id(weight), weight)
    if not found:
        raise InputError(
            "this model has no adapters: pass what peft.get_peft_model(model, config) returned"
        )
    return list(found.values())
