"""A wrong argument is an error of the right type that names it, what was expected, what came."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import discloss_cuda
from discloss_cuda import DiscriminativeLoss, _ops, discriminative_loss, discriminative_loss_packed

Arguments = dict[str, Any]
Change = Callable[[torch.device], Arguments]


def dense(device: torch.device) -> Arguments:
    return {
        "embeddings": torch.zeros(2, 4, 3, 5, device=device),
        "labels": torch.zeros(2, 3, 5, dtype=torch.int64, device=device),
        "max_instances": 3,
    }


def packed(device: torch.device) -> Arguments:
    return {
        "embeddings": torch.zeros(6, 4, device=device),
        "labels": torch.zeros(6, dtype=torch.int64, device=device),
        "offsets": torch.tensor([0, 2, 6], device=device),
        "max_instances": 3,
    }


def packed_by_batch(device: torch.device) -> Arguments:
    return {
        **packed(device),
        "offsets": None,
        "batch": torch.tensor([0, 0, 1, 1, 1, 1], device=device),
        "batch_size": 2,
    }


def raises(expected: type[Exception], message: str) -> Any:
    return pytest.raises(expected, match=f"^{re.escape(message)}")


# --- hyper-parameters -----------------------------------------------------------------------------

NOT_NUMBERS = [
    (torch.tensor(1.0), "a tensor"),
    ("1", "'1' of type str"),
    (None, "None of type NoneType"),
    (True, "True of type bool"),
    (1j, "1j of type complex"),
]

HYPER_PARAMETERS = [
    *(
        (name, value, TypeError, f"{name}: expected a number, got {got}")
        for name in ("delta_var", "delta_dist", "alpha", "beta", "gamma")
        for value, got in NOT_NUMBERS
    ),
    *(
        (name, value, ValueError, f"{name}: expected a finite number, got {value}")
        for name in ("delta_var", "delta_dist", "alpha", "beta", "gamma")
        for value in (float("nan"), float("inf"), -float("inf"))
    ),
    *(
        (name, -0.5, ValueError, f"{name}: expected a number >= 0, got -0.5")
        for name in ("delta_var", "delta_dist")
    ),
    *(
        ("norm", value, TypeError, f"norm: expected 1 or 2, got {got}")
        for value, got in NOT_NUMBERS
    ),
    *(("norm", value, ValueError, f"norm: expected 1 or 2, got {value}") for value in (0, 3, 1.5)),
    (
        "ignore_label",
        torch.tensor(0),
        TypeError,
        "ignore_label: expected None, an int or several, got a tensor",
    ),
    (
        "ignore_label",
        "0",
        TypeError,
        "ignore_label: expected None, an int or several, got '0' of type str",
    ),
    (
        "ignore_label",
        0.5,
        TypeError,
        "ignore_label: expected None, an int or several, got 0.5 of type float",
    ),
    (
        "ignore_label",
        [0, 0.5],
        TypeError,
        "ignore_label: expected ints, got 0.5 of type float",
    ),
    *(
        (
            "ignore_label",
            value,
            ValueError,
            f"ignore_label: expected ids in the range of int64, got {value}",
        )
        for value in (2**63, -(2**63) - 1)
    ),
    *(
        (
            "max_instances",
            value,
            TypeError,
            f"max_instances: expected an int or None, got {got}",
        )
        for value, got in (*((v, g) for v, g in NOT_NUMBERS if v is not None), (1.5, "1.5 of type"))
    ),
    ("max_instances", -1, ValueError, "max_instances: expected a number >= 0, got -1"),
    *(
        (
            "reduction",
            value,
            ValueError,
            f'reduction: expected "none", "mean" or "sum", got {value!r}',
        )
        for value in ("avg", "MEAN", None, 1)
    ),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), HYPER_PARAMETERS)
def test_hyper_parameter(name: str, value: Any, error: type[Exception], message: str) -> None:
    cpu = torch.device("cpu")
    with raises(error, message):
        discriminative_loss(**{**dense(cpu), name: value})
    with raises(error, message):
        discriminative_loss_packed(**{**packed(cpu), name: value})
    with raises(error, message):
        DiscriminativeLoss(**{name: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("delta_v", "delta_var"),
        ("delta_d", "delta_dist"),
        ("ignore_index", "ignore_label"),
        ("ignore_labels", "ignore_label"),
        ("max_instance", "max_instances"),
        ("usegpu", None),
    ],
)
def test_unknown_keyword(name: str, meant: str | None) -> None:
    cpu = torch.device("cpu")
    hint = f": did you mean '{meant}'?" if meant else ""
    unknown: Any = {name: 0}
    for function, arguments in (
        (discriminative_loss, dense(cpu)),
        (discriminative_loss_packed, packed(cpu)),
        (DiscriminativeLoss, {}),
    ):
        message = f"{function.__name__}() got an unexpected keyword argument '{name}'{hint}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            function(**arguments, **unknown)


LONG = [0.0] * 100_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"embeddings": LONG},
        {"labels": LONG},
        {"labels": np.zeros(100_000)},
        {"alpha": LONG},
        {"alpha": 10**4000},
        {"norm": LONG},
        {"norm": 10**4000},
        {"ignore_label": LONG},
        {"ignore_label": 10**4000},
        {"ignore_label": "0" * 100_000},
        {"max_instances": LONG},
        {"max_instances": 10**4000},
        {"reduction": "mean" * 1000},
        {"grad_scale": "ddp" * 1000},
        {"process_group": "x" * 1000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_message_is_short(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        discriminative_loss(**{**dense(torch.device("cpu")), **wrong})
    assert len(str(caught.value)) < 400


# --- tensors of a dense batch ---------------------------------------------------------------------


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda device: {"embeddings": torch.zeros(shape, dtype=dtype, device=device)}


def labels(*shape: int, dtype: torch.dtype = torch.int64) -> Change:
    return lambda device: {"labels": torch.zeros(shape, dtype=dtype, device=device)}


DENSE = {
    "embeddings is a list": (
        lambda device: {"embeddings": [0.0]},
        TypeError,
        "embeddings: expected a tensor, got [0.0] of type list",
    ),
    "labels is an array": (
        lambda device: {"labels": np.zeros(1)},
        TypeError,
        "labels: expected a tensor, got array([0.]) of type ndarray: torch.from_numpy(labels) "
        "makes one",
    ),
    "swapped arguments": (
        lambda device: {
            "embeddings": torch.zeros(2, 3, 5, dtype=torch.int64, device=device),
            "labels": torch.zeros(2, 4, 3, 5, device=device),
        },
        TypeError,
        "embeddings, labels: expected embeddings first, got torch.int64 before torch.float32: are "
        "they swapped?",
    ),
    "integer embeddings": (
        empty(2, 4, 3, 5, dtype=torch.int64),
        TypeError,
        "embeddings: expected a tensor of dtype float32, float64, float16 or bfloat16, got Long",
    ),
    "complex embeddings": (
        empty(2, 4, 3, 5, dtype=torch.complex64),
        TypeError,
        "embeddings: expected a tensor of dtype float32, float64, float16 or bfloat16, got Complex",
    ),
    "float labels": (
        labels(2, 3, 5, dtype=torch.float32),
        TypeError,
        "labels: expected a tensor of dtype bool, int8, int16, int32, int64, uint8 or uint16, "
        "got Float: labels.long() makes ids of it",
    ),
    "uint32 labels": (
        labels(2, 3, 5, dtype=torch.uint32),
        TypeError,
        "labels: expected a tensor of dtype bool, int8, int16, int32, int64, uint8 or uint16, "
        "got UInt32: labels.long() makes ids of it",
    ),
    "uint64 labels": (
        labels(2, 3, 5, dtype=torch.uint64),
        TypeError,
        "labels: expected a tensor of dtype bool, int8, int16, int32, int64, uint8 or uint16, "
        "got UInt64: labels.long() makes ids of it",
    ),
    "no spatial axis": (
        lambda device: {**empty(2, 4)(device), **labels(2, 4)(device)},
        ValueError,
        "embeddings: expected shape [B, D, *spatial] with at least one spatial axis, got [2, 4]",
    ),
    "no channel": (
        empty(2, 0, 3, 5),
        ValueError,
        "embeddings: expected at least one channel, got [2, 0, 3, 5]",
    ),
    **{
        name: (
            labels(*shape),
            ValueError,
            "labels: expected shape [B, *spatial] = [2, 3, 5] for embeddings of shape "
            f"[2, 4, 3, 5], got {list(shape)}",
        )
        for name, shape in {
            "labels with two channels": (2, 2, 3, 5),
            "labels with a channel axis, of another image size": (2, 1, 5, 3),
            "labels with a channel axis, of another batch size": (3, 1, 3, 5),
            "labels with two channel axes": (2, 1, 1, 3, 5),
            "labels with the channel axis first": (1, 2, 3, 5),
            "labels with the channel axis last": (2, 3, 5, 1),
            "labels of another image size": (2, 5, 3),
        }.items()
    },
    "too many instances asked for": (
        lambda device: {"max_instances": 2**31},
        ValueError,
        "max_instances: expected a number from 0 to 2147483647, got 2147483648",
    ),
    "far too many instances asked for": (
        lambda device: {"max_instances": 2**63},
        ValueError,
        "max_instances: expected a number from 0 to 2147483647, got 9223372036854775808",
    ),
    "labels elsewhere": (
        lambda device: {"labels": torch.zeros(2, 3, 5, dtype=torch.int64, device="meta")},
        ValueError,
        "labels: expected the device of embeddings, ",
    ),
    "embeddings elsewhere": (
        lambda device: {"embeddings": torch.zeros(2, 4, 3, 5, device="meta")},
        ValueError,
        "labels: expected the device of embeddings, meta, got ",
    ),
}


@pytest.mark.parametrize("counted", [False, True], ids=["given", "counted"])
@pytest.mark.parametrize(("change", "error", "message"), DENSE.values(), ids=DENSE.keys())
def test_dense(
    change: Change, error: type[Exception], message: str, counted: bool, device: torch.device
) -> None:
    arguments = {**dense(device), **change(device)}
    if counted:
        if "max_instances" in change(device):
            pytest.skip("no count is given")
        arguments["max_instances"] = None
    with raises(error, message):
        discriminative_loss(**arguments)


NOT_DENSE = {
    "sparse embeddings": (
        lambda device: {"embeddings": torch.zeros(2, 4, 3, 5, device=device).to_sparse()},
        TypeError,
        "embeddings: expected a dense tensor, got one of layout torch.sparse_coo: to_dense() makes",
    ),
    "sparse labels": (
        lambda device: {"labels": torch.zeros(2, 3, 5, dtype=torch.int64).to_sparse().to(device)},
        TypeError,
        "labels: expected a dense tensor, got one of layout torch.sparse_coo: to_dense() makes",
    ),
    **{
        f"nested embeddings, {layout}": (
            lambda device, layout=layout: {
                "embeddings": torch.nested.nested_tensor(
                    [torch.zeros(4, 3, 5), torch.zeros(4, 2, 5)], layout=layout, device=device
                )
            },
            TypeError,
            "embeddings: expected a dense tensor, got a nested one: discriminative_loss_packed ",
        )
        for layout in (torch.strided, torch.jagged)
    },
    "quantized embeddings": (
        lambda device: {
            "embeddings": torch.quantize_per_tensor(
                torch.zeros(2, 4, 3, 5), 0.1, 0, torch.quint8
            ).to(device)
        },
        TypeError,
        "embeddings: expected a dense tensor, got a quantized one of dtype torch.quint8: ",
    ),
}


@pytest.mark.filterwarnings("ignore:.*(nested tensors|quantize_per_tensor):UserWarning")
@pytest.mark.parametrize(("change", "error", "message"), NOT_DENSE.values(), ids=NOT_DENSE.keys())
def test_not_dense(
    change: Change, error: type[Exception], message: str, device: torch.device
) -> None:
    for max_instances in (None, 3):
        arguments = {**dense(device), **change(device), "max_instances": max_instances}
        with raises(error, message):
            discriminative_loss(**arguments)


def test_labels_without_spatial_axis(device: torch.device) -> None:
    arguments = {**dense(device), **labels(2)(device), "max_instances": None}
    with raises(ValueError, "labels: expected shape [B, *spatial], got [2]"):
        discriminative_loss(**arguments)


def test_more_instances_than_allowed_on_the_cpu() -> None:
    image_labels = torch.tensor([[[5, 5, 5]], [[1, 2, 7]]])
    with raises(ValueError, "max_instances: expected at most 2 instances") as caught:
        discriminative_loss(torch.zeros(2, 4, 1, 3), image_labels, max_instances=2)
    assert re.search(r"got 3 .*image 1|image 1.* 3", str(caught.value))
    discriminative_loss(torch.zeros(2, 4, 1, 3), image_labels, max_instances=2, ignore_label=7)


# --- tensors of a packed batch --------------------------------------------------------------------

PACKED = {
    "neither offsets nor batch": (
        lambda device: {"offsets": None},
        ValueError,
        "offsets, batch: expected exactly one of them, got neither",
    ),
    "offsets and batch": (
        lambda device: {"batch": torch.zeros(6, dtype=torch.int64, device=device)},
        ValueError,
        "offsets, batch: expected exactly one of them, got both",
    ),
    "batch_size with offsets": (
        lambda device: {"batch_size": 2},
        ValueError,
        "batch_size: expected only with batch, got 2 with offsets",
    ),
    "offsets is a list": (
        lambda device: {"offsets": [0, 6]},
        TypeError,
        "offsets: expected a tensor, got [0, 6] of type list",
    ),
    "int32 offsets": (
        lambda device: {"offsets": torch.tensor([0, 6], dtype=torch.int32, device=device)},
        TypeError,
        "offsets: expected a tensor of dtype int64, got Int: offsets.long() converts it",
    ),
    "offsets of two axes": (
        lambda device: {"offsets": torch.tensor([[0, 6]], device=device)},
        ValueError,
        "offsets: expected one axis, got shape [1, 2]",
    ),
    "offsets without an element": (
        lambda device: {"offsets": torch.zeros(0, dtype=torch.int64, device=device)},
        ValueError,
        "offsets: expected shape [B + 1], got [0]",
    ),
    "offsets elsewhere": (
        lambda device: {"offsets": torch.tensor([0, 6], device="meta")},
        ValueError,
        "offsets: expected the device of labels, ",
    ),
    "embeddings of an image": (
        empty(6, 4, 1),
        ValueError,
        "embeddings: expected shape [N_total, D] with offsets, got [6, 4, 1]",
    ),
    "fewer labels than embeddings": (
        lambda device: {**labels(5)(device), "offsets": torch.tensor([0, 5], device=device)},
        ValueError,
        "labels: expected shape [N_total] = [6] for embeddings of shape [6, 4], got [5]",
    ),
    "integer embeddings": (
        empty(6, 4, dtype=torch.int32),
        TypeError,
        "embeddings: expected a tensor of dtype float32, float64, float16 or bfloat16, got Int",
    ),
    "float labels": (
        labels(6, dtype=torch.float64),
        TypeError,
        "labels: expected a tensor of dtype bool, int8, int16, int32, int64, uint8 or uint16, "
        "got Double: labels.long() makes ids of it",
    ),
}

BY_BATCH = {
    "batch is a list": (
        lambda device: {"batch": [0]},
        TypeError,
        "batch: expected a tensor, got [0] of type list",
    ),
    "batch of another length": (
        lambda device: {"batch": torch.zeros(5, dtype=torch.int64, device=device)},
        ValueError,
        "batch: expected shape [N_total] = [6], got [5]",
    ),
    "batch elsewhere": (
        lambda device: {"batch": torch.zeros(6, dtype=torch.int64, device="meta")},
        ValueError,
        "batch: expected the device of labels, ",
    ),
    "int32 batch": (
        lambda device: {"batch": torch.zeros(6, dtype=torch.int32, device=device)},
        TypeError,
        "batch: expected a tensor of dtype int64, got Int",
    ),
    "batch_size is a tensor": (
        lambda device: {"batch_size": torch.tensor(2)},
        TypeError,
        "batch_size: expected an int or None, got a tensor",
    ),
    "batch_size is a bool": (
        lambda device: {"batch_size": True},
        TypeError,
        "batch_size: expected an int or None, got True of type bool",
    ),
    "negative batch_size": (
        lambda device: {"batch_size": -1},
        ValueError,
        "batch_size: expected a number >= 0, got -1",
    ),
}

WRONG_OFFSETS = {
    "first": (
        [1, 6],
        "offsets: expected offsets[0] = 0, got 1: torch.nn.functional.pad(offsets, (1, 0)) makes",
    ),
    "descending": ([0, 4, 2, 6], "offsets: expected ascending values, got 4 before 2 at 1"),
    "last": ([0, 2, 5], "offsets: expected offsets[B] = N_total = 6, got 5"),
}


@pytest.mark.parametrize("counted", [False, True], ids=["given", "counted"])
@pytest.mark.parametrize(("change", "error", "message"), PACKED.values(), ids=PACKED.keys())
def test_packed(
    change: Change, error: type[Exception], message: str, counted: bool, device: torch.device
) -> None:
    arguments = {**packed(device), **change(device)}
    if counted:
        arguments["max_instances"] = None
    with raises(error, message):
        discriminative_loss_packed(**arguments)


@pytest.mark.parametrize(("change", "error", "message"), BY_BATCH.values(), ids=BY_BATCH.keys())
def test_packed_by_batch(
    change: Change, error: type[Exception], message: str, device: torch.device
) -> None:
    with raises(error, message):
        discriminative_loss_packed(**{**packed_by_batch(device), **change(device)})


@pytest.mark.parametrize("counted", [False, True], ids=["given", "counted"])
@pytest.mark.parametrize(("offsets", "message"), WRONG_OFFSETS.values(), ids=WRONG_OFFSETS.keys())
def test_values_of_offsets_on_the_cpu(offsets: list[int], message: str, counted: bool) -> None:
    arguments = {**packed(torch.device("cpu")), "offsets": torch.tensor(offsets)}
    if counted:
        arguments["max_instances"] = None
    with raises(ValueError, message):
        discriminative_loss_packed(**arguments)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([0, 0, 1, 0, 1, 1], "batch: expected ascending image numbers, got 0 after 1 at 3"),
        ([0, 0, 1, 1, 1, 2], "batch: expected image numbers from 0 to batch_size - 1 = 1, got 2"),
        ([-1, 0, 0, 1, 1, 1], "batch: expected image numbers from 0 to batch_size - 1 = 1, got -1"),
    ],
)
def test_values_of_batch_on_the_cpu(batch: list[int], message: str) -> None:
    arguments = {**packed_by_batch(torch.device("cpu")), "batch": torch.tensor(batch)}
    with raises(ValueError, message):
        discriminative_loss_packed(**arguments)


# --- devices without a backend --------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cuda", "mps", "xpu"])
def test_device_without_backend(device_type: str) -> None:
    only_cpu = dataclasses.replace(_ops.current(), device_types=("cpu",))
    with FakeTensorMode(), _ops.use(only_cpu):
        arguments = dense(torch.device(device_type, 0))
        with raises(
            ValueError,
            "embeddings: expected a tensor on cpu, the backends of this build of discloss_cuda, "
            f"got one on {device_type}:0",
        ) as caught:
            discriminative_loss(**arguments)
        assert ("FORCE_CUDA=1 pip install ." in str(caught.value)) == (device_type == "cuda")
        with raises(ValueError, "embeddings: expected a tensor on cpu, "):
            discriminative_loss_packed(**packed(torch.device(device_type, 0)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [case for name, case in DENSE.items() if "elsewhere" not in name],
    ids=[name for name in DENSE if "elsewhere" not in name],
)
def test_tensors_without_values_are_checked_too(
    change: Change, error: type[Exception], message: str
) -> None:
    meta = torch.device("meta")
    with raises(error, message):
        discriminative_loss(**{**dense(meta), **change(meta)})


def test_meta_tensors_by_batch_need_their_number() -> None:
    with raises(ValueError, "batch_size: expected an int for meta tensors, got None"):
        discriminative_loss_packed(**packed_by_batch(torch.device("meta")) | {"batch_size": None})


def test_built_backends_are_named() -> None:
    built = " or ".join(_ops.current().device_types)
    with FakeTensorMode(), raises(ValueError, f"embeddings: expected a tensor on {built}, the "):
        discriminative_loss(**dense(torch.device("xpu", 0)))


# --- direct calls of the ops ----------------------------------------------------------------------


def backward_arguments(device: torch.device) -> dict[str, Any]:
    """Right arguments of the backward op, by name."""
    embeddings = torch.zeros(2, 4, 3, 5, device=device)
    image_labels = torch.zeros(2, 3, 5, dtype=torch.int64, device=device)
    parameters = _ops.Parameters(0.5, 1.5, 1.0, 1.0, 0.001, 2)
    results = _ops.current().forward(embeddings, image_labels, None, 3, parameters, [])
    saved = ("slots", "instances", "counts", "means", "pull", "push")
    return {
        "grad_loss": torch.ones(2, device=device),
        **dict.fromkeys(("grad_variance", "grad_distance", "grad_regularization")),
        "embeddings": embeddings,
        "offsets": None,
        **dict(zip(saved, results[_ops.NUM_TERMS :], strict=True)),
        "parameters": parameters,
    }


def without_last(tensor: Tensor) -> Tensor:
    return tensor[..., :-1].contiguous()


SAVED = "slots, instances, counts, means, pull, push: expected the "


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("grad_loss", Tensor.double, TypeError, "grad: expected dtype Float, got Double"),
        ("grad_loss", without_last, ValueError, "grad: expected shape [2], got [1]"),
        ("embeddings", Tensor.long, TypeError, "embeddings: expected a tensor of dtype float32, "),
        ("slots", Tensor.long, TypeError, SAVED + "dtypes that forward returns"),
        ("means", Tensor.double, TypeError, SAVED + "dtypes that forward returns"),
        ("means", without_last, ValueError, SAVED + "shapes and layout that forward returns"),
        ("counts", without_last, ValueError, SAVED + "shapes and layout that forward returns"),
        ("push", without_last, ValueError, SAVED + "shapes and layout that forward returns"),
        ("slots", without_last, ValueError, "slots"),
    ],
)
def test_backward_op(
    name: str,
    change: Callable[[Tensor], Tensor],
    error: type[Exception],
    message: str,
    device: torch.device,
) -> None:
    arguments = backward_arguments(device)
    arguments[name] = change(arguments[name])
    with raises(error, message):
        _ops.current().backward(**arguments)


# --- a checkout that has not been built -----------------------------------------------------------


def test_an_unbuilt_checkout_says_how_to_build_it(tmp_path: Path) -> None:
    package = Path(discloss_cuda.__file__).parent
    shutil.copytree(package, tmp_path / "discloss_cuda", ignore=shutil.ignore_patterns("*.so"))
    ran = subprocess.run(
        [sys.executable, "-c", "import discloss_cuda"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    message = ran.stderr.splitlines()[-1]
    assert message.startswith("ImportError: discloss_cuda: the compiled module in ")
    assert "In a checkout, build it (python setup.py build_ext --inplace)" in message
    assert "circular" not in message
