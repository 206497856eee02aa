// The weights as the micro-kernels want them: rows padded to a compile-time stride D, the right
// operand of every product contiguous over its output columns, the FFN cut into blocks of kHidden.
#pragma once

#include <initializer_list>

#include "gemm_bf16_rows.h"
#include "rows.h"

namespace mtlfast {
namespace MTLFAST_ISA {

using conditional_interest::Problem;
using conditional_interest::Transformer;

constexpr int kHidden = 64;  // hidden units of the FFN that are in flight at once
constexpr int kTransposedRows =
    16;  // rows of a matrix that are transposed together: they stay in L1

// The whole-vector window of columns that covers one attention head.
struct HeadWindow {
  int first;    // first column of the head
  int start;    // first column of the window
  int columns;  // width of the window
  int width;    // columns of the head
  bool exact() const { return start == first && columns == width; }
};

MTLFAST_INLINE HeadWindow head_window(int head, int head_dim) {
  HeadWindow w;
  w.first = head * head_dim;
  w.width = head_dim;
  w.start = w.first / kLanes * kLanes;
  w.columns = round_up_lanes(w.first + head_dim - w.start);
  return w;
}

MTLFAST_INLINE int widest_window(int head_dim, int columns) {
  const int widest = head_dim % kLanes == 0 ? head_dim : round_up_lanes(head_dim + kLanes - 1);
  return widest < columns ? widest : columns;
}

struct Shape {
  Width width;
  int d, ffn, heads, head_dim;
  int blocks;  // of kHidden
  int window;  // widest head window
  float score_scale;
  bool bf16;
  explicit Shape(const Problem& p)
      : width{p.d, round_up_lanes(p.d)},
        d(p.d),
        ffn(p.ffn),
        heads(p.heads),
        head_dim(p.d / p.heads),
        blocks((p.ffn + kHidden - 1) / kHidden),
        window(widest_window(p.d / p.heads, round_up_lanes(p.d))),
        score_scale(1.0f / __builtin_sqrtf(static_cast<float>(p.d / p.heads))),
        bf16(p.bf16) {}
  int hidden_in(int block) const {
    const int left = ffn - block * kHidden;
    return left < kHidden ? left : kHidden;
  }
};

// Gradients of one transformer's FFN, in the layout of GradLayout: w1 [ffn][D], w2 [d][ffn stride].
struct FfnGradients {
  float *w1, *b1, *w2, *b2;
  int ffn_stride;
};

template <int D>
struct PackedFfn {
  float* w1;           // [blocks * kHidden][D]
  float* b1;           // [blocks * kHidden]
  float* w2;           // [blocks][d][kHidden]
  float* b2;           // [D]
  float* w1_t;         // [blocks][d][kHidden]         (backward)
  float* w2_t;         // [blocks * kHidden][D]        (backward)
  uint32_t* w1_pairs;  // [blocks * kHidden][D / 2] bfloat16 pairs, for bfloat16 activations
  uint32_t* w2_pairs;  // [blocks][d][kHidden / 2]
  // backward for bfloat16 activations: the rows of w1_t, w2_t, w1 and w2 interleaved by twos
  uint32_t *w1_t_twos, *w2_t_twos, *w1_twos, *w2_twos;

  void layout(Arena& a, const Shape& s) {
    const int64_t hidden = static_cast<int64_t>(s.blocks) * kHidden;
    w1_t = a.take(hidden * s.d);
    b1 = a.take(hidden);
    w2_t = a.take(hidden * D);
    b2 = a.take(D);
    w1 = a.take(hidden * D);
    w2 = a.take(hidden * s.d);
    w1_pairs = reinterpret_cast<uint32_t*>(a.take(s.bf16 ? hidden * D / 2 : 0));
    w2_pairs = reinterpret_cast<uint32_t*>(a.take(s.bf16 ? hidden * s.d / 2 : 0));
    for (uint32_t** m : {&w1_t_twos, &w2_twos})
      *m = reinterpret_cast<uint32_t*>(a.take(s.bf16 ? hidden * s.d / 2 : 0));
    for (uint32_t** m : {&w2_t_twos, &w1_twos})
      *m = reinterpret_cast<uint32_t*>(a.take(s.bf16 ? hidden * D / 2 : 0));
  }

  void fill(const Transformer& t, const Shape& s, bool for_backward) const {
    const int64_t hidden = static_cast<int64_t>(s.blocks) * kHidden;
    fill_zero(w1, hidden * D);
    fill_zero(b1, hidden);
    fill_zero(w2, hidden * s.d);
    fill_zero(b2, D);
    copy_floats(b1, t.b1, s.ffn);
    copy_floats(b2, t.b2, s.d);
    for (int j = 0; j < s.ffn; ++j) copy_floats(w1 + int64_t{j} * D, t.w1 + int64_t{j} * s.d, s.d);
    for (int i = 0; i < s.d; ++i)
      for (int block = 0; block < s.blocks; ++block)
        copy_floats(w2 + (int64_t{block} * s.d + i) * kHidden,
                    t.w2 + int64_t{i} * s.ffn + block * kHidden, s.hidden_in(block));
#ifdef MTLFAST_BF16_PRODUCTS
    if (s.bf16) {
      for (int64_t i = 0; i < hidden * D / 2; ++i)
        w1_pairs[i] = bf16_pair(w1[2 * i], w1[2 * i + 1]);
      for (int64_t i = 0; i < hidden * s.d / 2; ++i)
        w2_pairs[i] = bf16_pair(w2[2 * i], w2[2 * i + 1]);
    }
#endif
    if (!for_backward) return;
    fill_zero(w1_t, hidden * s.d);
    fill_zero(w2_t, hidden * D);
    for (int first = 0; first < s.ffn; first += kTransposedRows) {
      const int count = s.ffn - first < kTransposedRows ? s.ffn - first : kTransposedRows;
      const int64_t block = static_cast<int64_t>(first / kHidden) * s.d * kHidden + first % kHidden;
      for (int i = 0; i < s.d; ++i)
        for (int j = 0; j < count; ++j) {
          w1_t[block + int64_t{i} * kHidden + j] = t.w1[int64_t{first + j} * s.d + i];
          w2_t[int64_t{first + j} * D + i] = t.w2[int64_t{i} * s.ffn + first + j];
        }
    }
#ifdef MTLFAST_BF16_PRODUCTS
    if (!s.bf16) return;
    interleave_rows(w1_t, s.blocks * s.d, kHidden, kHidden, w1_t_twos);
    interleave_rows(w2, s.blocks * s.d, kHidden, kHidden, w2_twos);
    interleave_rows(w2_t, static_cast<int>(hidden), D, D, w2_t_twos);
    interleave_rows(w1, static_cast<int>(hidden), D, D, w1_twos);
#endif
  }
};

// dst [d][D] = src [d][d], transposed when asked for, times factor.
template <int D>
void pack_square(const float* src, int d, bool transpose, float factor, float* dst) {
  fill_zero(dst, static_cast<int64_t>(d) * D);
  if (!transpose) {
    for (int64_t o = 0; o < d; ++o)
      for (int64_t i = 0; i < d; ++i) dst[o * D + i] = src[o * d + i] * factor;
    return;
  }
  for (int64_t first = 0; first < d; first += kTransposedRows) {
    const int64_t end = first + kTransposedRows < d ? first + kTransposedRows : d;
    for (int64_t i = 0; i < d; ++i)
      for (int64_t o = first; o < end; ++o) dst[i * D + o] = src[o * d + i] * factor;
  }
}

#ifdef MTLFAST_BF16_PRODUCTS
// dst [d][D / 2] = src [d][d] as pairs of neighbours; d is even.
template <int D>
void pack_pairs(const float* src, int d, uint32_t* dst) {
  for (int o = 0; o < d; ++o)
    for (int i = 0; i < D / 2; ++i)
      dst[o * (D / 2) + i] =
          2 * i < d ? bf16_pair(src[int64_t{o} * d + 2 * i], src[int64_t{o} * d + 2 * i + 1]) : 0;
}
#endif

// dst [heads][d][window]: src transposed to [in][out], for each head only its own output columns.
inline void pack_head_windows(const float* src, const Shape& s, float* dst) {
  fill_zero(dst, static_cast<int64_t>(s.heads) * s.d * s.window);
  for (int h = 0; h < s.heads; ++h) {
    const HeadWindow w = head_window(h, s.head_dim);
    for (int i = 0; i < s.d; ++i)
      for (int o = w.first; o < w.first + w.width; ++o)
        dst[(static_cast<int64_t>(h) * s.d + i) * s.window + (o - w.start)] =
            src[static_cast<int64_t>(o) * s.d + i];
  }
}

// From this many candidates of one user on, projecting the user's keys and values once is cheaper
// than absorbing the projections into every candidate: 2 d^2 multiply-adds per token and task
// against 2 (h - 1) d more per token, task and candidate, and the horizontal sums of the absorbed
// form. Below `least` too many lanes of a block of candidates are idle.
inline int64_t sharing_threshold(const Problem& p, int64_t least = 8) {
  const int64_t d = p.d, absorbed = (p.heads - 1) * d + 64;
  const int64_t threshold = d * d / absorbed + 1;
  return threshold < least ? least : threshold;
}
inline bool shares_users(const Problem& p, int64_t least = 8) {
  return p.busiest >= sharing_threshold(p, least);
}

template <int D>
struct Packed {
  // [d][D], out x in; the queries' weights carry the factor 1 / sqrt(head_dim)
  float *eq, *ek, *ev, *eo, *dq, *dk, *dv, *dout;
  uint32_t *eq_pairs, *ek_pairs, *ev_pairs;  // [d][D / 2] bfloat16 pairs, without the factor
  float *dq_t, *dk_t, *dv_t;                 // [d][D], in x out
  PackedFfn<D> encoder, decoder;
  float *scale, *shift;  // [T][M][4][D]
  // backward only
  float *eq_t, *ek_t, *ev_t, *do_t;  // [d][D], in x out
  float *dv_heads, *dk_heads;        // [heads][d][window]

  int64_t layout(float* base, const Problem& p) {
    const Shape s(p);
    Arena a{base};
    const int64_t square = static_cast<int64_t>(s.d) * D;
    const int64_t windows = static_cast<int64_t>(s.heads) * s.d * s.window;
    for (float** m : {&eq, &ek, &ev, &eo, &dq, &dk, &dv, &dout, &dq_t, &dk_t, &dv_t, &eq_t, &ek_t,
                      &ev_t, &do_t})
      *m = a.take(square);
    for (uint32_t** m : {&eq_pairs, &ek_pairs, &ev_pairs})
      *m = reinterpret_cast<uint32_t*>(a.take(s.bf16 ? square / 2 : 0));
    dv_heads = a.take(windows);
    dk_heads = a.take(windows);
    encoder.layout(a, s);
    decoder.layout(a, s);
    const int64_t table = static_cast<int64_t>(p.tasks) * p.behaviors * 4 * D;
    scale = a.take(table);
    shift = a.take(table);
    return a.used;
  }

  void fill(const Problem& p, bool for_backward) const {
    const Shape s(p);
    const Transformer &e = p.encoder, &t = p.decoder;
    pack_square<D>(e.q, s.d, false, s.score_scale, eq);
    pack_square<D>(e.k, s.d, false, 1.0f, ek);
    pack_square<D>(e.v, s.d, false, 1.0f, ev);
    pack_square<D>(e.o, s.d, false, 1.0f, eo);
#ifdef MTLFAST_BF16_PRODUCTS
    if (s.bf16) {
      pack_pairs<D>(e.q, s.d, eq_pairs);
      pack_pairs<D>(e.k, s.d, ek_pairs);
      pack_pairs<D>(e.v, s.d, ev_pairs);
    }
#endif
    pack_square<D>(t.q, s.d, true, s.score_scale, dq_t);
    pack_square<D>(t.q, s.d, false, s.score_scale, dq);
    pack_square<D>(t.k, s.d, false, 1.0f, dk);
    pack_square<D>(t.v, s.d, false, 1.0f, dv);
    pack_square<D>(t.o, s.d, false, 1.0f, dout);
    if (shares_users(p)) {
      pack_square<D>(t.k, s.d, true, 1.0f, dk_t);
      pack_square<D>(t.v, s.d, true, 1.0f, dv_t);
    }
    if (for_backward) {
      pack_square<D>(e.q, s.d, true, s.score_scale, eq_t);
      pack_square<D>(e.k, s.d, true, 1.0f, ek_t);
      pack_square<D>(e.v, s.d, true, 1.0f, ev_t);
      pack_square<D>(t.o, s.d, true, 1.0f, do_t);
      pack_head_windows(t.v, s, dv_heads);
      pack_head_windows(t.k, s, dk_heads);
    }
    encoder.fill(e, s, for_backward);
    decoder.fill(t, s, for_backward);
    const int64_t rows = static_cast<int64_t>(p.tasks) * p.behaviors * 4;
    fill_zero(scale, rows * D);
    fill_zero(shift, rows * D);
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < s.d; ++i) {
        scale[r * D + i] = p.scale[r * s.d + i];
        shift[r * D + i] = p.shift[r * s.d + i];
      }
  }

  const float* scale_row(const Problem& p, int task, int behavior, int position) const {
    return scale + ((static_cast<int64_t>(task) * p.behaviors + behavior) * 4 + position) * D;
  }
  const float* shift_row(const Problem& p, int task, int behavior, int position) const {
    return shift + ((static_cast<int64_t>(task) * p.behaviors + behavior) * 4 + position) * D;
  }
};

// c [rows][D] = a weight (+ residual) for square weights, in x out.
template <int D>
void project(const float* a, const float* weight, int rows, const Shape& s, float* c,
             const float* residual = nullptr) {
  GemmTile g{};
  g.a = a;
  g.b = weight;
  g.ldb = D;
  g.c = c;
  g.ldc = D;
  g.residual = residual;
  g.ldr = D;
  g.k = s.d;
  gemm<D>(rows, s.d, g);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
