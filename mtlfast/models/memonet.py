"""MemoNet: an MLP on the fields and on what a codebook remembers of their crosses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.heads import HeadConfig, ShareBottomConfig
from mtlfast.interactions.config import largest_fields
from mtlfast.models.sfm import MTL, MTLConfig
from mtlfast.models.spec import DataSpec
from mtlfast.nn import InterestFunction, MultiHashCodebook
from mtlfast.nn.multi_hash_codebook import Hash, Restoring, Sharing, Shrinking


@dataclass(frozen=True)
class MemoNetModelConfig(MTLConfig):
    """Options of :class:`MemoNet`; those not listed here are :class:`MTLConfig`'s.

    Args:
        head: options of the multi-task head; MemoNet's MLP and one output per task by default.
        num_codewords: rows ``n`` of each codebook.
        codeword_dim: width ``c`` of a codeword and of a restored cross; ``embed_dim`` when None.
        num_hashes, orders, sharing, restoring, shrinking, temperature, hash: see
            :class:`mtlfast.nn.MultiHashCodebook`.
        key_fields: cross only pairs with at least one of these fields.
        num_key_fields: the same with so many of the fields with the largest vocabularies.
        codebook_init_std: standard deviation of the initial codewords.
        codebook_sparse_grad: sparse gradient of the codebooks.
    """

    embed_dim: int = 10
    head: HeadConfig = field(
        default_factory=lambda: ShareBottomConfig(bottom_units=(400, 400), tower_units=())
    )
    num_codewords: int = 1_000_000
    codeword_dim: int | None = None
    num_hashes: int = 2
    orders: tuple[int, ...] = (2,)
    sharing: Sharing = "shared"
    restoring: Restoring = "linear"
    shrinking: Shrinking = "attentive"
    temperature: float = 1.0
    hash: Hash = "mix64"
    key_fields: tuple[int, ...] | None = None
    num_key_fields: int | None = None
    codebook_init_std: float = 0.01
    codebook_sparse_grad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_codewords", self.num_codewords)
        check_count("num_hashes", self.num_hashes)
        if self.num_key_fields is not None:
            check_count("num_key_fields", self.num_key_fields)
            if self.key_fields is not None:
                raise bad("num_key_fields", "None where key_fields is given", self.num_key_fields)
        if not self.codebook_init_std >= 0:
            raise bad("codebook_init_std", "at least 0", self.codebook_init_std)


class MemoNet(MTL):
    """``head(flatten(E) || flatten(HCNet(ids, E)))`` (MemoNet, Zhang et al., CIKM 2023).

    Embeddings start at ``init_std / sqrt(d)`` and are multiplied by ``sqrt(d)``, as in the authors'
    code. With one task this is their model; several tasks share the MLP by default.

    Submodules: ``embedding``, ``memory`` (:class:`mtlfast.nn.MultiHashCodebook`), ``head``.

    Args:
        spec: sizes of the data.
        config: options; the defaults when None.
        backend: overrides ``config.backend``.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: MemoNetModelConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = MemoNetModelConfig() if config is None else config
        d, num_fields = config.embed_dim, len(spec.vocab_sizes)
        key_fields = config.key_fields
        if config.num_key_fields is not None:
            key_fields = largest_fields("num_key_fields", spec.vocab_sizes, config.num_key_fields)
        memory = MultiHashCodebook(
            num_fields,
            config.num_codewords,
            d if config.codeword_dim is None else config.codeword_dim,
            d,
            num_hashes=config.num_hashes,
            orders=config.orders,
            sharing=config.sharing,
            restoring=config.restoring,
            shrinking=config.shrinking,
            temperature=config.temperature,
            key_fields=key_fields,
            hash=config.hash,
            sparse_grad=config.codebook_sparse_grad,
            init_std=config.codebook_init_std,
            backend=backend if isinstance(backend, str) else config.backend,
        )
        rows = num_fields * len(config.orders)
        if config.shrinking == "none":
            rows = sum(memory.num_crosses)
        self._memory_width = rows * memory.out_dim
        super().__init__(spec, config, backend=backend)
        self.memory = memory
        self.scale = d**0.5
        with torch.no_grad():
            self.embedding.weight.div_(self.scale)

    def _head_input(self, config: MTLConfig) -> int:
        return self.input_dim + self._memory_width

    def logits(self, fields: Tensor, ids: Tensor) -> Tensor:
        fields = fields * self.scale
        memories = self.memory(ids, fields)
        return self.head(torch.cat((fields.flatten(1), memories.flatten(1)), dim=-1))
