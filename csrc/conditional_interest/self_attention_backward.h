// Backward of step 1, the self-attention over the tokens of each sequence (DTRN Eq. 3-5).
//
// Tokens are rows where weight gradients contract over them. What the softmax touches has a query
// per lane as in the forward: scores [key][query], and the queries, their sums and their gradients
// as columns.
#pragma once

#include "self_attention.h"

namespace mtlfast {
namespace MTLFAST_ISA {

template <int D>
struct AttentionScratch {
  float *q, *k, *v, *d_o;    // [rows][D]
  float *q_t, *k_t, *d_o_t;  // [columns][ld] the same as columns
  float *o_t, *dq_t;         // [columns][ld]
  float *scores, *d_scores;  // [longest][kQueries]
  float *head_q, *head_d_o;  // [rows][D] one head's columns alone
  float *dk, *dv, *o, *dq;   // [rows][D]
  int64_t ld;

  void layout(Arena& a, const Shape& s, int64_t rows, int64_t longest) {
    ld = rows + kLanes;  // not a power of two: columns spread over the cache
    for (float** m : {&q, &k, &v, &d_o, &head_q, &head_d_o, &dk, &dv, &o, &dq})
      *m = a.take(rows * D);
    for (float** m : {&q_t, &k_t, &d_o_t, &o_t, &dq_t})
      *m = a.take(s.width.columns * ld + kQueries);
    scores = a.take(longest * kQueries);
    d_scores = a.take(longest * kQueries);
  }
};

// dW[out][D] += g^T x
template <int D>
void accumulate_weight(const float* g, const float* x, int rows, int out, const Shape& s,
                       float* dw) {
  GemmTile t{};
  t.a = g;
  t.lda = D;
  t.b = x;
  t.ldb = D;
  t.c = dw;
  t.ldc = D;
  t.residual = dw;
  t.ldr = D;
  t.k = rows;
  gemm<kTransposed>(out, s.d, t);
}

// The columns of one head inside its window, zeros beside them; the matrix itself when the window
// is exactly the head. Products with it then touch no other head's columns.
template <int D>
const float* only_head(const float* src, int rows, const HeadWindow& w, float* masked) {
  if (w.exact()) return src + w.start;
  for (int c = 0; c < w.columns; c += kLanes) {
    const IntVec column = lane_index() + (w.start + c);
    const IntVec inside = (column >= w.first) & (column < w.first + w.width);
    for (int64_t r = 0; r < rows; ++r)
      store(masked + r * D + c, inside ? load(src + r * D + w.start + c) : zero());
  }
  return masked;
}

// The gradients of one head of WIDTH features for one vector of queries: `scores` hold the
// exponentials of attend_queries and become weights; d_scores and dq are written. Strides as there.
template <int D, int WIDTH>
void attend_queries_backward(const float* d_o, int64_t ld, const float* k_rows, const float* v_rows,
                             int length, Vec inverse, float* scores, float* d_scores, float* dq) {
  Vec gradient[WIDTH];
#pragma GCC unroll 16
  for (int c = 0; c < WIDTH; ++c) gradient[c] = load(d_o + c * ld);
  Vec inner = zero();
  for (int j = 0; j < length; ++j) {
    const float* v = v_rows + j * D;
    Vec even = broadcast(v[0]) * gradient[0], odd = broadcast(v[1]) * gradient[1];
#pragma GCC unroll 8
    for (int c = 2; c < WIDTH; c += 2) {
      even += broadcast(v[c]) * gradient[c];
      odd += broadcast(v[c + 1]) * gradient[c + 1];
    }
    const Vec weight = load(scores + j * kQueries) * inverse, d = even + odd;
    store(scores + j * kQueries, weight);
    store(d_scores + j * kQueries, d);
    inner += weight * d;
  }
  Vec sum[WIDTH];
#pragma GCC unroll 16
  for (int c = 0; c < WIDTH; ++c) sum[c] = zero();
  for (int j = 0; j < length; ++j) {
    const Vec d = load(scores + j * kQueries) * (load(d_scores + j * kQueries) - inner);
    store(d_scores + j * kQueries, d);
#pragma GCC unroll 16
    for (int c = 0; c < WIDTH; ++c) sum[c] += broadcast(k_rows[j * D + c]) * d;
  }
#pragma GCC unroll 16
  for (int c = 0; c < WIDTH; ++c) store(dq + c * ld, sum[c]);
}

// One head, queries [first, first + count) of a segment: weights and score gradients, and these
// queries' columns of dq_t and, where the SUMS are wanted, of o_t. Whole vectors are stored: what
// falls behind the last query belongs to later ones, which are written after it.
template <int D, int WIDTH, bool SUMS>
void head_backward(const AttentionScratch<D>& a, const Segment& seg, int head, int first,
                   int count) {
  const int64_t row = int64_t{seg.begin} * D + head * WIDTH;
  const int64_t column = head * WIDTH * a.ld + seg.begin;
  for (int c = 0; c < count; c += kLanes) {
    const int64_t query = column + first + c;
    const Vec inverse = attend_queries<D, WIDTH, kQueries, true, SUMS>(
        a.q_t + query, a.k_t + column, a.ld, a.v + row, seg.length, a.scores + c, a.o_t + query);
    attend_queries_backward<D, WIDTH>(a.d_o_t + query, a.ld, a.k + row, a.v + row, seg.length,
                                      inverse, a.scores + c, a.d_scores + c, a.dq_t + query);
  }
}

// The same for heads of any width.
template <int D, bool SUMS>
void wide_head_backward(const AttentionScratch<D>& a, const Segment& seg, int head, int head_dim,
                        int first, int count) {
  const int64_t row = int64_t{seg.begin} * D + head * head_dim;
  const int64_t query = head * head_dim * a.ld + seg.begin + first;
  const int vectors = (count + kLanes - 1) / kLanes;
  GemmTile g{};  // scores = K q, d_scores = V d_o
  g.ldb = a.ld;
  g.ldc = kQueries;
  g.k = head_dim;
  g.a = a.k + row;
  g.b = a.q_t + query;
  g.c = a.scores;
  gemm<D>(seg.length, count, g);
  g.a = a.v + row;
  g.b = a.d_o_t + query;
  g.c = a.d_scores;
  gemm<D>(seg.length, count, g);
  Vec inverse[kQueries / kLanes];
  exponential_columns(a.scores, seg.length, vectors, inverse);
  for (int v = 0; v < vectors; ++v) {
    float *weights = a.scores + v * kLanes, *d_scores = a.d_scores + v * kLanes;
    Vec inner = zero();
    for (int j = 0; j < seg.length * kQueries; j += kQueries) {
      const Vec weight = load(weights + j) * inverse[v];
      store(weights + j, weight);
      inner += weight * load(d_scores + j);
    }
    for (int j = 0; j < seg.length * kQueries; j += kQueries)
      store(d_scores + j, load(weights + j) * (load(d_scores + j) - inner));
  }
  GemmTile t{};  // o = V^T weights, dq = K^T d_scores
  t.lda = D;
  t.ldb = kQueries;
  t.ldc = a.ld;
  t.k = seg.length;
  if constexpr (SUMS) {
    t.a = a.v + row;
    t.b = a.scores;
    t.c = a.o_t + query;
    gemm<kTransposed>(head_dim, count, t);
  }
  t.a = a.k + row;
  t.b = a.d_scores;
  t.c = a.dq_t + query;
  gemm<kTransposed>(head_dim, count, t);
}

// Queries [first, first + count) of one head against all keys of a segment: the columns of o_t and
// dq_t as above, and what they add to dk and dv. `q` and `d_o` are rows from the segment's first
// on, with zeros beside this head's columns inside its window.
template <int D, bool SUMS>
void head_block_backward(const AttentionScratch<D>& a, const Shape& s, const Segment& seg, int head,
                         int first, int count, const float* q, const float* d_o) {
  if (!fits_registers(s.head_dim))
    wide_head_backward<D, SUMS>(a, seg, head, s.head_dim, first, count);
  else if (s.head_dim == 8)
    head_backward<D, 8, SUMS>(a, seg, head, first, count);
  else
    head_backward<D, 16, SUMS>(a, seg, head, first, count);
  const HeadWindow w = head_window(head, s.head_dim);
  const int64_t keys = static_cast<int64_t>(seg.begin) * D + w.start;
  GemmTile g{};
  g.ldb = D;
  g.ldc = D;
  g.ldr = D;
  g.k = count;
  g.a = a.scores;  // dv[key] += weights d_o
  g.b = d_o + static_cast<int64_t>(first) * D;
  g.c = a.dv + keys;
  g.residual = g.c;
  gemm<kQueries>(seg.length, w.columns, g);
  g.a = a.d_scores;  // dk[key] += d_scores q
  g.b = q + static_cast<int64_t>(first) * D;
  g.c = a.dk + keys;
  g.residual = g.c;
  gemm<kQueries>(seg.length, w.columns, g);
}

// Gradients of the four square weights; q's is with respect to the scaled weight.
struct SquareGradients {
  float *q, *k, *v, *o;  // [d][D], out x in
};

// From du [rows][D], the gradient of u = x + MHSA(x): dx [rows][D] (must not alias du).
template <int D>
void self_attention_backward(const Packed<D>& packed, const Shape& s, const AttentionScratch<D>& a,
                             const float* x, const float* du, int rows, const Segment* segments,
                             int num_segments, float* dx, const SquareGradients& grad) {
  project<D>(x, packed.ev_t, rows, s, a.v);
  project<D>(du, packed.eo, rows, s, a.d_o);
  int longest = 0;
  for (int i = 0; i < num_segments; ++i)
    longest = segments[i].length > longest ? segments[i].length : longest;
  if (longest <= 1) {
    accumulate_weight<D>(du, a.v, rows, s.d, s, grad.o);
    accumulate_weight<D>(a.d_o, x, rows, s.d, s, grad.v);
    project<D>(a.d_o, packed.ev, rows, s, dx, du);
    return;
  }
  const int64_t block = static_cast<int64_t>(rows) * D;
  project<D>(x, packed.eq_t, rows, s, a.q);
  project<D>(x, packed.ek_t, rows, s, a.k);
  for (int r = 0; r < rows; r += kLanes) {
    const int64_t at = static_cast<int64_t>(r) * D;
    rows_to_columns<D>(a.q + at, s.width, a.q_t + r, a.ld);
    rows_to_columns<D>(a.k + at, s.width, a.k_t + r, a.ld);
    rows_to_columns<D>(a.d_o + at, s.width, a.d_o_t + r, a.ld);
  }
  fill_zero(a.o_t + s.d * a.ld, (s.width.columns - s.d) * a.ld);
  fill_zero(a.dq_t + s.d * a.ld, (s.width.columns - s.d) * a.ld);
  fill_zero(a.dk, block);
  fill_zero(a.dv, block);
  for (int h = 0; h < s.heads; ++h) {
    const HeadWindow w = head_window(h, s.head_dim);
    const float* q = only_head<D>(a.q, rows, w, a.head_q);
    const float* d_o = only_head<D>(a.d_o, rows, w, a.head_d_o);
    for (int i = 0; i < num_segments; ++i) {
      const Segment seg = segments[i];
      const int64_t begin = static_cast<int64_t>(seg.begin) * D;
      if (seg.length == 1) {  // attention weight 1
        for (int c = w.first; c < w.first + w.width; ++c) {
          a.o_t[c * a.ld + seg.begin] = a.v[begin + c];
          a.dq_t[c * a.ld + seg.begin] = 0.0f;
          a.dv[begin + c] = a.d_o[begin + c];
        }
        continue;
      }
      for (int first = 0; first < seg.length; first += kQueries) {
        const int count = seg.length - first < kQueries ? seg.length - first : kQueries;
        head_block_backward<D, true>(a, s, seg, h, first, count, q + begin, d_o + begin);
      }
    }
  }
  columns_to_rows<D>(a.o_t, a.ld, rows, s.width, a.o);
  columns_to_rows<D>(a.dq_t, a.ld, rows, s.width, a.dq);
  accumulate_weight<D>(du, a.o, rows, s.d, s, grad.o);
  accumulate_weight<D>(a.dq, x, rows, s.d, s, grad.q);
  accumulate_weight<D>(a.dk, x, rows, s.d, s, grad.k);
  accumulate_weight<D>(a.dv, x, rows, s.d, s, grad.v);
  project<D>(a.dq, packed.eq, rows, s, dx, du);
  project<D>(a.dk, packed.ek, rows, s, dx, dx);
  project<D>(a.dv, packed.ev, rows, s, dx, dx);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
