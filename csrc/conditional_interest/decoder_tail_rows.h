// The decoder after the value projection on rows, recomputed for the backward: output projection,
// residual with the target item, conditional norm, FFN, norm (DTRN Eq. 7-8). Row = task * P + pair.
#pragma once

#include "attention_pool.h"
#include "feed_forward.h"
#include "self_attention_backward.h"

namespace mtlfast {
namespace MTLFAST_ISA {

template <int D>
struct TailScratch {
  float* head;         // [rows][D]
  float* item;         // [pairs][D]
  float* normalized2;  // [rows][D]
  float* rstd2;
  float* x3;  // the FFN's input
  float* normalized3;
  float* rstd3;
  float* hidden;  // [blocks][rows][kHidden]
  float *g3, *g2, *dh;
  float* operands;  // of both FFNs, for bfloat16: three matrices of it

  void layout(Arena& a, const Shape& s, int64_t rows) {
    const int64_t block = rows * D;
    head = a.take(block);
    item = a.take(block);
    normalized2 = a.take(block);
    rstd2 = a.take(rows + kLanes);
    x3 = a.take(block);
    normalized3 = a.take(block);
    rstd3 = a.take(rows + kLanes);
    hidden = a.take(rows * kHidden * s.blocks);
    g3 = a.take(block);
    g2 = a.take(block);
    dh = a.take(rows * kHidden);
  }
};

// From head and item to normalized3, keeping what the backward needs.
template <int D>
void decoder_tail_rows(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior,
                       int pairs, const TailScratch<D>& a, int64_t hidden_block_stride) {
  const int rows = p.tasks * pairs;
  for (int t = 0; t < p.tasks; ++t)
    std::memcpy(a.normalized2 + static_cast<int64_t>(t) * pairs * D, a.item,
                sizeof(float) * static_cast<size_t>(pairs) * D);
  project<D>(a.head, packed.do_t, rows, s, a.normalized2, a.normalized2);
  normalize_rows<D>(a.normalized2, rows, s.width, p.eps, a.rstd2);
  for (int t = 0; t < p.tasks; ++t)
    affine_rows<D>(a.normalized2 + static_cast<int64_t>(t) * pairs * D, pairs, s.width,
                   packed.scale_row(p, t, behavior, 2), packed.shift_row(p, t, behavior, 2),
                   a.x3 + static_cast<int64_t>(t) * pairs * D);
  feed_forward<D>(packed.decoder, s, a.x3, rows, a.normalized3, a.hidden, hidden_block_stride,
                  a.operands);
  normalize_rows<D>(a.normalized3, rows, s.width, p.eps, a.rstd3);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
