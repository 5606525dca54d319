"""Every check of an argument that needs no op: what is no tensor, and what no op could be asked.

Dtypes, shapes and values of tensors are checked by the ops (csrc/loss/check_arguments.h). Each
message names the argument, what was expected and what came: TypeError for kinds and dtypes,
ValueError for the rest.

Under ``torch.compile`` a size may be a symbol, a float too, and a number of NumPy is an array; what
is not known before the graph runs is checked by the ops when it does.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from . import _ops
from ._messages import cut, describe
from ._options import ShardedPackedOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CUDA_IS_MISSING = (
    ". The CUDA backend is built where nvcc is found: install the CUDA toolkit and reinstall with "
    "FORCE_CUDA=1 pip install ."
)
REDUCTIONS = ("none", "mean", "sum")
MOST_INSTANCES = 2**31 - 1  # slots are int32
GRAD_SCALES = ("exact", "ddp")
# What other implementations call our keywords.
OTHER_NAMES = {
    "delta_v": "delta_var",
    "delta_pull": "delta_var",
    "delta_d": "delta_dist",
    "delta_push": "delta_dist",
    "ignore_index": "ignore_label",
}


def refuse_unknown(function: str, unknown: Mapping[str, object]) -> NoReturn:
    """The TypeError of Python for an unknown keyword, with the keyword that was perhaps meant."""
    name = next(iter(unknown))
    known = sorted(ShardedPackedOptions.__optional_keys__ | {"return_terms"})
    meant = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known)
    hint = f": did you mean {meant[0]!r}?" if meant else ""
    raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


# --- tensors --------------------------------------------------------------------------------------


def check_inputs(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Refuse what no op could be given. Returns the labels without their subclass."""
    check_tensor("embeddings", embeddings)
    labels = check_integers("labels", labels)
    if labels.is_floating_point() and not embeddings.is_floating_point():
        raise TypeError(
            f"embeddings, labels: expected embeddings first, got {embeddings.dtype} before "
            f"{labels.dtype}: are they swapped?"
        )
    if embeddings.is_cpu and labels.is_cpu:
        return labels  # every build has the backend; to ask a device for its type is slow
    supported = _ops.current().device_types
    device = embeddings.device
    if device.type not in supported and device.type != "meta":
        raise ValueError(
            f"embeddings: expected a tensor on {' or '.join(supported)}, the backends of this "
            f"build of discloss_cuda, got one on {device}"
            + (CUDA_IS_MISSING if device.type == "cuda" else "")
        )
    check_device("labels", labels, "embeddings", embeddings)
    return labels


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor of numbers side by side in memory."""
    if not isinstance(value, Tensor):
        hint = f": torch.from_numpy({name}) makes one" if _is_numpy(value) else ""
        raise TypeError(f"{name}: expected a tensor, got {describe(value)}{hint}")
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got {_describe_layout(value)}")


def _describe_layout(tensor: Tensor) -> str:
    if tensor.is_nested:
        return (
            "a nested one: discriminative_loss_packed takes clouds of different sizes, one behind "
            "the other"
        )
    if tensor.is_quantized:
        return f"a quantized one of dtype {tensor.dtype}: dequantize() makes a dense one"
    return f"one of layout {tensor.layout}: to_dense() makes a dense one"


def check_integers(name: str, value: Tensor) -> Tensor:
    """A tensor of ids or offsets without its subclass, which no result takes over.

    A compiled graph copies the values: an input keeps its class when the graph runs, where torch
    lets no op of others have it. (Inductor would leave out a mere copy.)
    """
    check_tensor(name, value)
    if not is_annotated(value):
        return value
    if torch.compiler.is_compiling():
        with torch._C.DisableTorchFunctionSubclass():
            return value.long() | 0
    return value.as_subclass(Tensor)


def is_annotated(tensor: Tensor) -> bool:
    """Whether a tensor is of a subclass that still is a tensor's memory, and says more about it.

    Subclasses that stand for something else have a ``__torch_dispatch__``.
    """
    kind = type(tensor)
    if kind is Tensor or kind is torch.nn.Parameter:
        return False
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors on two devices."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}"
        )


# --- hyper-parameters -----------------------------------------------------------------------------


def check_parameters(
    delta_var: float, delta_dist: float, alpha: float, beta: float, gamma: float, norm: int
) -> _ops.Parameters:
    """The hyper-parameters as the op takes them, or an error that names the wrong one."""
    return _ops.Parameters(
        _check_number("delta_var", delta_var, 0.0),
        _check_number("delta_dist", delta_dist, 0.0),
        _check_number("alpha", alpha, -math.inf),
        _check_number("beta", beta, -math.inf),
        _check_number("gamma", gamma, -math.inf),
        _check_norm(norm),
    )


def _check_number(name: str, value: float, least: float) -> float:
    number = value
    if type(value) is not float:
        if not _is_real(value):
            if _is_numpy(value):
                later: float = _from_numpy(name, value, "a number")
                return later
            raise TypeError(f"{name}: expected a number, got {describe(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {cut(str(value))}")
    if number < least:
        raise ValueError(f"{name}: expected a number >= 0, got {cut(str(value))}")
    return number


def _check_norm(norm: int) -> int:
    if not _is_real(norm):
        if _is_numpy(norm):
            later: int = _from_numpy("norm", norm, "1 or 2")
            return later
        raise TypeError(f"norm: expected 1 or 2, got {describe(norm)}")
    if norm not in (1, 2):
        raise ValueError(f"norm: expected 1 or 2, got {cut(str(norm))}")
    return int(norm)


def _is_real(value: object) -> bool:
    # The types that nearly all calls bring come first: an abstract class is slow to ask.
    if type(value) is float or type(value) is int:
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_numpy(value: object) -> bool:
    return type(value).__module__ == "numpy"


def _from_numpy(name: str, value: Any, expected: str) -> Any:
    """A NumPy array that ``torch.compile`` has made of a number, as a tensor without axes."""
    tensor = torch.as_tensor(value) if torch.compiler.is_compiling() else None
    if tensor is None or tensor.dim() != 0 or tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name}: expected {expected}, got an array of NumPy")
    return tensor


def check_ignore_label(ignore_label: Any) -> list[int] | Tensor:
    """The ignored ids as int64 values: a list, or a tensor ``[ids]`` (NumPy under compile)."""
    if ignore_label is None:
        return []
    compiling = torch.compiler.is_compiling()
    if compiling and _is_numpy(ignore_label):
        return _ids_from_numpy(ignore_label)
    several = isinstance(ignore_label, Collection) and not isinstance(ignore_label, Tensor | str)
    if not several and not isinstance(ignore_label, numbers.Integral):
        raise TypeError(
            f"ignore_label: expected None, an int or several, got {describe(ignore_label)}"
        )
    ids: list[Any] = list(ignore_label) if several else [ignore_label]
    if compiling and any(_is_numpy(value) for value in ids):
        return torch.cat([_ids_from_numpy(value) for value in ids])
    for value in ids:
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"ignore_label: expected ints, got {describe(value)}")
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError(
                f"ignore_label: expected ids in the range of int64, got {cut(str(value))}"
            )
    return [int(value) for value in ids]


def _ids_from_numpy(value: Any) -> Tensor:
    ids = torch.as_tensor(value, device="cpu")
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"ignore_label: expected ints, got {ids.dtype}")
    return ids.to(torch.int64).reshape(-1)


# --- sizes and choices ----------------------------------------------------------------------------


def check_max_instances(max_instances: int | None) -> int | None:
    """``max_instances`` as it is, or an error."""
    if max_instances is None:
        return None
    size = check_size("max_instances", max_instances)
    if not torch.compiler.is_compiling() and type(size) is int and size > MOST_INSTANCES:
        raise ValueError(
            f"max_instances: expected a number from 0 to {MOST_INSTANCES}, got {cut(str(size))}"
        )
    return size


def check_size(name: str, size: int) -> int:
    """A number of instances or images; of a compiled graph the ops check the value."""
    compiling = torch.compiler.is_compiling()
    if compiling and _is_numpy(size):
        size = size.item()  # type: ignore[attr-defined]
    if type(size) is not int and (
        isinstance(size, bool) or not isinstance(size, numbers.Integral | torch.SymInt)
    ):
        raise TypeError(f"{name}: expected an int or None, got {describe(size)}")
    if compiling or isinstance(size, torch.SymInt):
        return size
    if size < 0:
        raise ValueError(f"{name}: expected a number >= 0, got {cut(str(size))}")
    return int(size)


def check_reduction(reduction: str) -> str:
    """``reduction`` as it is, or an error."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction: expected "none", "mean" or "sum", got {cut(repr(reduction))}')
    return reduction


def check_sharding(
    process_group: ProcessGroup | None, grad_scale: str, max_instances: int | None
) -> tuple[ProcessGroup, int]:
    """The process group, and ``max_instances`` which it needs, as they are, or an error."""
    if grad_scale not in GRAD_SCALES:
        raise ValueError(f'grad_scale: expected "exact" or "ddp", got {cut(repr(grad_scale))}')
    if process_group is None:
        raise ValueError(f'grad_scale: expected "exact" without process_group, got {grad_scale!r}')
    available = torch.distributed.is_available()
    if not available or not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group: expected None or a torch.distributed.ProcessGroup that this process "
            f"belongs to, got {describe(process_group)}"
        )
    if max_instances is None:
        raise ValueError("max_instances: expected an int with process_group, got None")
    return process_group, max_instances
