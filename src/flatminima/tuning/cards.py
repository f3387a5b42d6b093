"""What the tuners say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="maid",
        title="Adaptively inexact bilevel descent (MAID)",
        equation="theta - alpha z, |z - grad f| <= omega <= (1 - eta) |z|, f(theta) = g(argmin h)",
        gradients="two linear solves a step, as exact as it takes, each product about 2 gradients",
        buffers="about 6 vectors of the size of x",
        strength="",
        suggested="the defaults; give the constants where theory has them",
        source="Salehi, Mukherjee, Roberts, Ehrhardt, 2023, arXiv 2308.10098",
        slot="tuner",
        aliases=("bilevel",),
    ),
    Card(
        name="self-tuning-networks",
        title="Self-Tuning Networks (STN)",
        equation="W(u) = W + diag(V u) W'; phi on L_T(W(u), u), lambda on L_V(W(lambda))",
        gradients="about 2 a pass, and 1 of a validation batch every second step",
        buffers="1 (the response W'), and its optimizer state",
        strength="",
        suggested="lr of the knobs 3e-3 to 3e-2, entropy 1e-3, 2 training steps a validation step",
        source="MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv 1903.03088",
        slot="tuner",
        aliases=("stn",),
    ),
)
