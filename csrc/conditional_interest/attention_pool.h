// Step 4: the candidate's attention over one task's encoded tokens, with the key projection
// absorbed into the query and the value projection applied after pooling (exact: see DTRN Eq. 7).
#pragma once

#include "packing.h"

namespace mtlfast {
namespace MTLFAST_ISA {

struct Pair {  // one candidate attending to one non-empty sequence
  int begin;   // first row of the sequence
  int length;
  int slot;      // first entry of its scores
  int position;  // of the candidate, in the order of candidate_list
};

// The rows that the scores of a group of pairs run over: entry e is row `row[e]` seen by pair
// `pair[e]`. Padded to a multiple of kLanes.
struct ScoreMap {
  int* row;
  int* pair;
  int entries;

  void layout(Arena& a, int64_t capacity) {
    row = reinterpret_cast<int*>(a.take(capacity + kLanes));
    pair = reinterpret_cast<int*>(a.take(capacity + kLanes));
    entries = 0;
  }

  void build(Pair* pairs, int count) {
    entries = 0;
    for (int p = 0; p < count; ++p) {
      pairs[p].slot = entries;
      for (int j = 0; j < pairs[p].length; ++j, ++entries) {
        row[entries] = pairs[p].begin + j;
        pair[entries] = p;
      }
    }
    for (int e = entries; e < round_up_lanes(entries); ++e) {
      row[e] = 0;
      pair[e] = 0;
    }
  }
};

// dots[h * stride + e] = rows[row[e]] . vectors[pair[e]][h]; COLUMNS = 0 means a run-time width.
template <int D, int COLUMNS>
void score_dots(const ScoreMap& map, const float* rows, const float* vectors, int heads,
                int columns, float* dots, int64_t stride) {
  const int width = COLUMNS > 0 ? COLUMNS : columns;
  for (int e = 0; e < map.entries; e += kLanes)
    for (int h = 0; h < heads; ++h) {
      Vec partial[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* row = rows + static_cast<int64_t>(map.row[e + i]) * D;
        const float* vector = vectors + (static_cast<int64_t>(map.pair[e + i]) * heads + h) * D;
        Vec s = load(row) * load(vector);
        for (int c = kLanes; c < width; c += kLanes) s += load(row + c) * load(vector + c);
        partial[i] = s;
      }
      store(dots + h * stride + e, sum_each(partial));
    }
}

template <int D>
void score_dots(const ScoreMap& map, const float* rows, const float* vectors, const Shape& s,
                float* dots, int64_t stride) {
  if (s.width.columns == D)
    score_dots<D, D>(map, rows, vectors, s.heads, D, dots, stride);
  else
    score_dots<D, 0>(map, rows, vectors, s.heads, s.width.columns, dots, stride);
}

// Softmax over `length` consecutive scores. Weights are written in whole vectors; what spills over
// the end belongs to the next pair, which is written later. (Masked stores in place would stall the
// loads that follow them.)
inline void softmax_run(const float* scores, int length, float* weights) {
  const Vec lowest = broadcast(-__builtin_inff());
  if (length <= kLanes) {
    const Vec x = load(scores);
    const Vec top = broadcast(max_lanes(select_first(length, x, lowest)) * kLog2e);
    const Vec e = select_first(length, exponential_below(x, top), zero());
    store(weights, e * broadcast(1.0f / sum_lanes(e)));
    return;
  }
  Vec largest = lowest;
  for (int j = 0; j < length; j += kLanes) {
    const int count = length - j < kLanes ? length - j : kLanes;
    const Vec v = select_first(count, load(scores + j), lowest);
    largest = largest > v ? largest : v;
  }
  const Vec top = broadcast(max_lanes(largest) * kLog2e);
  Vec sum = zero();
  for (int j = 0; j < length; j += kLanes) {
    const int count = length - j < kLanes ? length - j : kLanes;
    const Vec e = select_first(count, exponential_below(load(scores + j), top), zero());
    store(weights + j, e);
    sum += e;
  }
  const Vec inverse = broadcast(1.0f / sum_lanes(sum));
  for (int j = 0; j < length; j += kLanes) store(weights + j, load(weights + j) * inverse);
}

inline void softmax_pairs(const Pair* pairs, int count, int heads, const float* scores,
                          int64_t stride, float* weights) {
  for (int p = 0; p < count; ++p)
    for (int h = 0; h < heads; ++h)
      softmax_run(scores + h * stride + pairs[p].slot, pairs[p].length,
                  weights + h * stride + pairs[p].slot);
}

// out[h][p] = sum_j weights[h][j] rows[j]; out rows are D apart, heads `head_stride` apart.
template <int D>
void pool_pairs(const Pair* pairs, int count, const Shape& s, const float* rows,
                const float* weights, int64_t stride, float* out, int64_t head_stride) {
  for (int p = 0; p < count; ++p) {
    GemmTile g{};
    g.a = weights + pairs[p].slot;
    g.lda = stride;
    g.b = rows + static_cast<int64_t>(pairs[p].begin) * D;
    g.ldb = D;
    g.c = out + static_cast<int64_t>(p) * D;
    g.ldc = head_stride;
    g.k = pairs[p].length;
    gemm<kStrided>(s.heads, s.d, g);
  }
}

// rows[j] += sum_h weights[h][j] vectors[p][h] for every row of every pair.
template <int D>
void spread_pairs(const Pair* pairs, int count, const Shape& s, const float* weights,
                  int64_t stride, const float* vectors, float* rows) {
  for (int p = 0; p < count; ++p) {
    GemmTile g{};
    g.a = weights + pairs[p].slot;
    g.lda = stride;
    g.b = vectors + static_cast<int64_t>(p) * s.heads * D;
    g.ldb = D;
    g.c = rows + static_cast<int64_t>(pairs[p].begin) * D;
    g.ldc = D;
    g.residual = g.c;
    g.ldr = D;
    g.k = s.heads;
    gemm<kTransposed>(pairs[p].length, s.d, g);
  }
}

// vectors[p][h] = scale * source[position(p)][h]
template <int D>
void scaled_vectors(const Pair* pairs, int count, const Shape& s, const float* scale,
                    const float* source, float* vectors) {
  for (int p = 0; p < count; ++p) {
    const float* from = source + static_cast<int64_t>(pairs[p].position) * s.heads * D;
    float* to = vectors + static_cast<int64_t>(p) * s.heads * D;
    for (int h = 0; h < s.heads; ++h)
      for (int c = 0; c < s.width.columns; c += kLanes)
        store(to + h * D + c, load(from + h * D + c) * load(scale + c));
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
