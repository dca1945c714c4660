"""An optimizer that DeepSpeed would lay out in two parts."""

from torch.optim import AdamW


class TwoGroups(AdamW):
    def __init__(self, params, lr: float = 0.001):
        first, *others = params
        super().__init__([{"params": [first]}, {"params": others}], lr=lr)
