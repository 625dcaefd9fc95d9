"""What a comparison of one architecture holds. Without Torch: docs/models.md is written and checked from the record."""

from __future__ import annotations

from dataclasses import dataclass

#: Bound of |ONNX - Torch| / |Torch|. Two layers are about a hundred roundings in a row on either side, each of at most
#: 6e-8 of its value: 6e-6 if none cancels, and float32 sums of up to 128 terms add about as much.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """Logits of the exported model beside Torch's: the largest |ONNX - Torch| / |Torch| (Frobenius norms) of a prompt
    alone, of a batch padded on the left, of two more steps of that batch. cache: names of a layer's tensors.
    """

    routers: list[str]
    moe_layers: int
    nodes: int
    moe_nodes: int
    cache: list[str]
    prefill: float
    padded: float
    decode: float

    @property
    def worst(self) -> float:
        """The largest of the three differences."""
        return max(self.prefill, self.padded, self.decode)

    @property
    def passed(self) -> bool:
        """Whether all are within the tolerance; a NaN is not."""
        return all(difference <= TOLERANCE for difference in (self.prefill, self.padded, self.decode))
