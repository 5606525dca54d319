"""Images sharded over the ranks of a process group: the numbers are those of whole images."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.budget import DTYPES, Outcome, assert_within_budget, run
from support.cases import DENSE, LABEL_DTYPES, PACKED, Case, get_case, labels_of_dtype
from support.op_calls import OpCalls
from support.ranks import join, spawn
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from discloss_cuda import (
    DiscriminativeLoss,
    DiscriminativeLossTerms,
    _ops,
    _sharded,
    discriminative_loss,
    discriminative_loss_packed,
)

# torch.compile imports parts of torch that torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)
# What concerns the graph alone need not run on the emulated kernels too.
not_emulated = pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)


class Collectives(OpCalls):
    """Within it every call of an op of torch.distributed is listed."""

    def wants(self, op: Any) -> bool:
        return op.namespace in ("c10d", "_c10d_functional")


# --- one rank: what does not depend on their number -----------------------------------------------


@pytest.fixture
def group() -> Iterator[distributed.ProcessGroup]:
    """This process alone."""
    join(0, distributed.HashStore(), 1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


@pytest.fixture
def problem(device: torch.device) -> tuple[Tensor, Tensor]:
    """``[3, 5, 4, 6]`` float64 embeddings that require a gradient, and labels with ids 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 4, 6), generator=generator)
    return x.to(device).requires_grad_(), labels.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["image_d16", "volume_d8", "norm1", "many_ignored", "clouds_d3"])
def test_on_every_device(device: torch.device, group: Any, name: str, dtype: torch.dtype) -> None:
    case = get_case(name)
    x = case.embeddings.to(device, dtype)
    options = {"process_group": group, "max_instances": instances_of(case)}
    assert_within_budget(case, run(*FUNCTIONS, case, x, "mixed", **options), "mixed")


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_every_label_dtype(group: Any, dtype: torch.dtype) -> None:
    labels = labels_of_dtype(dtype, (2, 5, 7))
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"max_instances": 35, "ignore_label": (0, 3)}
    found = discriminative_loss(x, labels, **options, process_group=group)
    torch.testing.assert_close(found, discriminative_loss(x, labels, **options), rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("return_terms", [False, True])
def test_function_and_module(
    problem: tuple[Tensor, Tensor], group: Any, reduction: str, return_terms: bool
) -> None:
    x, labels = problem
    options: dict[str, Any] = {
        "max_instances": 5,
        "ignore_label": 2,
        "reduction": reduction,
        "return_terms": return_terms,
    }
    expected = discriminative_loss(x, labels, **options)
    criterion = DiscriminativeLoss(**options, process_group=group, grad_scale="ddp")
    assert "grad_scale='ddp'" in repr(criterion)
    for found in (
        discriminative_loss(x, labels, **options, process_group=group),
        discriminative_loss(x, labels[:, None], **options, process_group=group),
        criterion(x, labels),
    ):
        assert isinstance(found, DiscriminativeLossTerms if return_terms else Tensor)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_no_image(device: torch.device, group: Any) -> None:
    x = torch.zeros(0, 5, 4, device=device, requires_grad=True)
    labels = torch.zeros(0, 4, dtype=torch.int64, device=device)
    loss = discriminative_loss(x, labels, max_instances=2, process_group=group)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None


def test_no_grad_and_inference_mode(problem: tuple[Tensor, Tensor], group: Any) -> None:
    expected = discriminative_loss(*problem)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = discriminative_loss(*problem, max_instances=4, process_group=group)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=0)
        assert not loss.requires_grad


@pytest.mark.parametrize("packed", [False, True])
def test_three_collectives_and_none_in_backward(group: Any, packed: bool) -> None:
    case = get_case("clouds_d3" if packed else "image_d16")
    x = case.embeddings.clone().requires_grad_()
    rest = case.arguments(x.device)
    options: dict[str, Any] = {"max_instances": 64, "process_group": group}
    with Collectives() as forward:
        loss = FUNCTIONS[packed](x, *rest, **options)
    assert forward.names == ["c10d::allgather_", "c10d::allreduce_", "c10d::allreduce_"]
    with Collectives() as backward:
        loss.backward()
    assert backward.names == []


class LargestResult(TorchDispatchMode):
    """Within it the size in bytes of the largest result that is no view of ``tensor`` is kept."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.storage = tensor.untyped_storage().data_ptr()
        self.bytes = 0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = op(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.storage:
                self.bytes = max(self.bytes, result.nbytes)
        return results


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_large_memory(group: Any, channels_last: bool) -> None:
    """Nothing of the embedding's size, in either layout, let alone K x N: chunks, and labels."""
    x = torch.zeros(1, 16, 512, 600, requires_grad=True)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    labels = torch.arange(600).expand(1, 512, 600) // 2  # K = 300
    with LargestResult(x) as largest:
        discriminative_loss(x, labels, max_instances=300, process_group=group)
    assert largest.bytes <= 8 * _sharded.CHUNK < x.nbytes


POINTS = {
    "embeddings": torch.zeros(6, 4),
    "labels": torch.zeros(6, dtype=torch.int64),
    "max_instances": 3,
}
IMAGES = {
    "embeddings": torch.zeros(2, 4, 3),
    "labels": torch.zeros(2, 3, dtype=torch.int64),
    "max_instances": 3,
}

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "max_instances": (
        IMAGES | {"max_instances": None},
        ValueError,
        "max_instances: expected an int with process_group, got None",
    ),
    "max_instances too large": (
        IMAGES | {"max_instances": 2**31},
        ValueError,
        "max_instances: expected a number from 0 to 2147483647, got 2147483648",
    ),
    "grad_scale": (
        IMAGES | {"grad_scale": "mean"},
        ValueError,
        'grad_scale: expected "exact" or "ddp", got \'mean\'',
    ),
    "grad_scale alone": (
        IMAGES | {"process_group": None, "grad_scale": "ddp"},
        ValueError,
        "grad_scale: expected \"exact\" without process_group, got 'ddp'",
    ),
    "process_group": (
        IMAGES | {"process_group": "gloo"},
        TypeError,
        "process_group: expected None or a torch.distributed.ProcessGroup that this process "
        "belongs to, got 'gloo' of type str",
    ),
    "dtype of embeddings": (
        IMAGES | {"embeddings": torch.zeros(2, 4, 3, dtype=torch.int64)},
        TypeError,
        "embeddings: expected a tensor of dtype float32, float64, float16 or bfloat16, got ",
    ),
    "shape of labels": (
        IMAGES | {"labels": torch.zeros(2, 4, dtype=torch.int64)},
        ValueError,
        "labels: expected shape [B, *spatial] = [2, 3] for embeddings of shape [2, 4, 3], got ",
    ),
    "meta tensors": (
        IMAGES | {name: IMAGES[name].to("meta") for name in ("embeddings", "labels")},  # type: ignore[attr-defined]
        ValueError,
        "embeddings: expected data with process_group, got a meta tensor",
    ),
    "values of offsets": (
        POINTS | {"offsets": torch.tensor([0, 4, 2, 6])},
        ValueError,
        "offsets: expected ascending values, got 4 before 2 at 1",
    ),
    "batch_size": (
        POINTS | {"batch": torch.zeros(6, dtype=torch.int64)},
        ValueError,
        "batch_size: expected an int with batch and process_group, got None",
    ),
    **{
        name: (IMAGES | {name: value}, ValueError, f"{name}: expected ")
        for name, value in (("delta_var", -1.0), ("norm", 3), ("reduction", "max"))
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_raises_before_any_collective(group: Any, what: str) -> None:
    arguments, error, message = WRONG[what]
    function: Any = FUNCTIONS[arguments["embeddings"].dim() == 2]
    with Collectives() as collectives, pytest.raises(error, match=f"^{re.escape(message)}"):
        function(**{"process_group": group, **arguments})
    assert collectives.names == []


def test_a_module_checks_at_construction(group: Any) -> None:
    with pytest.raises(ValueError, match=r"^max_instances: expected an int with process_group"):
        DiscriminativeLoss(process_group=group)
    with pytest.raises(ValueError, match=r"^grad_scale: expected "):
        DiscriminativeLoss(grad_scale="ddp")


def test_a_module_with_a_process_group_cannot_be_copied(group: Any) -> None:
    with pytest.raises(TypeError, match="ProcessGroup"):
        copy.deepcopy(DiscriminativeLoss(max_instances=2, process_group=group))


@not_emulated
def test_transforms_are_refused(problem: tuple[Tensor, Tensor], group: Any) -> None:
    x, labels = problem

    def loss(x: Tensor) -> Tensor:
        return discriminative_loss(x, labels, max_instances=4, process_group=group)

    def dual() -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            return loss(torch.autograd.forward_ad.make_dual(x.detach(), x.detach()))

    calls: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("torch.func", lambda: torch.func.grad(loss)(x.detach())),
        ("torch.func", lambda: torch.vmap(loss)(x.detach()[None])),
        ("forward-mode differentiation", dual),
    )
    message = "process_group: expected an eager call, got one under "
    for name, call in calls:
        with Collectives() as collectives, pytest.raises(RuntimeError, match=f"^{message}{name}$"):
            call()
        assert collectives.names == []
    with pytest.raises(RuntimeError, match=f"{message}torch.compile"):
        torch.compile(loss, fullgraph=True, backend="eager")(x)
    with pytest.raises(RuntimeError, match=r"^process_group: expected backward without create_gr"):
        torch.autograd.grad(loss(x), x, create_graph=True)


@not_emulated
# torch.compile looks at .grad of its inputs, which need not be leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compile_leaves_it_to_eager(problem: tuple[Tensor, Tensor], group: Any) -> None:
    """Without ``fullgraph`` what stands around the loss is compiled."""
    x, labels = problem

    def step(x: Tensor) -> Tensor:
        return discriminative_loss(2 * x, labels, max_instances=4, process_group=group) + 1

    found = torch.compile(step, backend="aot_eager")(x)
    torch.testing.assert_close(found, step(x))
    torch.testing.assert_close(*(torch.autograd.grad(loss, x) for loss in (found, step(x))))


# --- several ranks --------------------------------------------------------------------------------

# Where, along the last axis of an image or in an order of the points, the pixels of a rank begin
# and end; a rank may have nothing. One after the other is taken for the cases.
CUTS = {
    2: ((0, 1 / 3, 1), (0, 0, 1), (0, 0.9, 1)),
    3: ((0, 0.2, 0.2, 1), (0, 0.5, 0.7, 1), (0, 0, 1, 1)),
}


def instances_of(case: Case) -> int:
    ignore = case.options.get("ignore_label")
    ignored = [] if ignore is None else [ignore] if isinstance(ignore, int) else list(ignore)
    return int(_ops.current().count_instances(case.labels, case.offsets, ignored))


def pixels_of(case: Case, cuts: tuple[float, ...], rank: int) -> Any:
    """An index of the embeddings' axis that is cut: a slice of the last, or a mask of points."""
    size = case.labels.shape[-1]
    first, last = (round(cut * size) for cut in cuts[rank : rank + 2])
    if case.offsets is None:
        return slice(first, last)
    mine = torch.zeros(size, dtype=torch.bool)
    mine[torch.randperm(size, generator=torch.Generator().manual_seed(0))[first:last]] = True
    return mine


def part_of(case: Case, mine: Any) -> Case:
    """The case of one rank."""
    if case.offsets is None:
        return dataclasses.replace(
            case, embeddings=case.embeddings[..., mine], labels=case.labels[..., mine]
        )
    sizes = [int(mine[a:b].sum()) for a, b in itertools.pairwise(case.offsets.tolist())]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return Case(case.embeddings[mine], case.labels[mine], case.options, offsets)


def combinations(world_size: int) -> Iterator[tuple[str, torch.dtype, tuple[float, ...]]]:
    """Case, dtype and cuts; two ranks have every case in float64 and in one more dtype."""
    cuts = itertools.cycle(CUTS[world_size])
    others = itertools.cycle(dtype for dtype in DTYPES if dtype != torch.float64)
    for name in (*DENSE, *PACKED):
        yield name, torch.float64, next(cuts)
        if world_size == 2:
            yield name, next(others), next(cuts)


def outcomes(rank: int, world_size: int) -> list[Outcome]:
    """Loss, terms and gradient of this rank in every combination."""
    found = []
    for name, dtype, cuts in combinations(world_size):
        case = get_case(name)
        limit = instances_of(case) + world_size - 2  # all slots taken, or one left over
        part = part_of(case, pixels_of(case, cuts, rank))
        options = {"process_group": distributed.group.WORLD, "max_instances": limit}
        found.append(run(*FUNCTIONS, part, part.embeddings.to(dtype), "mixed", **options))
    return found


def columns(tensor: Tensor, rank: int, world_size: int) -> Tensor:
    """What a rank has of the last axis: rank 0 a single column, the last rank the rest."""
    begin, end = rank, rank + 1 if rank < world_size - 1 else tensor.shape[-1]
    return tensor[..., begin:end]


def nan_stays_where_it_belongs(rank: int, world_size: int) -> None:
    """In an ignored pixel it is nothing; in another it is in the loss of its image on all ranks."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, 9, dtype=torch.float64)
    labels = torch.randint(1, 4, (3, 2, 9))
    labels[:, 0, 0] = labels[:, 1, 8] = 0
    x[:, :, 0, 0] = x[:, :, 1, 8] = torch.nan
    x[1, 0, 1, 0] = torch.nan  # on rank 0
    x[2, 1, 0, 8] = torch.inf  # on the last
    options: dict[str, Any] = {"ignore_label": 0, "max_instances": 3, "reduction": "none"}
    whole = x.clone().requires_grad_()
    expected = discriminative_loss(whole, labels, **options)
    assert expected.isfinite().tolist() == [True, False, False]
    expected.sum().backward()
    mine = columns(x, rank, world_size).clone().requires_grad_()
    loss = discriminative_loss(
        mine, columns(labels, rank, world_size), **options, process_group=distributed.group.WORLD
    )
    loss.sum().backward()
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(mine.grad, columns(whole.grad, rank, world_size), equal_nan=True)


def too_many_instances_is_an_error_on_every_rank(rank: int, world_size: int) -> None:
    """Of all ranks together, or of one of them alone; afterwards all go on."""
    options: dict[str, Any] = {"process_group": distributed.group.WORLD, "max_instances": 3}
    together = torch.tensor([[0, 0, 0], [2 * rank, 2 * rank + 1, 0]])
    alone = torch.tensor([[5, 6, 7], [8, 8, 8]]) if rank else torch.arange(6).reshape(2, 3) // 3
    alone[0] += torch.arange(3) * (rank == 0)
    x = torch.zeros(2, 4, 3)
    for labels, image in ((together, 1), (alone, 0)):
        found = 2 * world_size if image else 6
        message = (
            "max_instances: expected at most 3 instances in an image over all ranks, got at least "
        )
        with pytest.raises(ValueError, match=f"^{message}{found} in image {image}$"):
            discriminative_loss(x, labels, **options)
    crowded = torch.arange(3 + 2 * (rank == 0))[None]  # five on rank 0
    with pytest.raises(ValueError, match=f"^{message}5 in image 0$"):
        discriminative_loss(torch.zeros(1, 4, crowded.numel()), crowded, **options)
    loss = discriminative_loss(x, together % 2, **options, reduction="none")
    assert loss.tolist() == [0, 9]  # of two equal means: (2 delta_dist)^2


def parameters_under_ddp_are_those_of_one_process(rank: int) -> None:
    """Two steps on a cloud in three shards, of which one is empty, and on the whole cloud."""
    case = get_case("clouds_d3")
    part = part_of(case, pixels_of(case, (0, 0.3, 0.3, 1), rank))
    assert (part.labels.numel() == 0) == (rank == 1)
    models = []
    for cloud, options in (
        (case, {}),
        (part, {"process_group": distributed.group.WORLD, "grad_scale": "ddp"}),
    ):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        models.append(model)
        if options:
            model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            embeddings = model(cloud.embeddings)
            discriminative_loss_packed(
                embeddings, cloud.labels, cloud.offsets, max_instances=8, **options
            ).backward()
            optimizer.step()
    for ours, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def a_part_of_the_ranks_can_be_a_group(rank: int, world_size: int) -> None:
    """All but the last; that one is told that it does not belong."""
    some = distributed.new_group(list(range(world_size - 1)))
    x = torch.full((1, 2, 3), float(rank))
    labels = torch.full((1, 3), rank)
    if rank == world_size - 1:
        with pytest.raises(
            TypeError, match=r"^process_group: expected None or a torch.distributed"
        ):
            discriminative_loss(x, labels, max_instances=3, process_group=some)
        return
    loss = discriminative_loss(x, labels, max_instances=3, process_group=some)
    others = torch.arange(world_size - 1.0).expand(1, 2, -1)
    expected = discriminative_loss(others, torch.arange(world_size - 1)[None])
    torch.testing.assert_close(loss, expected)


SCENARIOS = (
    nan_stays_where_it_belongs,
    too_many_instances_is_an_error_on_every_rank,
    a_part_of_the_ranks_can_be_a_group,
)


def work_on_rank(rank: int, world_size: int, folder: str) -> None:
    """All scenarios, which fail here, and the outcomes of all cases, saved in ``folder``."""
    torch.set_num_threads(1)
    join(rank, distributed.FileStore(f"{folder}/store", world_size), world_size)
    for scenario in SCENARIOS:
        scenario(rank, world_size)
    if world_size == 3:
        parameters_under_ddp_are_those_of_one_process(rank)
    found = [(outcome.terms, outcome.grad) for outcome in outcomes(rank, world_size)]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_have_the_numbers_of_whole_images(tmp_path: Path, world_size: int) -> None:
    """Every case, its pixels spread unevenly: terms equal on all ranks, everything in budget."""
    spawn(work_on_rank, (world_size, str(tmp_path)), world_size)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    for number, (name, dtype, cuts) in enumerate(combinations(world_size)):
        case = get_case(name)
        terms = of_ranks[0][number][0]
        whole = torch.full_like(case.embeddings, torch.nan, dtype=dtype)
        for rank in range(world_size):
            assert all(map(torch.equal, of_ranks[rank][number][0], terms)), (name, dtype, rank)
            mine = pixels_of(case, cuts, rank)
            where = (..., mine) if case.offsets is None else mine
            whole[where] = of_ranks[rank][number][1]
        assert_within_budget(case, Outcome(terms, whole), "mixed", f"{name} {dtype} {cuts}")
