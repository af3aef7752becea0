"""The space in which synthetic values live, and the way back to values a person understands.

Natural values are what the domain shows and stores in its ecosystem (pixels in [0, 1]); model values are
what networks see. A mismatch between the two at distillation and at evaluation costs accuracy silently,
so a `Space` travels inside every artifact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ArtifactError, ConfigError


@dataclass(frozen=True)
class Space:
    """An invertible map between natural and model values.

    Args:
        mean: per-channel mean in natural values, or empty for none.
        std: per-channel standard deviation, or empty for none.
        low: smallest natural value that means something, -inf for any; with ``high`` it bounds clamping and display.
        high: largest natural value that means something.
        whitening: name of the whitening definition, empty for none (see `ddfed_image.zca`).
        tensors: with whitening, ``center`` (d,) and ``matrix`` (d, d), float32: model = (x - center) @ matrix.

    Shapes: values are (rows, channels, ...); the channel axis is 1.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    whitening: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ConfigError(f"a space needs as many means as deviations, got {self.mean} and {self.std}")
        if self.whitening and set(self.tensors) != {"center", "matrix"}:
            raise ArtifactError(
                f"whitened space {self.whitening!r} needs the tensors 'center' and 'matrix', got {sorted(self.tensors)}"
            )

    @property
    def kind(self) -> str:
        """``"whitened"``, ``"affine"`` or ``"identity"``, for people."""
        return "whitened" if self.whitening else "affine" if self.mean else "identity"

    def agrees(self, other: Space, tolerance: float = 1e-3) -> bool:
        """Whether both map alike: equal fields, and whitening within ``tolerance`` relative (it is fitted to data)."""
        return self == other and all(
            mine.shape == other.tensors[name].shape
            and float((mine - other.tensors[name]).norm()) <= tolerance * float(mine.norm())
            for name, mine in self.tensors.items()
        )

    def encode(self, natural: Tensor) -> Tensor:
        """Natural to model values, differentiable, same shape."""
        x = natural
        if self.mean:
            x = (x - self._channel(self.mean, x)) / self._channel(self.std, x)
        if self.whitening:
            flat = x.flatten(1) - self.tensors["center"].to(x)
            x = (flat @ self.tensors["matrix"].to(x)).view_as(x)
        return x

    def decode(self, model: Tensor) -> Tensor:
        """Model to natural values: the inverse of `encode`. Values may leave [low, high]; clamp for display."""
        x = model
        if self.whitening:
            # Solved in float64: whitening matrices are ill-conditioned by design.
            flat = torch.linalg.solve(self.tensors["matrix"].double().T, x.flatten(1).double().T).T
            x = (flat.to(x.dtype) + self.tensors["center"].to(x)).view_as(x)
        if self.mean:
            x = x * self._channel(self.std, x) + self._channel(self.mean, x)
        return x

    def clamp(self, model: Tensor) -> Tensor:
        """Model values whose natural values lie in [low, high].

        Raises:
            ConfigError: the space is whitened; a box in pixels is no box there.
        """
        if self.whitening:
            raise ConfigError("clamping is undefined in a whitened space; set clamp = false or whitening = ''")
        if not self.mean:
            return model.clamp(self.low, self.high)
        low = (self.low - self._channel(self.mean, model)) / self._channel(self.std, model)
        high = (self.high - self._channel(self.mean, model)) / self._channel(self.std, model)
        return torch.minimum(torch.maximum(model, low), high)

    @staticmethod
    def _channel(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, *[1] * (like.ndim - 2))

    def to_card(self) -> dict[str, Any]:
        """JSON part of the space; the tensors are stored beside it."""
        return {
            "kind": self.kind,
            "mean": list(self.mean),
            "std": list(self.std),
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "whitening": self.whitening,
        }

    @classmethod
    def from_card(cls, card: dict[str, Any], tensors: dict[str, Tensor]) -> Space:
        """Inverse of `to_card`. Raises `ArtifactError` when a field is missing."""
        try:
            return cls(
                mean=tuple(card["mean"]),
                std=tuple(card["std"]),
                low=-math.inf if card["low"] is None else card["low"],
                high=math.inf if card["high"] is None else card["high"],
                whitening=card["whitening"],
                tensors=tensors,
            )
        except KeyError as missing:
            raise ArtifactError(f"the card's space lacks the field {missing}") from None
