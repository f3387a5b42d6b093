"""A denoiser that is exactly a proximal operator: learned from a photograph, used on another.

Trains on patches of scikit-learn's china, takes noise off a crop of its flower, fills in half of
the crop's pixels by plug-and-play ADMM, and asks for the density that was learned.
"""

import torch
from sklearn.datasets import load_sample_image

import flatminima
from flatminima.models.learned_proximal import masking, proximal_schedule

torch.manual_seed(0)
china, flower = (
    torch.tensor(load_sample_image(name).copy()).float().div(255).mean(2)
    for name in ("china.jpg", "flower.jpg")
)
patches = china.unfold(0, 8, 3).unfold(1, 8, 3).reshape(-1, 64)


def decibels(image, clean):
    return -10 * (image - clean).square().mean().log10().item()


net = flatminima.LPN(64, hidden=64, layers=2, beta=30, alpha=1e-3, free_mean=True)
print(flatminima.fit_lpn(net, patches, 0.1, schedule=proximal_schedule(64, 200, lr=1e-2)))

clean = flower[150:214, 270:334][None, None]
of_image = flatminima.PatchLPN(net, side=8)
with torch.no_grad():
    noisy = clean + 0.1 * torch.randn_like(clean)
    print(
        f"noisy {decibels(noisy, clean):.1f} dB, denoised {decibels(of_image(noisy), clean):.1f} dB"
    )

seen = (torch.rand(clean.shape) < 0.5).float()
given = seen * (clean + 0.02 * torch.randn_like(clean))
of_image = flatminima.PatchLPN(net, side=8, stride=2)
found = flatminima.pnp_admm(of_image, masking(seen), given, weight=12.0, steps=40)
print(f"half of the pixels {decibels(given, clean):.1f} dB, ", end="")
print(f"filled in {decibels(found.image, clean):.1f} dB after {found}")

prior = net.prior(patches[::2000])
worse = net.prior(patches[::2000] + 0.05 * torch.randn_like(patches[::2000]))
print(f"log-density of patches {prior.log_density.mean():.1f}, of noisy ones ", end="")
print(f"{worse.log_density.mean():.1f}, up to the same constant")
