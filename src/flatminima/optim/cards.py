"""What the base optimizers and solvers say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="greedy-block-coordinate-descent",
        title="Greedy block coordinate descent",
        equation="x_b -= H_b^+ g_b, b the block with the largest guaranteed decrease",
        gradients="one full gradient, and a solve of the size of the block",
        buffers="0",
        strength="block_size",
        suggested="5 to 50",
        source="Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859",
        slot="optimizer",
        aliases=("greedy-bcd",),
    ),
    Card(
        name="gradient-normalized-smoothness",
        title="Gradient-normalized smoothness",
        equation="W - (H + lambda B)^-1 g, lambda = ||g||_* / gamma, gamma by doubling and halving",
        gradients="1 for each trial, mostly 1 to 3 a step, and at most 50 products",
        buffers="4, and one for each product",
        strength="gamma",
        suggested="1; it finds its own",
        source="Semenov, Jaggi, Doikov, 2025, arXiv 2506.13710",
        slot="optimizer",
        aliases=("gns",),
    ),
)
