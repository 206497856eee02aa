// Backward of step 1, the self-attention over the tokens of each sequence (DTRN Eq. 3-5), on rows.
//
// Tokens are rows here, because the weight gradients contract over them; scores stay [key][query].
#pragma once

#include "self_attention.h"

namespace mtlfast {
namespace MTLFAST_ISA {

template <int D>
struct AttentionScratch {
  float *q, *k, *v, *o;    // [rows][D]
  float* q_t;              // [d][rows]
  float *scores, *masked;  // [longest][kQueries], [rows][D]
  float *d_o, *d_o_t;      // gradient of o and its transpose
  float *dq, *dk, *dv, *d_scores;
  float *masked_k, *masked_q, *masked_o;

  void layout(Arena& a, const Shape& s, int64_t rows, int64_t longest) {
    const int64_t block = rows * D;
    const int64_t transposed = s.d * rows + 2 * kQueries;
    const int64_t score = longest * kQueries;
    q = a.take(block);
    k = a.take(block);
    v = a.take(block);
    o = a.take(block);
    q_t = a.take(transposed);
    scores = a.take(score);
    masked = a.take(block);
    d_o = a.take(block);
    d_o_t = a.take(transposed);
    dq = a.take(block);
    dk = a.take(block);
    dv = a.take(block);
    d_scores = a.take(score);
    masked_k = a.take(block);
    masked_q = a.take(block);
    masked_o = a.take(block);
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

// dst [d][ld] = transpose of src [rows][D]; rows are read up to the next multiple of kLanes.
template <int D>
void transpose_rows(const float* src, int rows, Width w, float* dst, int64_t ld) {
  for (int r = 0; r < rows; r += kLanes)
    for (int c = 0; c < w.d; c += kLanes) {
      if (c + kLanes <= w.d) {
        transpose_block(src + static_cast<int64_t>(r) * D + c, D, dst + c * ld + r, ld);
      } else {
        for (int j = c; j < w.d; ++j)
          for (int i = 0; i < kLanes; ++i)
            dst[j * ld + r + i] = src[static_cast<int64_t>(r + i) * D + j];
      }
    }
}

// The columns of one head inside its window, zeros beside them; the matrix itself when the window
// is exactly the head. Products with it then touch no other head's columns.
template <int D>
const float* only_head(const float* src, int rows, const HeadWindow& w, float* masked) {
  if (w.exact()) return src + w.start;
  for (int r = 0; r < rows; ++r) {
    const float* from = src + static_cast<int64_t>(r) * D + w.start;
    float* to = masked + static_cast<int64_t>(r) * D;
    for (int c = 0; c < w.columns; ++c) {
      const int column = w.start + c;
      to[c] = column >= w.first && column < w.first + w.width ? from[c] : 0.0f;
    }
  }
  return masked;
}

// scores[key][query] of one head for queries [first, first + count) of a segment, after the
// softmax.
template <int D>
void attention_weights(const AttentionScratch<D>& a, const Segment& seg, int head_first,
                       int head_dim, int first, int count, int64_t ld) {
  GemmTile s{};
  s.a = a.k + static_cast<int64_t>(seg.begin) * D + head_first;
  s.b = a.q_t + head_first * ld + seg.begin + first;
  s.ldb = ld;
  s.c = a.scores;
  s.ldc = kQueries;
  s.k = head_dim;
  gemm<D>(seg.length, count, s);
  Vec inverse[kQueries / kLanes];
  const int vectors = (count + kLanes - 1) / kLanes;
  exponential_columns(a.scores, seg.length, vectors, inverse);
  scale_columns(a.scores, kQueries, seg.length, vectors, inverse);
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
  const int64_t ld = round_up_lanes(rows);
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
  transpose_rows<D>(a.q, rows, s.width, a.q_t, ld);
  transpose_rows<D>(a.d_o, rows, s.width, a.d_o_t, ld);
  fill_zero(a.o, block);
  fill_zero(a.dq, block);
  fill_zero(a.dk, block);
  fill_zero(a.dv, block);
  for (int h = 0; h < s.heads; ++h) {
    const HeadWindow w = head_window(h, s.head_dim);
    const float* v = only_head<D>(a.v, rows, w, a.masked);
    const float* k = only_head<D>(a.k, rows, w, a.masked_k);
    const float* q = only_head<D>(a.q, rows, w, a.masked_q);
    const float* d_o = only_head<D>(a.d_o, rows, w, a.masked_o);
    for (int i = 0; i < num_segments; ++i) {
      const Segment seg = segments[i];
      const int64_t begin = static_cast<int64_t>(seg.begin) * D;
      if (seg.length == 1) {
        for (int c = 0; c < w.columns; c += kLanes) {
          float* o = a.o + begin + w.start + c;
          float* dv = a.dv + begin + w.start + c;
          store(o, load(o) + load(v + begin + c));
          store(dv, load(dv) + load(d_o + begin + c));
        }
        continue;
      }
      for (int first = 0; first < seg.length; first += kQueries) {
        const int count = seg.length - first < kQueries ? seg.length - first : kQueries;
        const int vectors = (count + kLanes - 1) / kLanes;
        attention_weights<D>(a, seg, w.first, w.width, first, count, ld);
        {
          GemmTile g{};
          g.a = a.scores;
          g.lda = kQueries;
          g.b = v + begin;
          g.ldb = D;
          g.c = a.o + begin + static_cast<int64_t>(first) * D + w.start;
          g.ldc = D;
          g.residual = g.c;
          g.ldr = D;
          g.k = seg.length;
          gemm<kTransposed>(count, w.columns, g);
        }
        {  // d_scores[key][query] = v . d_o
          GemmTile g{};
          g.a = a.v + begin + w.first;
          g.b = a.d_o_t + w.first * ld + seg.begin + first;
          g.ldb = ld;
          g.c = a.d_scores;
          g.ldc = kQueries;
          g.k = w.width;
          gemm<D>(seg.length, count, g);
        }
        for (int c = 0; c < vectors * kLanes; c += kLanes) {
          Vec inner = zero();
          for (int j = 0; j < seg.length; ++j)
            inner += load(a.scores + j * kQueries + c) * load(a.d_scores + j * kQueries + c);
          // dV needs the weights, so the score gradient gets its own block.
          for (int j = 0; j < seg.length; ++j) {
            float* d = a.d_scores + j * kQueries + c;
            store(d, load(a.scores + j * kQueries + c) * (load(d) - inner));
          }
        }
        GemmTile g{};
        g.ldb = D;
        g.ldc = D;
        g.ldr = D;
        g.k = count;
        g.a = a.scores;  // dv[key] += weights d_o
        g.b = d_o + begin + static_cast<int64_t>(first) * D;
        g.c = a.dv + begin + w.start;
        g.residual = g.c;
        gemm<kQueries>(seg.length, w.columns, g);
        g.a = a.d_scores;  // dk[key] += d_scores q
        g.b = q + begin + static_cast<int64_t>(first) * D;
        g.c = a.dk + begin + w.start;
        g.residual = g.c;
        gemm<kQueries>(seg.length, w.columns, g);
        g.lda = kQueries;  // dq[query] += d_scores^T k
        g.b = k + begin;
        g.c = a.dq + begin + static_cast<int64_t>(first) * D + w.start;
        g.residual = g.c;
        g.k = seg.length;
        gemm<kTransposed>(count, w.columns, g);
      }
    }
  }
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
