"""Models of Keras and torch change their norms, with a receipt.

    model, receipt = anynorm.surgery.swap(model, "batch", "group", groups=32)
    print(receipt)

`swap` turns norms of one kind into another, `fold` takes batch normalizations into the layers in front of them,
`freeze` and `unfreeze` stop and start their learning, `reestimate` sets running statistics to those of a data set,
`weight_decay_groups` says what weight decay is for, `revert` gives back what another one changed, and `inspect` lists
a model's norms and what is doubtful about them. They return a new model and leave the given one as it is, unless
`inplace=True`. Importing this module imports no framework.
"""

from .changes import fold, revert, swap
from .facts import Facts
from .inspection import inspect
from .receipt import Receipt, Refusal, Row
from .training import freeze, reestimate, unfreeze, weight_decay_groups

__all__ = [
    "Facts",
    "Receipt",
    "Refusal",
    "Row",
    "fold",
    "freeze",
    "inspect",
    "reestimate",
    "revert",
    "swap",
    "unfreeze",
    "weight_decay_groups",
]
