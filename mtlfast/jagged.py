"""JaggedSequences: all behavior sequences of a batch, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import bad, can_read, check_offsets, describe, number, require_tensor, shape_text

_INDEX_DTYPES = (torch.int32, torch.int64)


class JaggedSequences:
    """The ``M`` behavior sequences of ``U`` users, concatenated behavior-major.

    Args:
        values: ``[N, ...]``, one row per event: item ids ``[N]`` or embeddings ``[N, d]``.
        offsets: ``[M*U+1]``, int32 or int64. Segment ``s = b*U + u`` (behavior ``b`` of user ``u``)
            owns the rows ``offsets[s]:offsets[s+1]``, oldest event first.
        num_behaviors: ``M >= 1``.
        max_len: an upper bound of every sequence length; it need not be tight.

    This is the key-major layout of TorchRec's KeyedJaggedTensor. Shapes, dtypes and devices are
    checked here; the *data* of ``offsets`` are checked by the ops that read them, or by
    :meth:`validate`. A registered pytree: torch.compile, torch.export and ``tree_map`` see
    ``values``, ``offsets`` and ``max_len`` as leaves.

    Raises:
        ValueError: wrong shapes, dtypes, devices or counts.
    """

    values: Tensor
    offsets: Tensor
    num_behaviors: int
    max_len: int

    def __init__(self, values: Tensor, offsets: Tensor, num_behaviors: int, max_len: int) -> None:
        require_tensor("values", values)
        require_tensor("offsets", offsets)
        if values.dim() < 1:
            raise bad("values", "shape [N, ...]", "a tensor without dimensions")
        if offsets.dtype not in _INDEX_DTYPES:
            raise bad("offsets", "dtype int32 or int64", describe(offsets))
        _check_count("num_behaviors", num_behaviors, 1)
        _check_count("max_len", max_len, 0)
        if offsets.dim() != 1 or offsets.shape[0] < 1:
            raise bad("offsets", "shape [M*U+1]", f"shape {shape_text(offsets)}")
        if (offsets.shape[0] - 1) % num_behaviors != 0:
            raise bad(
                "offsets",
                f"shape [M*U+1] with M = num_behaviors = {number(num_behaviors)}",
                f"shape {shape_text(offsets)}",
            )
        if offsets.device != values.device:
            raise bad("offsets", f"device {values.device} (that of values)", offsets.device)
        self.values = values
        self.offsets = offsets
        self.num_behaviors = num_behaviors
        self.max_len = max_len

    # ---- constructors ----

    @classmethod
    def from_lengths(
        cls, values: Tensor, lengths: Tensor, *, max_len: int | None = None
    ) -> JaggedSequences:
        """From rows already behind each other and ``lengths [M, U]`` (int32 or int64, kept).

        Without ``max_len`` the longest length is read back to the host.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit together.
        """
        _check_lengths(lengths)
        if max_len is None:
            max_len = _longest(lengths)
        return cls(values, _offsets_of(lengths), lengths.shape[0], max_len)

    @classmethod
    def from_padded(cls, padded: Sequence[Tensor], lengths: Tensor) -> JaggedSequences:
        """From ``M`` right-padded tensors ``[U, L_b, ...]`` and ``lengths [M, U]``.

        The valid rows are ``padded[b][u, :lengths[b, u]]``; what stands behind them is dropped and
        gets no gradient. Reads ``lengths`` back to the host.

        Raises:
            ValueError: shapes that do not fit together, or a length outside ``[0, L_b]``.
        """
        _check_lengths(lengths)
        padded = list(padded)
        num_behaviors, num_users = lengths.shape
        if len(padded) != num_behaviors:
            raise bad("padded", f"{num_behaviors} tensors, one per row of lengths", len(padded))
        rows = []
        for b, (block, length) in enumerate(zip(padded, lengths, strict=True)):
            require_tensor(f"padded[{b}]", block)
            if block.dim() < 2 or block.shape[0] != num_users:
                raise bad(
                    f"padded[{b}]",
                    f"shape [U = {number(num_users)}, L, ...]",
                    f"shape {shape_text(block)}",
                )
            if block.shape[2:] != padded[0].shape[2:] or block.dtype != padded[0].dtype:
                raise bad(
                    f"padded[{b}]", f"row shape and dtype of {describe(padded[0])}", describe(block)
                )
            if block.device != lengths.device:
                raise bad(f"padded[{b}]", f"device {lengths.device} (of lengths)", block.device)
            width = block.shape[1]
            outside = (length < 0) | (length > width)
            if outside.any():
                u = int(outside.nonzero()[0].item())
                raise bad(
                    "lengths",
                    f"values in [0, {width}], the width of padded[{b}]",
                    f"lengths[{b}, {u}] = {length[u].item()}",
                )
            rows.append(block[_valid(length, width)])
        max_len = max(block.shape[1] for block in padded)
        return cls(torch.cat(rows), _offsets_of(lengths), num_behaviors, max_len)

    @classmethod
    def from_nested(cls, nested: Sequence[Any], *, max_len: int | None = None) -> JaggedSequences:
        """From ``M`` jagged nested tensors ``[U, j, ...]``, one per behavior.

        Without ``max_len`` the longest length is read back to the host, unless the nested tensors
        already know it.

        Raises:
            ValueError: no tensor, one that is not jagged in dimension 1, or different numbers of
                users.
        """
        nested = list(nested)
        if not nested:
            raise bad("nested", "at least one jagged nested tensor", "an empty list")
        values, lengths, longest = [], [], 0
        for b, tensor in enumerate(nested):
            if getattr(tensor, "layout", None) is not torch.jagged:
                raise bad(f"nested[{b}]", "a tensor of layout torch.jagged", describe(tensor))
            if getattr(tensor, "_ragged_idx", 1) != 1:
                raise bad(f"nested[{b}]", "shape [U, j, ...], ragged in dimension 1", "another")
            if tensor.shape[0] != nested[0].shape[0]:
                raise bad(f"nested[{b}]", f"{nested[0].shape[0]} sequences", tensor.shape[0])
            rows, starts, length = tensor.values(), tensor.offsets(), tensor.lengths()
            if length is None:
                length = starts.diff()
            else:  # a view with holes between its sequences
                rows = rows[rows_of_segments(starts[:-1], length)]
            values.append(rows)
            lengths.append(length)
            if max_len is None:
                longest = max(longest, _known_max_len(tensor, length))
        return cls.from_lengths(
            torch.cat(values),
            torch.stack(lengths),
            max_len=longest if max_len is None else max_len,
        )

    @classmethod
    def from_kjt(
        cls, kjt: Any, *, keys: Iterable[str] | None = None, max_len: int | None = None
    ) -> JaggedSequences:
        """From a TorchRec KeyedJaggedTensor or anything like it; torchrec is not imported.

        Behaviors are the keys in their order, and nothing is copied. ``keys`` picks and orders some
        of them, which copies. Without ``max_len`` the longest length is read back to the host.

        Raises:
            ValueError: no such tensor, a stride of its own for each key, or unknown keys.
        """
        for method in ("keys", "values", "offsets"):
            if not callable(getattr(kjt, method, None)):
                raise bad("kjt", "an object with keys(), values() and offsets()", describe(kjt))
        if getattr(kjt, "variable_stride_per_key", lambda: False)():
            raise bad("kjt", "the same number of users for every key", "a variable stride per key")
        all_keys = list(kjt.keys())
        whole = cls(kjt.values(), kjt.offsets(), len(all_keys), 0 if max_len is None else max_len)
        if keys is not None:
            chosen = list(keys)
            missing = [key for key in chosen if key not in all_keys]
            if missing or not chosen:
                raise bad("keys", f"some of {all_keys}", chosen)
            order = torch.tensor([all_keys.index(key) for key in chosen], device=whole.device)
            lengths = whole.lengths()[order]
            starts = whole.offsets[:-1].view(whole.num_behaviors, whole.num_users)[order]
            rows = whole.values[rows_of_segments(starts.reshape(-1), lengths.reshape(-1))]
            return cls.from_lengths(rows, lengths, max_len=max_len)
        if max_len is None:
            whole.max_len = _longest(whole.lengths())
        return whole

    # ---- what is inside ----

    @property
    def num_users(self) -> int:
        """``U``."""
        return (self.offsets.shape[0] - 1) // self.num_behaviors

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of ``values``."""
        return self.values.dtype

    def lengths(self) -> Tensor:
        """``[M, U]``, in the dtype of ``offsets``."""
        return self.offsets.diff().view(self.num_behaviors, self.num_users)

    def segment_ids(self) -> Tensor:
        """``[N]`` int64: the segment ``b*U + u`` each row belongs to. No host sync."""
        rows = torch.arange(self.values.shape[0], device=self.device, dtype=self.offsets.dtype)
        # right=True skips the empty segments that start at the same row.
        return torch.searchsorted(self.offsets, rows, right=True) - 1

    def positions(self) -> Tensor:
        """``[N]`` int64: the place of each row in its sequence, 0 = oldest. No host sync."""
        rows = torch.arange(self.values.shape[0], device=self.device)
        return rows - self.offsets[self.segment_ids()]

    def behavior(self, b: int) -> JaggedSequences:
        """The sequences of one behavior (a view). Reads two offsets back to the host."""
        if not 0 <= b < self.num_behaviors:
            raise bad("b", f"a behavior in [0, {self.num_behaviors})", b)
        offsets = self.offsets[b * self.num_users : (b + 1) * self.num_users + 1]
        values = self.values[int(offsets[0].item()) : int(offsets[-1].item())]
        return JaggedSequences(values, offsets - offsets[0], 1, self.max_len)

    def validate(self) -> JaggedSequences:
        """Checks the data of ``offsets`` (a host sync on CUDA) and returns self.

        Raises:
            ValueError: offsets that decrease, do not start at 0 or do not end at ``N``; a sequence
                longer than ``max_len``.
        """
        check_offsets(self.offsets, self.values.shape[0], self.num_behaviors, self.max_len)
        return self

    # ---- conversions ----

    def with_values(self, values: Tensor) -> JaggedSequences:
        """The same structure around other rows, for example their embeddings ``[N, d]``.

        Raises:
            ValueError: another number of rows.
        """
        require_tensor("values", values)
        if values.dim() < 1 or values.shape[0] != self.values.shape[0]:
            raise bad(
                "values",
                f"shape [N = {number(self.values.shape[0])}, ...]",
                f"shape {shape_text(values)}",
            )
        return JaggedSequences(values, self.offsets, self.num_behaviors, self.max_len)

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> JaggedSequences:
        """Moves everything to ``device``; casts only ``values`` to ``dtype``."""
        values = self.values.to(device=device, dtype=dtype, non_blocking=non_blocking)
        offsets = self.offsets.to(device=device, non_blocking=non_blocking)
        return JaggedSequences(values, offsets, self.num_behaviors, self.max_len)

    def pin_memory(self) -> JaggedSequences:
        """A copy in page-locked memory, for asynchronous copies to a GPU."""
        return JaggedSequences(
            self.values.pin_memory(), self.offsets.pin_memory(), self.num_behaviors, self.max_len
        )

    def to_padded(
        self, *, widths: Sequence[int] | None = None, padding: float = 0
    ) -> tuple[list[Tensor], Tensor]:
        """``(padded, lengths)`` as :meth:`from_padded` takes them; valid rows come back exactly.

        ``padded[b]`` is ``[U, widths[b], ...]``, filled with ``padding`` behind the valid rows; by
        default every width is ``max_len``. No host sync. On CPU a width smaller than a real length
        is a ValueError; elsewhere such a sequence loses its newest rows.
        """
        if widths is None:
            widths = [self.max_len] * self.num_behaviors
        if len(widths) != self.num_behaviors:
            raise bad("widths", f"{self.num_behaviors} widths, one per behavior", len(widths))
        lengths = self.lengths()
        if can_read(self.offsets):
            self.validate()
            for b, (length, width) in enumerate(zip(lengths, widths, strict=True)):
                if length.numel() and int(length.max()) > width:
                    raise bad(f"widths[{b}]", f"at least {int(length.max())}", width)
        # One more row to point at, so that padding needs neither a mask nor a non-empty `values`.
        rows = self.values.shape[0]
        pad_row = self.values.new_full((1, *self.values.shape[1:]), padding)
        extended = torch.cat([self.values, pad_row])
        starts = self.offsets[:-1].view(self.num_behaviors, self.num_users)
        padded = []
        for start, length, width in zip(starts, lengths, widths, strict=True):
            column = torch.arange(width, device=self.device)
            index = torch.where(_valid(length, width), start[:, None] + column, rows)
            padded.append(extended[index.clamp(0, rows)])
        return padded, lengths

    def to_nested(self) -> list[Tensor]:
        """``M`` jagged nested tensors ``[U, j, ...]``. Reads ``M`` offsets back to the host."""
        blocks = [self.behavior(b) for b in range(self.num_behaviors)]
        return [
            torch.nested.nested_tensor_from_jagged(block.values, offsets=block.offsets)
            for block in blocks
        ]

    def __repr__(self) -> str:
        return (
            f"JaggedSequences(num_behaviors={self.num_behaviors}, num_users={self.num_users}, "
            f"max_len={self.max_len}, values={describe(self.values)})"
        )


def require_behaviors(sequences: object, num_behaviors: int) -> None:
    """Raises ValueError unless these are sequences of so many behaviors."""
    if not isinstance(sequences, JaggedSequences):
        raise bad("sequences", "a JaggedSequences", describe(sequences))
    if sequences.num_behaviors != num_behaviors:
        raise bad("sequences", f"{num_behaviors} behaviors", sequences.num_behaviors)


def of_users(sequences: JaggedSequences, users: Tensor) -> JaggedSequences:
    """The sequences of ``users``, int64 ``[n]``, in this order; a user may come several times."""
    starts = sequences.offsets[:-1].view(sequences.num_behaviors, -1)[:, users]
    lengths = sequences.lengths()[:, users]
    rows = rows_of_segments(starts.flatten(), lengths.flatten())
    return JaggedSequences.from_lengths(sequences.values[rows], lengths, max_len=sequences.max_len)


def _check_count(argument: str, value: object, least: int) -> None:
    # A SymInt is what max_len becomes inside a traced graph; it cannot be compared there.
    if isinstance(value, torch.SymInt):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad(argument, "an int", type(value).__name__)
    if value < least:
        raise bad(argument, f"at least {least}", value)
    if value >= 2**63:
        raise bad(argument, "less than 2**63", value)


def _check_lengths(lengths: Tensor) -> None:
    require_tensor("lengths", lengths)
    if lengths.dim() != 2 or lengths.shape[0] < 1:
        raise bad("lengths", "shape [M, U] with M >= 1", f"shape {shape_text(lengths)}")
    if lengths.dtype not in _INDEX_DTYPES:
        raise bad("lengths", "dtype int32 or int64", describe(lengths))


def _longest(lengths: Tensor) -> int:
    return max(int(lengths.max().item()), 0) if lengths.numel() else 0


def _offsets_of(lengths: Tensor) -> Tensor:
    flat = lengths.reshape(-1)
    return torch.cat([flat.new_zeros(1), flat.cumsum(0, dtype=flat.dtype)])


def _valid(length: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=length.device) < length[:, None]


def rows_of_segments(starts: Tensor, lengths: Tensor) -> Tensor:
    """The row numbers of all segments ``starts[s] : starts[s] + lengths[s]``, in order."""
    packed = lengths.cumsum(0) - lengths
    row = torch.repeat_interleave(starts - packed, lengths)
    return row + torch.arange(row.shape[0], device=row.device)


def _known_max_len(nested: Tensor, length: Tensor) -> int:
    known = getattr(nested, "_maybe_max_seqlen", None)
    return known if isinstance(known, int) else _longest(length[None])


def _flatten(sequences: JaggedSequences) -> tuple[list[Any], int]:
    return [sequences.values, sequences.offsets, sequences.max_len], sequences.num_behaviors


def _flatten_with_keys(sequences: JaggedSequences) -> tuple[list[Any], int]:
    leaves, context = _flatten(sequences)
    names = [pytree.GetAttrKey(name) for name in ("values", "offsets", "max_len")]
    return list(zip(names, leaves, strict=True)), context


def _unflatten(leaves: Iterable[Any], num_behaviors: int) -> JaggedSequences:
    # Unchecked: pytree functions put anything at a leaf (shape specs, None, tracing wrappers).
    sequences = object.__new__(JaggedSequences)
    sequences.values, sequences.offsets, sequences.max_len = leaves
    sequences.num_behaviors = num_behaviors
    return sequences


# max_len is a leaf, not context: an exported program must accept batches with another bound.
pytree.register_pytree_node(
    JaggedSequences,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="mtlfast.JaggedSequences",
    to_dumpable_context=lambda num_behaviors: num_behaviors,
    from_dumpable_context=lambda num_behaviors: int(num_behaviors),
)

# Lets torch.load and torch.export.load read files that hold a batch, with weights_only=True.
torch.serialization.add_safe_globals([JaggedSequences])
