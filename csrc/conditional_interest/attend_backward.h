// Backward of step 4: from the gradients of the pooled tokens to those of the encoded tokens and of
// the absorbed queries. Scores run down the columns and sums along the rows, as in attend.h.
#pragma once

#include "attend.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// Exponentials become weights, and the weights' gradients those of the scores.
inline void softmax_backward_in_place(float* weights, float inverse, float* gradients, int length) {
  const Vec factor = broadcast(inverse);
  Vec inner = zero();
  for (int j = 0; j < length; j += kLanes) {
    const int count = length - j < kLanes ? length - j : kLanes;
    const Vec weight = load(weights + j) * factor;
    store(weights + j, weight);
    inner += select_first(count, weight * load(gradients + j), zero());
  }
  const Vec mean = broadcast(sum_lanes(inner));
  for (int j = 0; j < length; j += kLanes)
    store(gradients + j, load(weights + j) * (load(gradients + j) - mean));
}

// For HEADS heads and NV vectors of columns: d_rows[j] += sum_h weights[h][j] d_pooled[h] +
// d_scores[h][j] vectors[h], and d_vectors[h] = sum_j d_scores[h][j] rows[j].
template <int D, int HEADS, int NV>
MTLFAST_INLINE void spread_columns(const float* rows, int length, const float* weights,
                                   const float* d_scores, int64_t stride, const float* d_pooled,
                                   const float* vectors, float* d_rows, float* d_vectors,
                                   int64_t head_stride) {
  Vec pooled[HEADS][NV], vector[HEADS][NV], sum[HEADS][NV];
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      pooled[h][v] = load(d_pooled + h * D + v * kLanes);
      vector[h][v] = load(vectors + h * D + v * kLanes);
      sum[h][v] = zero();
    }
  for (int64_t j = 0; j < length; ++j) {
    Vec x[NV], d[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      x[v] = load(rows + j * D + v * kLanes);
      d[v] = load(d_rows + j * D + v * kLanes);
    }
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      const Vec weight = broadcast(weights[h * stride + j]);
      const Vec d_score = broadcast(d_scores[h * stride + j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        d[v] += weight * pooled[h][v];
        d[v] += d_score * vector[h][v];
        sum[h][v] += d_score * x[v];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d_rows + j * D + v * kLanes, d[v]);
  }
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d_vectors + h * head_stride + v * kLanes, sum[h][v]);
}

// For every pair of a group, after attend_pairs' scores and softmax: adds to d_rows [tokens][D],
// the encoded tokens' gradient, and writes d_vectors [heads][pairs][D], that of `vectors`.
// `vectors` and `d_pooled` are [pairs][heads][D]; `d_scores` is scratch like a.scores, which
// becomes weights.
template <int D>
void attend_pairs_backward(const Pair* pairs, int count, const Shape& s, const float* columns,
                           int64_t ld, const float* rows, const float* vectors,
                           const float* d_pooled, const PairScores& a, float* d_scores,
                           float* d_rows, float* d_vectors) {
  constexpr int kVectors = kLanes == 16 && D >= 32 ? 2 : 1;  // three operands per head: fewer fit
  constexpr int kHeads = kLanes == 16 && kVectors == 1 ? 4 : 2;
  const int64_t head_stride = static_cast<int64_t>(count) * D;
  score_pairs<D>(pairs, count, 1, s, columns, ld, d_pooled, d_scores, a.stride);
  for (int i = 0; i < count; ++i)
    for (int h = 0; h < s.heads; ++h) {
      const int64_t at = h * a.stride + pairs[i].slot;
      softmax_backward_in_place(a.scores + at, a.inverse[h * count + i], d_scores + at,
                                pairs[i].length);
    }
  for (int i = 0; i < count; ++i)
    each_heads<kHeads>(s.heads, [&](int h, auto heads) {
      const int64_t row = static_cast<int64_t>(pairs[i].begin) * D;
      const int64_t vector = (static_cast<int64_t>(i) * s.heads + h) * D;
      const int64_t score = h * a.stride + pairs[i].slot;
      for (int c = 0; c < s.width.columns; c += kVectors * kLanes)
        spread_columns<D, decltype(heads)::value, kVectors>(
            rows + row + c, pairs[i].length, a.scores + score, d_scores + score, a.stride,
            d_pooled + vector + c, vectors + vector + c, d_rows + row + c,
            d_vectors + h * head_stride + static_cast<int64_t>(i) * D + c, head_stride);
    });
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
