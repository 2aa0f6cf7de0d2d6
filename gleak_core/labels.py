"""Label rules: private labels out of the last layer's gradient, before any optimisation."""

import torch
from torch import Tensor

from gleak_core.observation import Observation

__all__ = ["idlg"]


def idlg(seen: Observation) -> Tensor:
    """Return each trial's one label (T, 1): the row with a negative sum (Zhao et al. 2020, Eq. 4).

    The gradient of the last layer's row k is (p_k − y_k)·a, with a ≥ 0 after a sigmoid or a ReLU:
    its sign gives y away. Exact for one image; for more than one it refuses.
    """
    seen.one_message(by="iDLG's label rule")
    (batch_size,) = seen.need("batch_size", by="iDLG's label rule")
    if batch_size != 1:
        raise ValueError(
            f"iDLG reads the label of one image, this batch has {batch_size}: "
            "use fedsgd(…, each=True), or attacks.dlg, which optimises the labels"
        )
    weight, _ = seen.head()
    rows = seen.gradient(by="iDLG's label rule")[weight].sum(-1)  # (T, K)
    return torch.argmin(rows, dim=-1, keepdim=True)
