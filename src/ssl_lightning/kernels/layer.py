"""The layer: a convolution that retains only some filters and filter-shape columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.kernels import compiled
from ssl_lightning.kernels.functional import call_operator, column_sparse_conv2d
from ssl_lightning.kernels.geometry import Geometry, check_pattern, index_problem

Index = Sequence[int] | Tensor


class ColumnSparseConv2d(nn.Module):
    """Convolve as :class:`torch.nn.Conv2d` with zeros in the weight, without computing the zeros.

    Rows are filters, columns are filter shapes: one input position of the kernel over all filters
    of a conv-group. The output has all filters; a removed one gives its bias. Values of the
    retained rows x retained columns are one flat parameter, ``values``; the buffers ``rows`` and
    ``columns`` hold their numbers, so a state dict and the constructor arguments of the dense layer
    rebuild it: a state dict with another pattern replaces the layer's pattern.

    Nothing is packed or cached, so weights may change at any time and in any way.

    Args:
        in_channels: channels of the input.
        out_channels: filters, retained or removed.
        kernel_size: height and width.
        stride: step between windows.
        padding: zeros at each side.
        dilation: step between kernel positions.
        groups: conv-groups.
        bias: learn one number per filter.
        rows: retained filters, ascending; None retains all.
        columns: retained columns, ascending, numbered
            ``(c * kernel_height + y) * kernel_width + x`` with ``c`` over all input channels; None
            retains all.
        relu: put zero in the place of what is negative in the output, which costs nothing here.
        device: of the parameters and buffers.
        dtype: of the parameters.

    Raises:
        ValueError: if sizes do not fit each other, or an index is out of range or repeated.

    Example:
        >>> conv = nn.Conv2d(2, 4, 3, padding=1)
        >>> with torch.no_grad():
        ...     conv.weight[1] = 0  # a row
        ...     _ = conv.weight[:, 0, 1:].zero_()  # six columns
        >>> sparse = ColumnSparseConv2d.from_conv(conv)
        >>> sparse
        ColumnSparseConv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), rows=3/4,
        columns=12/18)
        >>> x = torch.randn(1, 2, 5, 5)
        >>> torch.testing.assert_close(sparse(x), conv(x))
    """

    rows: Tensor
    columns: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        rows: Index | None = None,
        columns: Index | None = None,
        relu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.geometry = Geometry.of(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        self.relu = relu
        kept_rows = _index(rows, "rows", out_channels)
        kept_columns = _index(columns, "columns", self.geometry.num_columns)
        size = _num_values(self.geometry, kept_rows, kept_columns)
        self.register_buffer("rows", kept_rows.to(device))
        self.register_buffer("columns", kept_columns.to(device))
        self.values = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        shift = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.register_parameter("bias", shift if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as :class:`torch.nn.Conv2d` would with as many inputs as are retained."""
        for row, column, value in self.geometry.blocks(self.rows, self.columns):
            fan_in = max(column.stop - column.start, 1)
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(self.values.data[value], -bound, bound)
            if self.bias is not None:
                self.bias.data[self.rows[row]] = self.bias.new_empty(row.stop - row.start).uniform_(
                    -bound, bound
                )

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, rows: Index | None = None, columns: Index | None = None
    ) -> ColumnSparseConv2d:
        """Build the layer from a masked convolution; it computes the same.

        Args:
            conv: its weight is copied, not shared.
            rows: retained filters; None retains those that are not entirely zero.
            columns: retained columns; None retains those that are not zero in all filters of their
                conv-group.

        Raises:
            ValueError: if the convolution pads otherwise than with as many zeros on both sides, or
                something that is not zero is not in an index.
        """
        _check_padding_mode(conv)
        weight = conv.weight.detach().flatten(1)
        nonzero = (weight != 0).unflatten(0, (conv.groups, -1))
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _symmetric_padding(conv),
            _pair(conv.dilation),
            conv.groups,
            conv.bias is not None,
            nonzero.any(2).flatten().nonzero().flatten() if rows is None else rows,
            nonzero.any(1).flatten().nonzero().flatten() if columns is None else columns,
            False,
            conv.weight.device,
            conv.weight.dtype,
        )
        layer._copy(weight, conv.bias)
        if not torch.equal(layer.dense_weight().flatten(1), weight):
            raise ValueError(
                "ColumnSparseConv2d.from_conv: expected only zeros outside the retained `rows` and "
                "`columns`, got other weights there. Set them to zero first, or retain them."
            )
        layer.values.requires_grad_(conv.weight.requires_grad)
        return layer.train(conv.training)

    @torch.no_grad()
    def _copy(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the retained values from a ``(filters, columns of a conv-group)`` weight."""
        for row, column, value in self.geometry.blocks(self.rows, self.columns):
            inside = self.columns[column] % self.geometry.columns_per_group
            self.values[value] = weight[self.rows[row]][:, inside].flatten()
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
            self.bias.requires_grad_(bias.requires_grad)

    def dense_weight(self) -> Tensor:
        """Return the weight of the equal :class:`torch.nn.Conv2d`, with its zeros.

        Example:
            >>> layer = ColumnSparseConv2d(1, 2, (1, 2), rows=[1], columns=[0])
            >>> (layer.dense_weight() != 0).flatten(1).int()
            tensor([[0, 0],
                    [1, 0]], dtype=torch.int32)
        """
        g = self.geometry
        weight = self.values.new_zeros(g.out_channels, g.columns_per_group)
        for row, column, value in g.blocks(self.rows, self.columns):
            inside = self.columns[column] % g.columns_per_group
            block = self.values[value].view(row.stop - row.start, column.stop - column.start)
            weight = weight.index_put((self.rows[row][:, None], inside), block)
        return weight.view(g.out_channels, -1, *g.kernel_size)

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """Return the equal dense layer, with its zeros; nothing is shared.

        Raises:
            ValueError: if ReLU follows inside the layer.

        Example:
            >>> layer = ColumnSparseConv2d(2, 3, 3, padding=1, rows=[0, 2])
            >>> ColumnSparseConv2d.from_conv(layer.to_conv(), layer.rows, layer.columns)
            ColumnSparseConv2d(2, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), rows=2/3,
            columns=18/18)
        """
        if self.relu:
            raise ValueError(
                "ColumnSparseConv2d.to_conv: expected a layer without ReLU, got relu=True, which "
                "no convolution has. Set `relu = False` and put nn.ReLU behind the layer."
            )
        g, like = self.geometry, self.values
        conv = nn.Conv2d(
            g.in_channels,
            g.out_channels,
            g.kernel_size,
            g.stride,
            g.padding,
            g.dilation,
            g.groups,
            self.bias is not None,
            device=like.device,
            dtype=like.dtype,
        )
        conv.weight.copy_(self.dense_weight()).requires_grad_(like.requires_grad)
        if conv.bias is not None and self.bias is not None:
            conv.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H', W')``."""
        self.geometry.check_input(x.shape)
        own, buffers = self._parameters, self._buffers  # attributes cost as much as the call
        if "values" not in own or "bias" not in own:  # parametrised, or swapped for a call
            own = {"values": self.values, "bias": self.bias}
        values, bias = own["values"], own["bias"]
        rows, columns = buffers["rows"], buffers["columns"]
        assert values is not None
        assert rows is not None
        assert columns is not None
        return call_operator(x, values, bias, rows, columns, self.geometry, self.relu)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same in plain torch, differentiable to any order."""
        g = self.geometry
        return column_sparse_conv2d(
            x,
            self.values,
            self.bias,
            self.rows,
            self.columns,
            out_channels=g.out_channels,
            kernel_size=g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            relu=self.relu,
            implementation="reference",
        )

    def extra_repr(self) -> str:
        """Return sizes and how much is retained."""
        g = self.geometry
        parts = [f"{g.in_channels}, {g.out_channels}", f"kernel_size={g.kernel_size}"]
        parts.append(f"stride={g.stride}")
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        parts += [f"{n}={getattr(g, n)}" for n, v in defaults.items() if getattr(g, n) != v]
        parts += ["bias=False"] if self.bias is None else []
        parts += ["relu=True"] if self.relu else []
        parts.append(f"rows={self.rows.numel()}/{g.out_channels}")
        parts.append(f"columns={self.columns.numel()}/{g.num_columns}")
        return ", ".join(parts)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the stored pattern, then load as any module does."""
        names = [f"{prefix}{name}" for name in ("rows", "columns", "values")]
        if all(name in state_dict for name in names):
            rows, columns, values = (state_dict[name] for name in names)
            check_pattern(self.geometry, values, rows, columns)
            self.rows = self.rows.new_empty(rows.shape)
            self.columns = self.columns.new_empty(columns.shape)
            if values.shape != self.values.shape:
                self.values = nn.Parameter(
                    self.values.new_empty(values.shape), self.values.requires_grad
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _index(retained: Index | None, name: str, bound: int) -> Tensor:
    if retained is None:
        return torch.arange(bound)
    index = torch.as_tensor(retained, dtype=torch.int64).flatten().clone()
    inside = index.numel() == 0 or (int(index[0]) >= 0 and int(index[-1]) < bound)
    if not inside or not bool((index.diff() > 0).all()):
        raise ValueError(index_problem(name, bound))
    return index


def _num_values(geometry: Geometry, rows: Tensor, columns: Tensor) -> int:
    return sum(value.stop - value.start for _, _, value in geometry.blocks(rows, columns))


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _check_padding_mode(conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros":
        raise ValueError(
            "ColumnSparseConv2d.from_conv: expected a convolution that pads with zeros, got "
            f"padding_mode={conv.padding_mode!r}. Pad before the layer and use padding=0."
        )


def _symmetric_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the zeros at each side, also of ``"same"`` and ``"valid"``."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding != "same":
        return _pair(conv.padding)
    both = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if any(size % 2 for size in both):
        raise ValueError(
            "ColumnSparseConv2d.from_conv: expected as many zeros on both sides, got "
            f'padding="same" with the kernel {conv.kernel_size}, which pads one side more. Pad '
            "before the layer and use padding=0."
        )
    return both[0] // 2, both[1] // 2


def workspace_bytes(layer: ColumnSparseConv2d, x: Tensor) -> int:
    """Return the scratch memory of the compiled kernel beside input, weights and output.

    Summed over all threads that may run; 0 where the compiled kernel does not.

    Example:
        >>> layer, x = ColumnSparseConv2d(8, 4, 3, padding=1), torch.zeros(1, 8, 30, 30)
        >>> workspace_bytes(layer, x) < 8 * 9 * 30 * 30 * 4  # the lowered input
        True
    """
    if x.dtype not in compiled.DTYPES or x.device.type != "cpu":
        return 0
    return compiled.workspace_bytes(x, layer.values, layer.rows, layer.columns, layer.geometry)
