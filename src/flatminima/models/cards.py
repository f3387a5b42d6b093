"""What the models say of themselves."""

from flatminima.cards import Card

BLOCK_COORDINATE = "Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859"

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
    Card(
        name="greedy-linear-regressor",
        title="Linear regression by greedy blocks (scikit-learn)",
        equation="min ||y - Xw - b||^2 / 2 + l1 |w|_1 + l2 |w|^2 / 2",
        gradients="a full gradient and a small solve for each block",
        buffers="0",
        strength="l1",
        suggested="a tenth of max |X'y|",
        source=BLOCK_COORDINATE,
        slot="model",
    ),
    Card(
        name="greedy-logistic-classifier",
        title="Logistic and softmax regression by greedy blocks (scikit-learn)",
        equation="min sum log loss + l1 |w|_1 + l2 |w|^2 / 2",
        gradients="a full gradient and a small solve for each block",
        buffers="0",
        strength="l2",
        suggested="1",
        source=BLOCK_COORDINATE,
        slot="model",
    ),
    Card(
        name="greedy-label-propagation",
        title="Label propagation by greedy trees (scikit-learn)",
        equation="min sum w_ij (x_i - x_j)^2, x given at labelled samples",
        gradients="O(edges) for each tree",
        buffers="0",
        strength="n_neighbors",
        suggested="7",
        source="Zhu, Ghahramani, Lafferty, ICML 2003; " + BLOCK_COORDINATE,
        slot="model",
    ),
)
