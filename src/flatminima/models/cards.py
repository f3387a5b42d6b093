"""What the models say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="boosted-networks",
        title="Boosted networks",
        equation="F_t = F_{t-1} + eta rho_t h_t, h_t a few sigmoid units fitted to -dl/dF",
        gradients="a stage: least squares of a few units by L-BFGS, at most max_iter passes",
        buffers="the data",
        strength="learning_rate",
        suggested="0.1",
        source="Emami, Martinez-Munoz, 2019, arXiv 1909.12098",
        slot="model",
    ),
    Card(
        name="wide-and-deep-classifiers",
        title="Wide-and-deep classifiers",
        equation="sign(k_L(x, X) K_L(X, X)^-1 y), and its limits as L grows",
        gradients="no gradient: n^2 L for the kernel, n^3 / 3 to solve; a limit n L a prediction",
        buffers="the kernel of all pairs of samples, or a chunk of it",
        strength="depth",
        suggested="60",
        source="Radhakrishnan, Belkin, Uhler, 2022, arXiv 2204.14126",
        slot="model",
    ),
)
