"""Cards that the cost model knows, by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from tabulate import tabulate

from kfc_numba.kernels.rates import Rates


@dataclass(frozen=True)
class Card:
    """What a data sheet says. Rates of units are threads a clock and multiprocessor."""

    name: str
    capability: tuple[int, int]
    processors: int
    clock: float  # GHz, boost
    bandwidth: float  # GB/s
    teraflops: float  # of float32 without tensor cores, as the sheet has it
    float32: int
    float64: int
    integer: int
    special: int
    tf32: float  # TFLOP/s of dense products on tensor cores; 0 where there is no TF32
    source: str

    @property
    def tensor_rate(self) -> float:
        """TF32 multiply-adds a clock and multiprocessor, at the clock above."""
        return self.tf32 * 1000 / (2 * self.processors * self.clock)

    @property
    def peak(self) -> float:
        """float32 multiplications and additions a second, GFLOP/s, from units and clock."""
        return 2 * self.processors * self.float32 * self.clock

    @property
    def rates(self) -> Rates:
        """What the library would be told by the driver."""
        return Rates(self.peak * 1e9 / 2, self.bandwidth * 1e9, self.processors)

    @property
    def shared_bandwidth(self) -> float:
        """GB/s of shared memory of all multiprocessors together."""
        return self.processors * SHARED_BYTES * self.clock


#: Bytes a clock of the shared memory of a multiprocessor: 32 banks of 4 bytes. CUDA C++ Programming
#: Guide, "Shared Memory" of each compute capability.
SHARED_BYTES = 128
#: Rates of units: CUDA C++ Programming Guide, "Arithmetic Instructions", throughput of native
#: arithmetic instructions by compute capability. The rest: the documents named.
CARDS = {
    card.name: card
    for card in (
        Card("H100", (9, 0), 132, 1.98, 3350, 67, 128, 64, 64, 16, 495,
             "NVIDIA H100 Tensor Core GPU Datasheet, SXM"),
        Card("H200", (9, 0), 132, 1.98, 4800, 67, 128, 64, 64, 16, 495,
             "NVIDIA H200 Tensor Core GPU Datasheet, SXM"),
        Card("A100", (8, 0), 108, 1.41, 2039, 19.5, 64, 32, 64, 16, 156,
             "NVIDIA A100 Tensor Core GPU Datasheet, SXM 80 GB"),
        Card("RTX 4090", (8, 9), 128, 2.52, 1008, 82.6, 128, 2, 64, 16, 82.6,
             "NVIDIA Ada GPU Architecture, appendix A, GeForce RTX 4090"),
        Card("T4", (7, 5), 40, 1.59, 320, 8.1, 64, 2, 64, 16, 0,
             "NVIDIA T4 Tensor Core GPU Product Brief"),
    )
}  # fmt: skip


def table() -> str:
    """All cards, in Markdown."""
    rows = [
        (
            card.name,
            ".".join(map(str, card.capability)),
            card.processors,
            f"{card.clock:.2f}",
            f"{card.peak / 1000:.1f}",
            f"{card.tf32:g}" if card.tf32 else "",
            f"{card.bandwidth / 1000:.2f}",
            f"{card.shared_bandwidth / 1000:.1f}",
            card.source,
        )
        for card in CARDS.values()
    ]
    head = ("card", "capability", "multiprocessors", "GHz", "float32, TFLOP/s", "TF32, TFLOP/s",
            "memory, TB/s",
            "shared memory, TB/s", "data sheet")  # fmt: skip
    return tabulate(rows, head, "github", disable_numparse=True)
