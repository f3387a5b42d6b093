"""What the models say of themselves."""

from flatminima.cards import Card

BLOCK_COORDINATE = "Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859"

CARDS: tuple[Card, ...] = (
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
    Card(
        name="learned-proximal-networks",
        title="Learned proximal networks (LPN)",
        equation="f = grad psi, psi convex: f(y) = argmin_x |x - y|^2 / 2 + R(x)",
        gradients="a forward and a backward pass for f; two of each for a training step",
        buffers="",
        strength="gamma",
        suggested="0.08 sqrt(n) at the end, 8 times that at first, for n pixels between 0 and 1",
        source="Fang, Buchanan, Sulam, 2024, arXiv 2310.14344",
        slot="model",
        aliases=("lpn",),
    ),
)
