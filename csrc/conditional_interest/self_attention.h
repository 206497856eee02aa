// Step 1: self-attention over the tokens of each sequence, residual, normalization. Independent of
// the task (DTRN Eq. 3-5), so it runs once per token. Columns in, columns out.
//
// Scores are [key][query] with one query per lane: the softmax over keys needs no horizontal
// operation, and a head may have any width.
#pragma once

#include "product_norm.h"

namespace mtlfast {
namespace MTLFAST_ISA {

constexpr int kQueries = 64;  // queries of one score block; its rows have this stride

// Down the columns of scores [length][kQueries], the first `vectors` vectors of each row: exp(x -
// max) in place, and the inverse of each column's sum.
inline void exponential_columns(float* scores, int length, int vectors, Vec* inverse) {
  for (int v = 0; v < vectors; ++v) {
    float* column = scores + v * kLanes;
    Vec largest = load(column);
    for (int j = 1; j < length; ++j) {
      const Vec x = load(column + j * kQueries);
      largest = largest > x ? largest : x;
    }
    const Vec top = largest * broadcast(kLog2e);
    Vec sum = zero();
    for (int j = 0; j < length; ++j) {
      const Vec e = exponential_below(load(column + j * kQueries), top);
      store(column + j * kQueries, e);
      sum += e;
    }
    inverse[v] = broadcast(1.0f) / sum;
  }
}

inline void scale_columns(float* x, int64_t ld, int rows, int vectors, const Vec* factor) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v)
      store(x + r * ld + v * kLanes, load(x + r * ld + v * kLanes) * factor[v]);
}

// True for heads so narrow that queries and sums of one head fit into registers.
inline bool fits_registers(int head_dim) {
  return head_dim == 8 || (head_dim == 16 && kLanes == 16);
}

// One head of WIDTH features, for one vector of queries against all keys of their sequence: o = V
// softmax(K q). Queries and sums stay in registers; scores [length][STRIDE] are written once and
// read once. Where they are to be KEPT, they end as exponentials: the softmax is these times the
// returned vector; without SUMS that is all, and o is not written. Strides: ld of the columns, D of
// the rows of v.
template <int D, int WIDTH, int STRIDE, bool KEPT, bool SUMS = true>
Vec attend_queries(const float* q, const float* k, int64_t ld, const float* v_rows, int length,
                   float* scores, float* o) {
  Vec query[WIDTH];
#pragma GCC unroll 16
  for (int c = 0; c < WIDTH; ++c) query[c] = load(q + c * ld);
  Vec largest = broadcast(-__builtin_inff());
  auto score = [&](int j) __attribute__((always_inline)) {
    Vec even = broadcast(k[j]) * query[0], odd = broadcast(k[ld + j]) * query[1];
#pragma GCC unroll 8
    for (int c = 2; c < WIDTH; c += 2) {
      even += broadcast(k[c * ld + j]) * query[c];
      odd += broadcast(k[(c + 1) * ld + j]) * query[c + 1];
    }
    const Vec x = even + odd;
    store(scores + j * STRIDE, x);
    largest = largest > x ? largest : x;
  };
  int j = 0;
  for (; j + 2 <= length; j += 2) {
    score(j);
    score(j + 1);
  }
  if (j < length) score(j);

  const Vec top = largest * broadcast(kLog2e);
  Vec sum = zero(), head[WIDTH];
#pragma GCC unroll 16
  for (int c = 0; c < WIDTH; ++c) head[c] = zero();
  for (j = 0; j < length; ++j) {
    const Vec e = exponential_below(load(scores + j * STRIDE), top);
    if constexpr (KEPT) store(scores + j * STRIDE, e);
    sum += e;
    if constexpr (SUMS)
#pragma GCC unroll 16
      for (int c = 0; c < WIDTH; ++c) head[c] += broadcast(v_rows[j * D + c]) * e;
  }
  const Vec inverse = broadcast(1.0f) / sum;
  if constexpr (SUMS)
#pragma GCC unroll 16
    for (int c = 0; c < WIDTH; ++c) store(o + c * ld, head[c] * inverse);
  return inverse;
}

template <int D>
struct AttentionColumns {
  float *q, *k, *o;   // [columns][ld]
  float *v, *v_rows;  // [columns][ld], [tokens][D]
  float* scores;      // [longest][kQueries]

  void layout(Arena& a, const Shape& s, int64_t tokens, int64_t ld, int64_t longest) {
    // Blocks of queries start anywhere and are read in whole vectors.
    const int64_t block = s.width.columns * ld + kQueries;
    q = a.take(block);
    k = a.take(block);
    v = a.take(block);
    o = a.take(block);
    v_rows = a.take(tokens * D);
    scores = a.take(longest * kQueries);
  }
};

// Queries (if they are wanted), keys and values of n tokens.
template <int D>
void project_tokens(const Packed<D>& packed, const Shape& s, const float* x, int64_t ld, int n,
                    bool scores, const AttentionColumns<D>& a) {
#ifdef MTLFAST_BF16_PRODUCTS
  if (s.bf16) {  // tokens are bfloat16 already; weights are rounded as the FFNs' are
    Bf16Pair pairs[D / 2 * kBlock];
    for (int c = 0; c < n; c += kBlock) {
      const int count = n - c < kBlock ? n - c : kBlock;
      columns_to_pairs(x + c, ld, count, s.d, pairs);
      auto multiply_pairs = [&](const Bf16Pair* weight, float scale, float* y) {
        Bf16Tile g{};
        g.a = weight;
        g.b = pairs;
        g.ldb = kBlock;
        g.c = y + c;
        g.ldc = ld;
        g.k = s.d / 2;
        g.scale = scale;
        bf16_gemm<D / 2>(s.d, count, g);
      };
      multiply_pairs(packed.ev_pairs, 1.0f, a.v);
      if (!scores) continue;
      multiply_pairs(packed.eq_pairs, s.score_scale, a.q);
      multiply_pairs(packed.ek_pairs, 1.0f, a.k);
    }
    return;
  }
#endif
  multiply<D>(packed.ev, s.d, s.d, x, ld, n, a.v, ld);
  if (!scores) return;
  multiply<D>(packed.eq, s.d, s.d, x, ld, n, a.q, ld);
  multiply<D>(packed.ek, s.d, s.d, x, ld, n, a.k, ld);
}

// normalized = (u - mean) * rstd with u = x + MHSA(x), over n tokens. x, normalized: [columns][ld].
template <int D>
void self_attention(const Packed<D>& packed, const Shape& s, const AttentionColumns<D>& a,
                    const float* x, int64_t ld, int n, const Segment* segments, int num_segments,
                    float eps, float* normalized, float* rstd) {
  int longest = 0;
  for (int i = 0; i < num_segments; ++i)
    longest = segments[i].length > longest ? segments[i].length : longest;
  project_tokens<D>(packed, s, x, ld, n, longest > 1, a);
  const float* o = a.v;  // a single key has the attention weight 1
  if (longest > 1) {
    o = a.o;
    columns_to_rows<D>(a.v, ld, n, s.width, a.v_rows);
    for (int i = 0; i < num_segments; ++i) {
      const Segment seg = segments[i];
      if (seg.length == 1) {
        for (int c = 0; c < s.d; ++c) a.o[c * ld + seg.begin] = a.v[c * ld + seg.begin];
        continue;
      }
      for (int first = 0; first < seg.length; first += kQueries) {
        const int count = seg.length - first < kQueries ? seg.length - first : kQueries;
        const int vectors = (count + kLanes - 1) / kLanes;
        if (fits_registers(s.head_dim)) {
          const auto attend = s.head_dim == 8 ? attend_queries<D, 8, kLanes, false>
                                              : attend_queries<D, 16, kLanes, false>;
          for (int h = 0; h < s.heads; ++h)
            for (int c = 0; c < count; c += kLanes) {
              const int64_t head = static_cast<int64_t>(h) * s.head_dim * ld + seg.begin;
              attend(a.q + head + first + c, a.k + head, ld,
                     a.v_rows + static_cast<int64_t>(seg.begin) * D + h * s.head_dim, seg.length,
                     a.scores, a.o + head + first + c);
            }
          continue;
        }
        for (int h = 0; h < s.heads; ++h) {
          const int64_t head = static_cast<int64_t>(h) * s.head_dim * ld;
          GemmTile g{};
          g.a = a.k + head + seg.begin;  // A[key][feature], read down the columns
          g.lda = ld;
          g.b = a.q + head + seg.begin + first;
          g.ldb = ld;
          g.c = a.scores;
          g.ldc = kQueries;
          g.k = s.head_dim;
          gemm<kTransposed>(seg.length, count, g);
          Vec inverse[kQueries / kLanes];
          exponential_columns(a.scores, seg.length, vectors, inverse);
          // Whole vectors are stored: what falls behind this block belongs to later queries, which
          // are written after it.
          GemmTile v{};
          v.a = a.v_rows + static_cast<int64_t>(seg.begin) * D + h * s.head_dim;
          v.lda = D;
          v.b = a.scores;
          v.ldb = kQueries;
          v.c = a.o + head + seg.begin + first;
          v.ldc = ld;
          v.k = seg.length;
          gemm<kTransposed>(s.head_dim, count, v);
          scale_columns(v.c, ld, s.head_dim, vectors, inverse);
        }
      }
    }
  }
  project_normalize<D>(packed.eo, s, eps, o, ld, n, x, normalized, rstd);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
