"""What the models say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="boosted-networks",
        title="Boosted networks",
        equation="F_t = F_{t-1} + eta rho_t h_t, h_t a few sigmoid units fitted to -dl/dF",
        gradients="each stage: least squares of a few units by L-BFGS, at most max_iter passes",
        buffers="0",
        strength="learning_rate",
        suggested="0.1",
        source="Emami, Martinez-Munoz, 2019, arXiv 1909.12098",
        slot="model",
    ),
)
