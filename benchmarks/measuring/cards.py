"""Rated figures of a few cards, and the cycles of one multiprocessor that counts come to."""

from __future__ import annotations

from dataclasses import dataclass

from .counts import KernelCounts

SECTOR = 32  # bytes
ISSUED_A_CYCLE = 4  # warp instructions of a multiprocessor: four schedulers
WAVEFRONTS_A_CYCLE = 1


@dataclass(frozen=True)
class Card:
    """As the vendor rates it."""

    name: str
    multiprocessors: int
    gigahertz: float  # boost
    gigabytes_per_second: float
    source: str

    def memory_cycles(self, counts: KernelCounts) -> float:
        """Until a multiprocessor's share of the memory's rate has moved the sectors."""
        bytes_a_cycle = self.gigabytes_per_second / self.gigahertz / self.multiprocessors
        return counts.sectors * SECTOR / bytes_a_cycle

    def issue_cycles(self, counts: KernelCounts) -> float:
        return counts.sass / ISSUED_A_CYCLE

    def shared_cycles(self, counts: KernelCounts) -> float:
        return counts.wavefronts / WAVEFRONTS_A_CYCLE

    def bound(self, counts: KernelCounts) -> tuple[str, float]:
        """Which of the three takes most cycles, and its ratio to the memory's."""
        cycles = {
            "memory": self.memory_cycles(counts),
            "issue": self.issue_cycles(counts),
            "shared memory": self.shared_cycles(counts),
        }
        largest = max(cycles, key=lambda name: cycles[name])
        return largest, cycles[largest] / max(cycles["memory"], 1e-9)


# Clocks where no table has one: the rated FP32 rate is multiprocessors x 128 x 2 x clock.
CARDS = {
    card.name: card
    for card in (
        Card("H200", 132, 1.98, 4800, "NVIDIA H200 datasheet: 4.8 TB/s, 67 TFLOPS FP32"),
        Card("A100", 108, 1.41, 2039, "NVIDIA A100 80GB datasheet: 2,039 GB/s, 19.5 TFLOPS FP32"),
        Card("RTX 4090", 128, 2.52, 1008, "NVIDIA Ada whitepaper: 1,008 GB/s, 2,520 MHz boost"),
    )
}
