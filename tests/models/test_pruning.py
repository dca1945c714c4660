"""The smallest weights of each layer are 0 afterwards, and nothing else changes."""

import pytest
import torch
from tiny_models import tiny_model

from dipo_pl.errors import InputError
from dipo_pl.models.pruning import prune


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize(("kind", "layers"), [("llama", 14), ("gpt2", 8), ("phi", 12)])
def test_the_smallest_weights_go(kind, layers, share):
    model = tiny_model(kind, seed=1)
    names = list(model.state_dict())
    before = {name: each.clone() for name, each in model.state_dict().items()}
    prune(model, share)
    assert list(model.state_dict()) == names
    changed = [name for name, each in model.state_dict().items() if not torch.equal(each, before[name])]
    assert len(changed) == layers
    for name in changed:
        assert not any(part in name for part in ("embed", "wte", "wpe", "lm_head", "norm", "ln_", "bias"))
        old, new = before[name].flatten().tolist(), model.state_dict()[name].flatten().tolist()
        gone = [abs(was) for was, became in zip(old, new, strict=True) if became == 0]
        kept = [was for was, became in zip(old, new, strict=True) if became != 0]
        assert len(gone) == round(share * len(old))
        assert max(gone) <= min(map(abs, kept))
        assert kept == [became for became in new if became != 0]


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(InputError, match=r"share must be a share in \(0, 1\) \(got 1.0\)"):
        prune(tiny_model("llama"), 1.0)
    model = tiny_model("mixtral")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(InputError, match=r"^MixtralForCausalLM cannot be pruned here: model\.layers\.0"):
        prune(model, 0.5)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
