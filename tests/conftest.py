import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """Pretrained networks are cached for the session, never in the user's home."""
    os.environ["FLATMINIMA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
