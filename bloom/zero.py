"""ZeRO: what data-parallel ranks divide of a model's state, and what of it lies in the host's memory. Torch-free.

Stage 1 divides the optimizer's state, 2 the gradients as well, 3 the weights, too, which are then gathered layer by
layer. Sources: Rajbhandari et al. 2020, ZeRO, section 5; Ren et al. 2021, ZeRO-Offload, for the host's part.
"""

from dataclasses import dataclass
from typing import Literal

from .layout import Layout

Offload = Literal["", "optimizer", "parameters"]
STAGES = (1, 2, 3)
OFFLOADS = ("optimizer", "parameters")
# Elements, of each stage from 2 up: of gradients that are reduced together.
BUCKET = 20_000_000
# Elements, of stage 3: of weights that may lie gathered at a time, beside the embedding, which the head needs as well.
LIVE = 50_000_000


@dataclass(frozen=True, slots=True)
class Zero:
    """offload: "optimizer", its state and update; "parameters", these and the weights' partitions (stage 3).

    Raises ValueError, naming value and remedy, for what is none.
    """

    stage: int = 1
    offload: Offload = ""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"zero_stage={self.stage} is not known; choose 1, 2 or 3")
        if self.offload and self.offload not in OFFLOADS:
            raise ValueError(f"offload={self.offload[:40]!r} is not known; choose {' or '.join(OFFLOADS)}, or nothing")
        if self.offload == "parameters" and self.stage != 3:
            remedy = "set zero_stage=3, or offload=optimizer"
            raise ValueError(f"offload=parameters with zero_stage={self.stage}: ranks keep whole weights; {remedy}")

    def refusal(self, layout: Layout, optimizer: str = "adamw") -> str:
        """Why a run cannot have it, with the remedy; "" when it can."""
        asked = f"offload={self.offload}" if self.stage == 1 and self.offload else f"zero_stage={self.stage}"
        if layout.pp > 1 and (self.stage > 1 or self.offload):
            other = Layout(tp=layout.tp, dp=layout.pp * layout.dp)
            return f"{asked} with layout {layout}: stages need zero_stage=1 without offload; set these, or use {other}"
        if optimizer == "muon" and self.offload:
            return f"offload={self.offload} with muon, which works where the weights are; use adamw, or no offload"
        if optimizer == "muon" and self.stage == 3:
            return "zero_stage=3 with muon, which needs whole matrices; use adamw, or zero_stage=2"
        return ""
