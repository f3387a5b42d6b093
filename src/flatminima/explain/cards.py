"""What the explanations say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="normgrad",
        title="NormGrad",
        equation="map_u = |g_u| |x_u| at a layer, g_u = ds/dx_u; maps of layers multiplied",
        gradients="a gradient with respect to activations",
        buffers="0",
        strength="layers",
        suggested="the last layer of each resolution",
        source="Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv 2004.02866",
        slot="explain",
    ),
    Card(
        name="meta-saliency",
        title="Meta-saliency",
        equation="the map at W - lr grad CE(f_W(x), y), image by image",
        gradients="1 an image, and the map's",
        buffers="1",
        strength="lr",
        suggested="0.0025",
        source="Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv 2004.02866",
        slot="explain",
    ),
    Card(
        name="boundary-tilting",
        title="Boundary tilting",
        equation="theta = angle(w, j - i), strength 1 / cos(theta); i, j the class means",
        gradients="0; a forward pass for features",
        buffers="0",
        strength="",
        suggested="",
        source="Tanay, Griffin, 2016, arXiv 1608.07690; 2018, arXiv 1806.11186",
        slot="explain",
    ),
)
