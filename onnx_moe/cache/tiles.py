"""Tiles of an expert's weight matrix."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_moe.errors import InvalidInputError


@dataclass(frozen=True)
class TileKey:
    """One tile of one expert of one layer."""

    layer_idx: int
    expert_id: int
    tile_idx: int

    def __str__(self) -> str:
        return f"tile {self.tile_idx} of expert {self.expert_id} of layer {self.layer_idx}"


class TileCoordinator:
    """Numbers the tiles of a matrix row by row; those at its lower and right edges may be smaller.

    weight_shape: rows (outputs) and columns of the matrix; tile_shape: of a tile. Raises InvalidInputError for sizes
    below 1.
    """

    def __init__(self, weight_shape: tuple[int, int], tile_shape: tuple[int, int] = (64, 64)) -> None:
        for name, shape in (("weight_shape", weight_shape), ("tile_shape", tile_shape)):
            if len(shape) != 2 or min(shape) < 1:
                raise InvalidInputError(f"{name} is {shape}, but must be (rows, columns), each at least 1.")
        self.weight_shape = weight_shape
        self.tile_shape = tile_shape
        self.num_row_tiles, self.num_col_tiles = (
            -(-size // tile) for size, tile in zip(weight_shape, tile_shape, strict=True)
        )
        self.num_tiles = self.num_row_tiles * self.num_col_tiles

    def tile_to_coords(self, tile_idx: int) -> tuple[int, int]:
        """Row and column of a tile, in tiles; InvalidInputError for a number that no tile has."""
        if not 0 <= tile_idx < self.num_tiles:
            raise InvalidInputError(f"tile_idx is {tile_idx}, but tiles are numbered 0 to {self.num_tiles - 1}.")
        return divmod(tile_idx, self.num_col_tiles)

    def coords_to_tile(self, row_tile: int, col_tile: int) -> int:
        """The number of a tile at a row and column, in tiles; InvalidInputError outside the matrix."""
        for name, value, count in (
            ("row_tile", row_tile, self.num_row_tiles),
            ("col_tile", col_tile, self.num_col_tiles),
        ):
            if not 0 <= value < count:
                raise InvalidInputError(f"{name} is {value}, but must be 0 to {count - 1}.")
        return row_tile * self.num_col_tiles + col_tile

    def tile_bounds(self, tile_idx: int) -> tuple[int, int, int, int]:
        """(first row, end row, first column, end column) of a tile; the ends are exclusive."""
        row_tile, col_tile = self.tile_to_coords(tile_idx)
        (tile_rows, tile_columns), (rows, columns) = self.tile_shape, self.weight_shape
        row, column = row_tile * tile_rows, col_tile * tile_columns
        return row, min(row + tile_rows, rows), column, min(column + tile_columns, columns)

    def all_tile_indices(self) -> list[int]:
        """Every tile's number."""
        return list(range(self.num_tiles))

    def tiles_for_output_range(self, out_start: int, out_end: int) -> list[int]:
        """Tiles that hold rows out_start … out_end − 1; none for an empty range.

        Raises InvalidInputError for a range that is not inside the matrix.
        """
        if not 0 <= out_start <= out_end <= self.weight_shape[0]:
            raise InvalidInputError(
                f"the output range is {out_start} to {out_end}, but must lie within 0 to {self.weight_shape[0]}."
            )
        if out_start == out_end:
            return []
        tile_rows = self.tile_shape[0]
        first = out_start // tile_rows * self.num_col_tiles
        end = -(-out_end // tile_rows) * self.num_col_tiles
        return list(range(first, end))
