// Pieces of a backward through linear maps, shared by the ops that have one.
#pragma once

#include "../common/gemm.h"
#include "problem.h"

namespace mtlfast {
namespace MTLFAST_ISA {
namespace stacked_linear_products {

using namespace stacked_linear;

// dst[r][0, columns) = src[r][...], zeros up to `width`.
inline void copy_rows(const float* src, int64_t ld, int rows, int columns, float* dst, int width) {
  for (int r = 0; r < rows; ++r) {
    const float* from = src + r * ld;
    float* to = dst + static_cast<int64_t>(r) * width;
    int c = 0;
    for (; c + kLanes <= columns; c += kLanes) store(to + c, load(from + c));
    if (c < columns) {
      store(to + c, load_first(from + c, columns - c));
      c += kLanes;
    }
    for (; c < width; c += kLanes) store(to + c, zero());
  }
}

// Rows that are read once: all lines are asked for at once instead of one after another.
inline void prefetch_rows(const float* src, int64_t ld, int rows, int columns) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += 16) __builtin_prefetch(src + r * ld + c, 0, 2);
}

// sums[c] += the sum of column c of m [rows][width], for c in [0, columns rounded up to vectors).
// Sums of a few rows, then of those: one row after the other, rounding errors would add up over
// thousands of rows. torch sums in pairs.
inline void add_column_sums(const float* m, int rows, int64_t width, int columns, float* sums) {
  for (int c = 0; c < columns; c += kLanes) {
    Vec part[8];
    for (Vec& sum : part) sum = zero();
    const auto row = [&](int r) { return load(m + r * width + c); };
    int r = 0;
    for (; r + 8 <= rows; r += 8)
      for (int i = 0; i < 8; ++i) part[i] += row(r + i);
    for (; r < rows; ++r) part[r % 8] += row(r);
    for (int half = 4; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    store(sums + c, load(sums + c) + part[0]);
  }
}

// sums [out][padded in] += grad^T x for rows [begin, begin + rows); grad [rows][padded out].
// `x_copy` is scratch of [rows][padded in].
inline void add_weight_gradient(const Problem& p, const float* grad, int64_t stream, int64_t begin,
                                int rows, float* sums, float* x_copy) {
  const int64_t out = padded(p.out), in = padded(p.in);
  const float* from = p.x + stream * p.x_stream + begin * p.x_row;
  const float* x = from;
  int64_t x_row = p.x_row;
  if (p.in % kLanes != 0) {  // vectors must not read behind the last row
    copy_rows(from, p.x_row, rows, p.in, x_copy, static_cast<int>(in));
    x = x_copy;
    x_row = in;
  } else {
    prefetch_rows(from, p.x_row, rows, p.in);
  }
  for (int first = 0; first < p.in; first += kPanel) {
    GemmTile dw{};  // dW[out][in] += grad^T x
    dw.a = grad;
    dw.lda = out;
    dw.b = x + first;
    dw.ldb = x_row;
    dw.c = sums + first;
    dw.ldc = in;
    dw.residual = dw.c;
    dw.ldr = in;
    dw.k = rows;
    gemm<kTransposed>(p.out, p.in - first < kPanel ? p.in - first : kPanel, dw);
  }
}

// One panel of grad times the weight: rows x columns [first, first + kPanel) of the gradient of x.
inline GemmTile input_gradient_panel(const Problem& p, const float* grad, const float* packed,
                                     int first) {
  GemmTile dx{};
  dx.a = grad;
  dx.lda = padded(p.out);
  dx.b = packed + int64_t{first} * p.out;
  dx.ldb = kPanel;
  dx.k = p.out;
  return dx;
}

}  // namespace stacked_linear_products
}  // namespace MTLFAST_ISA
}  // namespace mtlfast
