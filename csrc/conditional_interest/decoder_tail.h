// The decoder after pooling: value and output projection, residual with the target item, conditional
// norm, FFN, conditional norm (DTRN Eq. 7-8), for a group of (task, pair) rows: row = task * P + pair.
#pragma once

#include "attention_pool.h"
#include "feed_forward.h"
#include "self_attention.h"

namespace mtlfast {
namespace MTLFAST_ISA {

template <int D>
struct TailScratch {
  float* pooled;      // [heads][rows][D]
  float* head;        // [rows][D]
  float* item;        // [pairs][D]
  float* normalized2;  // [rows][D]
  float* rstd2;
  float* x3;  // the FFN's input
  float* normalized3;
  float* rstd3;
  float* hidden;  // [rows][kHidden], or [blocks][rows][kHidden] for the backward
  float *g3, *g2, *dh;

  void layout(Arena& a, const Shape& s, int64_t rows, bool backward) {
    const int64_t block = rows * D;
    pooled = a.take(s.heads * block);
    head = a.take(block);
    item = a.take(block);
    normalized2 = a.take(block);
    rstd2 = a.take(rows + kLanes);
    x3 = a.take(block);
    normalized3 = a.take(block);
    rstd3 = a.take(rows + kLanes);
    hidden = a.take(rows * kHidden * (backward ? s.blocks : 1));
    g3 = g2 = dh = nullptr;
    if (!backward) return;
    g3 = a.take(block);
    g2 = a.take(block);
    dh = a.take(rows * kHidden);
  }
};

// pooled <- G1 * pooled + Bt1 for the pairs with tokens (already G1-free sums of normalized rows), zero
// for the others: an empty key set attends to nothing, and not to the shift either (spec 4.5).
template <int D>
void affine_pooled(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior, int pairs,
                   const int* lengths, float* pooled) {
  const int64_t rows = static_cast<int64_t>(p.tasks) * pairs;
  for (int h = 0; h < s.heads; ++h)
    for (int t = 0; t < p.tasks; ++t) {
      const float* scale = packed.scale_row(p, t, behavior, 1);
      const float* shift = packed.shift_row(p, t, behavior, 1);
      for (int i = 0; i < pairs; ++i) {
        float* row = pooled + (h * rows + static_cast<int64_t>(t) * pairs + i) * D;
        for (int c = 0; c < s.width.columns; c += kLanes)
          store(row + c, lengths[i] == 0 ? zero() : load(row + c) * load(scale + c) + load(shift + c));
      }
    }
}

// head <- the value projection of each head's pooled vector.
template <int D>
void project_values(const Packed<D>& packed, const Shape& s, int rows, const float* pooled, float* head) {
  if (s.head_dim % kLanes != 0) fill_zero(head, static_cast<int64_t>(rows) * D);
  for (int h = 0; h < s.heads; ++h) {
    const HeadWindow w = head_window(h, s.head_dim);
    GemmTile g{};
    g.a = pooled + static_cast<int64_t>(h) * rows * D;
    g.b = packed.dv_heads + static_cast<int64_t>(h) * s.d * s.window;
    g.ldb = s.window;
    g.c = head + w.start;
    g.ldc = D;
    g.residual = w.exact() ? nullptr : g.c;
    g.ldr = D;
    g.k = s.d;
    gemm<D>(rows, w.columns, g);
  }
}

// From head and item to normalized3, keeping what the backward needs.
template <int D>
void decoder_tail(const Problem& p, const Packed<D>& packed, const Shape& s, int behavior, int pairs,
                  const TailScratch<D>& a, int64_t hidden_block_stride) {
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
  feed_forward<D>(packed.decoder, s, a.x3, rows, a.normalized3, a.hidden, hidden_block_stride);
  normalize_rows<D>(a.normalized3, rows, s.width, p.eps, a.rstd3);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
