// The decoder after pooling: value and output projection, residual with the target item,
// conditional norm, FFN, conditional norm (DTRN Eq. 7-8). One (task, pair) per lane: column = task
// * P + pair.
#pragma once

#include "attention_pool.h"
#include "product_norm.h"

namespace mtlfast {
namespace MTLFAST_ISA {

constexpr int kTailRows = 128;
constexpr int64_t kTailStride =
    kTailRows + kLanes;  // not a power of two: columns spread over the cache

template <int D>
struct TailColumns {
  float* pooled;  // [heads][rows][D]
  float* item;    // [pairs][D]
  float* values;  // [columns][ld] one head's pooled vectors
  float* head;    // [columns][ld]
  float *items, *normalized2, *x3, *normalized3;
  float* hidden;  // [kHidden][kBlock]
  float* out;     // [rows][D]
  int64_t ld;

  void layout(Arena& a, const Shape& s, int64_t rows) {
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
    ld = padded + kLanes;
    const int64_t block = s.width.columns * ld + kLanes;
    pooled = a.take(s.heads * padded * D);
    item = a.take(padded * D);
    values = a.take(block);
    head = a.take(block);
    items = a.take(block);
    normalized2 = a.take(block);
    x3 = a.take(block);
    normalized3 = a.take(block);
    hidden = a.take(kHidden * kBlock);
    out = a.take(padded * D);
  }
};

// Each task's columns of src through that task's norm table. Whole vectors are written, so what
// spills over one task's last column is overwritten by the next task: src and dst must differ.
template <int D>
void affine_tasks(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                  int position, int pairs, const float* src, float* dst, int64_t ld) {
  for (int t = 0; t < p.tasks; ++t)
    affine_columns(src + t * pairs, ld, pairs, s.d, packed.scale_row(p, t, behavior, position),
                   packed.shift_row(p, t, behavior, position), dst + t * pairs, ld);
}

// From item and, where a pair has tokens, `pooled` or (when that is not given) `head`, the
// attention output before W^O, to the rows of `out`.
template <int D>
void decoder_tail(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                  int pairs, bool any_tokens, bool pooled, const TailColumns<D>& a) {
  const int rows = p.tasks * pairs;
  const int64_t ld = a.ld;
  for (int r = 0; r < pairs; r += kLanes)
    rows_to_columns<D>(a.item + static_cast<int64_t>(r) * D, s.width, a.items + r, ld);
  for (int k = 0; k < s.d; ++k)
    for (int t = 0; t < p.tasks; ++t)
      for (int c = 0; c < pairs; c += kLanes)
        store(a.normalized2 + k * ld + t * pairs + c, load(a.items + k * ld + c));
  if (any_tokens) {
    for (int h = 0; pooled && h < s.heads; ++h) {
      const float* vectors = a.pooled + static_cast<int64_t>(h) * rows * D;
      for (int r = 0; r < rows; r += kLanes)
        rows_to_columns<D>(vectors + static_cast<int64_t>(r) * D, s.width, a.values + r, ld);
      multiply<D>(packed.dv + static_cast<int64_t>(h) * s.head_dim * D, s.head_dim, s.d, a.values,
                  ld, rows, a.head + h * s.head_dim * ld, ld);
    }
    project_normalize<D>(packed.dout, s, p.eps, a.head, ld, rows, a.normalized2, a.normalized2,
                         nullptr);
  } else {
    normalize_columns(a.normalized2, ld, rows, s.d, p.eps, nullptr);
  }
  affine_tasks<D>(p, packed, s, behavior, 2, pairs, a.normalized2, a.x3, ld);
  feed_forward_normalize<D>(packed.decoder, s, p.eps, a.x3, ld, rows, a.hidden, a.normalized3);
  affine_tasks<D>(p, packed, s, behavior, 3, pairs, a.normalized3, a.x3, ld);
  columns_to_rows<D>(a.x3, ld, rows, s.width, a.out);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
