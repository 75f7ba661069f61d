"""Sizes that images are resized to: by the decoders on every read, or once by `pack`. Pure arithmetic."""

from dataclasses import dataclass

from fsl_dist.errors import RequestError


def extents_of_shorter(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) with the shorter side `shorter` pixels; the longer one is rounded, halves up."""
    scale = shorter / min(height, width)
    return max(shorter, int(height * scale + 0.5)), max(shorter, int(width * scale + 0.5))


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSize:
    """The size at which `pack` stores images; both None: unchanged. RequestError if both are set."""

    shorter: int | None = None
    """pixels of the shorter side, ≥ 1; the aspect ratio is kept"""
    exact: tuple[int, int] | None = None
    """(height, width) in pixels, ≥ 1, ignoring the aspect ratio"""

    def __post_init__(self) -> None:
        if self.shorter is not None and self.exact is not None:
            raise RequestError(
                f"resize_shorter={self.shorter} and resize={self.exact[0]}x{self.exact[1]} exclude each other; "
                "leave one out"
            )

    def extents(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) to store an image at; None if it is stored unchanged. Images are never enlarged."""
        if self.shorter is not None and min(height, width) > self.shorter:
            return extents_of_shorter(height, width, self.shorter)
        if self.exact is not None and (height > self.exact[0] or width > self.exact[1]):
            return min(height, self.exact[0]), min(width, self.exact[1])
        return None

    @property
    def record(self) -> dict[str, object]:
        """As a catalogue's options store it."""
        return {"resize_shorter": self.shorter, "resize": self.exact}
