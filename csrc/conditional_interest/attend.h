// Step 4 of the forward: every pair's attention over one task's encoded tokens, with the key
// projection absorbed into the query and the value projection applied after pooling (exact: see
// DTRN Eq. 7). Scores run down the columns, one token per lane, and pooling along the rows, so that
// neither needs a horizontal sum.
//
// Each stage goes over all pairs of a group before the next begins: a pair alone is one long chain
// of dependent operations.
#pragma once

#include "attention_pool.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// What a softmax leaves for the pooling.
struct PairScores {
  float* scores;  // [heads][stride]: scores, then exponentials; a pair's begin at its slot
  int64_t stride;
  float* inverse;  // [heads][pairs] one over their sum
};

// Slots of whole vectors, so that no pair touches another's scores. Returns the entries used.
inline int assign_slots(Pair* pairs, int count) {
  int entries = 0;
  for (int p = 0; p < count; ++p) {
    pairs[p].slot = entries;
    entries += round_up_lanes(pairs[p].length);
  }
  return entries;
}

// scores[h][v] = vectors[h] . columns for HEADS heads and NV vectors of tokens.
template <int D, int HEADS, int NV>
MTLFAST_INLINE void score_columns(const float* columns, int64_t ld, int d, const float* vectors,
                                  float* scores, int64_t stride) {
  constexpr int kChains = HEADS * NV < 4 ? 2 : 1;  // enough sums in flight to hide an addition
  Vec sum[kChains][HEADS][NV];
#pragma GCC unroll 2
  for (int i = 0; i < kChains; ++i)
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][h][v] = zero();
  for (int c = 0; c < d; c += kChains)  // d is even
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) {
      Vec x[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) x[v] = load(columns + (c + i) * ld + v * kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][h][v] += broadcast(vectors[h * D + c + i]) * x[v];
    }
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      Vec total = sum[0][h][v];
      if constexpr (kChains == 2) total += sum[1][h][v];
      store(scores + h * stride + v * kLanes, total);
    }
}

// Scores of one pair against a sequence whose columns begin at `columns`.
template <int D, int HEADS>
void score_heads(const float* columns, int64_t ld, int d, int length, const float* vectors,
                 float* scores, int64_t stride) {
  int j = 0;
  for (; j + kLanes < length; j += 2 * kLanes)
    score_columns<D, HEADS, 2>(columns + j, ld, d, vectors, scores + j, stride);
  if (j < length) score_columns<D, HEADS, 1>(columns + j, ld, d, vectors, scores + j, stride);
}

// Exponentials in place of `length` scores; returns one over their sum.
inline float softmax_in_place(float* scores, int length) {
  const Vec lowest = broadcast(-__builtin_inff());
  if (length == 1) {  // its scores are not computed
    scores[0] = 1.0f;
    return 1.0f;
  }
  if (length <= kLanes) {
    const Vec x = load(scores);
    const Vec top = broadcast(max_lanes(select_first(length, x, lowest)) * kLog2e);
    const Vec e = select_first(length, exponential_below(x, top), zero());
    store(scores, e);
    return 1.0f / sum_lanes(e);
  }
  const int whole = length - length % kLanes, tail = length - whole;
  Vec largest = lowest;
  for (int j = 0; j < whole; j += kLanes) {
    const Vec x = load(scores + j);
    largest = largest > x ? largest : x;
  }
  if (tail > 0) {
    const Vec x = select_first(tail, load(scores + whole), lowest);
    largest = largest > x ? largest : x;
  }
  const Vec top = broadcast(max_lanes(largest) * kLog2e);
  Vec sum = zero();
  for (int j = 0; j < whole; j += kLanes) {
    const Vec e = exponential_below(load(scores + j), top);
    store(scores + j, e);
    sum += e;
  }
  if (tail > 0) {
    const Vec e = select_first(tail, exponential_below(load(scores + whole), top), zero());
    store(scores + whole, e);
    sum += e;
  }
  return 1.0f / sum_lanes(sum);
}

// finish(h, v, inverse[h] sum_j weights[h][j] rows[j]) for HEADS heads and NV vectors of columns.
template <int D, int HEADS, int NV, typename Finish>
MTLFAST_INLINE void pool_columns(const float* rows, int length, const float* weights,
                                 int64_t stride, const float* inverse, int64_t inverse_stride,
                                 Finish finish) {
  constexpr int kChains = HEADS * NV < 4 ? 2 : 1;
  Vec sum[kChains][HEADS][NV];
#pragma GCC unroll 2
  for (int i = 0; i < kChains; ++i)
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][h][v] = zero();
  auto add = [&](int i, int j) __attribute__((always_inline)) {
    Vec x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load(rows + static_cast<int64_t>(j) * D + v * kLanes);
#pragma GCC unroll 4
    for (int h = 0; h < HEADS; ++h) {
      const Vec weight = broadcast(weights[h * stride + j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][h][v] += weight * x[v];
    }
  };
  int j = 0;
  for (; j + kChains <= length; j += kChains)
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) add(i, j + i);
  if (j < length) add(0, j);
#pragma GCC unroll 4
  for (int h = 0; h < HEADS; ++h) {
    const Vec factor = broadcast(inverse[h * inverse_stride]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      Vec total = sum[0][h][v];
      if constexpr (kChains == 2) total += sum[1][h][v];
      finish(h, v, total * factor);
    }
  }
}

// Calls body(h, count) for heads h .. h + count, at most `most` at once, count a compile-time 4, 2
// or 1.
template <int N>
struct HeadCount {
  static constexpr int value = N;
};
template <int MOST, typename Body>
MTLFAST_INLINE void each_heads(int heads, Body body) {
  int h = 0;
  if constexpr (MOST >= 4)
    for (; h + 4 <= heads; h += 4) body(h, HeadCount<4>{});
  if constexpr (MOST >= 2)
    for (; h + 2 <= heads; h += 2) body(h, HeadCount<2>{});
  for (; h < heads; ++h) body(h, HeadCount<1>{});
}

// How many vectors of a row, and heads, one pass takes: as registers allow.
template <int D>
constexpr int kRowVectors = D / kLanes < 4 ? D / kLanes : 4;
template <int D>
constexpr int kPassHeads = kLanes < 16 && kRowVectors<D> == 4 ? 2 : 4;

// scores[h][slot + j] = vectors[pair][h] . token j for every pair of at least `shortest` tokens.
template <int D>
void score_pairs(const Pair* pairs, int count, int shortest, const Shape& s, const float* columns,
                 int64_t ld, const float* vectors, float* scores, int64_t stride) {
  for (int i = 0; i < count; ++i) {
    if (pairs[i].length < shortest) continue;
    each_heads<kPassHeads<D>>(s.heads, [&](int h, auto heads) {
      score_heads<D, decltype(heads)::value>(columns + pairs[i].begin, ld, s.d, pairs[i].length,
                                             vectors + (static_cast<int64_t>(i) * s.heads + h) * D,
                                             scores + h * stride + pairs[i].slot, stride);
    });
  }
}

// Exponentials in place of every pair's scores, which those of a single token do not need.
inline void softmax_pairs(const Pair* pairs, int count, int heads, const PairScores& a) {
  for (int i = 0; i < count; ++i)
    for (int h = 0; h < heads; ++h)
      a.inverse[h * count + i] =
          softmax_in_place(a.scores + h * a.stride + pairs[i].slot, pairs[i].length);
}

// finish(pair, h, c, x) for every vector x of every pair's pooled rows, c its first column.
template <int D, typename Finish>
MTLFAST_INLINE void pool_pairs(const Pair* pairs, int count, const Shape& s, const float* rows,
                               const PairScores& a, Finish finish) {
  constexpr int kVectors = kRowVectors<D>;
  for (int i = 0; i < count; ++i)
    each_heads<kPassHeads<D>>(s.heads, [&](int first, auto heads) {
      for (int c = 0; c < s.width.columns; c += kVectors * kLanes)
        pool_columns<D, decltype(heads)::value, kVectors>(
            rows + static_cast<int64_t>(pairs[i].begin) * D + c, pairs[i].length,
            a.scores + first * a.stride + pairs[i].slot, a.stride, a.inverse + first * count + i,
            count, [&](int h, int v, Vec x) { finish(i, first + h, c + v * kLanes, x); });
    });
}

// For every pair of a group: out[h][pair] = scale * softmax(scores)_h rows + shift, the pooled
// tokens through the norm of position 1. `columns` [d][ld] and `rows` [tokens][D] are the same
// normalized tokens; out rows are at (slot_of_pair[i]) * D, heads `head_stride` apart.
template <int D>
void attend_pairs(const Pair* pairs, int count, const int* slot_of_pair, const Shape& s,
                  const float* columns, int64_t ld, const float* rows, const float* vectors,
                  const PairScores& a, const float* scale, const float* shift, float* out,
                  int64_t head_stride) {
  score_pairs<D>(pairs, count, 2, s, columns, ld, vectors, a.scores, a.stride);
  softmax_pairs(pairs, count, s.heads, a);
  pool_pairs<D>(pairs, count, s, rows, a, [&](int i, int h, int c, Vec x) {
    store(out + h * head_stride + int64_t{slot_of_pair[i]} * D + c,
          x * load(scale + c) + load(shift + c));
  });
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
