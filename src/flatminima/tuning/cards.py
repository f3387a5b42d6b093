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
)
