"""The compiled module; importing it registers the ops."""

from collections.abc import Callable

from torch import Tensor

built_for_torch: str
with_cuda: bool
cuda_architectures: str
cuda_version: str

class DirectForward:
    """The op forward of a namespace without the boxes of ``torch.ops``."""

    terms: Callable[..., list[Tensor]]
    def __init__(self, name_space: str) -> None: ...
