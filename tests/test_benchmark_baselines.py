"""What the benchmark compares, and on what: every implementation is right, every input is meant."""

from __future__ import annotations

from typing import Any

import bench_loss
import pytest
import torch
from measuring import baselines, exact, measure, timing, workloads
from measuring.workloads import Problem
from support.benchmarks import PROBLEMS

from discloss_cuda import reference


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return workloads.build(PROBLEMS[request.param], torch.float64, "cpu")


def test_exact_is_the_reference(problem: Problem) -> None:
    x, labels, ignored = problem.embeddings, problem.labels, problem.ignore_label
    loss: Any
    if problem.offsets is None:
        loss = reference.discriminative_loss(x, labels, ignore_label=ignored)
    else:
        loss = reference.discriminative_loss_packed(
            x, labels, problem.offsets, ignore_label=ignored
        )
    (grad,) = torch.autograd.grad(loss, x)
    errors = exact.compare(problem, exact.compute(problem), loss, grad)
    assert errors.loss < 1e-14
    assert errors.grad < 1e-12


def test_every_implementation_is_exact_in_float64(problem: Problem) -> None:
    torch.compiler.reset()
    expected = exact.compute(problem)
    everything = baselines.implementations(quick=False, backend="eager")
    assert len({implementation.name for implementation in everything}) == len(everything) == 10
    for implementation in everything:
        subject = timing.Subject(implementation.make(problem), problem.embeddings)
        loss = timing.both(subject)
        assert problem.embeddings.grad is not None
        errors = exact.compare(problem, expected, loss.detach(), problem.embeddings.grad)
        assert errors.loss < 1e-12, implementation.name
        assert errors.grad < 1e-11, implementation.name


@pytest.mark.filterwarnings("ignore")
def test_compiled_baseline_is_right() -> None:
    torch.compiler.reset()
    problem = workloads.build(PROBLEMS["ragged"], torch.float32, "cpu")
    expected = exact.compute(problem)
    compiled = baselines.implementations(quick=True)[-1]
    assert compiled.group == "torch.compile"
    contender = measure.Contender(compiled, problem)
    contender.check(expected, "cpu")
    assert contender.row["status"] == "ok", contender.row


def test_inputs() -> None:
    """Slots are the ranks of the ids in their image; ignored pixels have the last bin."""
    problem = workloads.build(PROBLEMS["ragged"], torch.float32, "cpu")
    assert (problem.images, problem.instances, problem.bins) == (2, 3, 4)
    assert problem.slots.tolist()[0] == [1, 1, 0, 0, 0, 3, 3, 2, 2, 2]
    assert problem.flat.tolist()[10:] == [4] * 8 + [7] * 2
    blocks = workloads.coherent(2, (32, 32), 36, blocks=2).ids
    assert [len(image.unique()) for image in blocks] == [36, 36]
    nuclei = next(w for w in workloads.WORKLOADS if w.name == "nuclei")
    assert workloads.build(nuclei, torch.bfloat16, "cpu").instances == 125


def test_workload_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_loss.main(["--device", "cpu", "--quick", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["nuclei", "nuclei-batch", "embryo-clip"]
    assert bench_loss.main(["--device", "cpu", "--workload", "vol*", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["volume", "volume-k10000"]
    with pytest.raises(SystemExit, match=r"expected one of .* got nothing"):
        bench_loss.main(["--device", "cpu", "--workload", "nothing"])
