"""What the base optimizers and solvers say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="greedy-bcd",
        title="Greedy block coordinate descent",
        equation="x_b -= H_b^+ g_b, b the block with the largest guaranteed decrease",
        gradients="one full gradient, and a solve of the size of the block",
        buffers="0",
        strength="block_size",
        suggested="5 to 50",
        source="Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859",
        slot="optimizer",
    ),
)
