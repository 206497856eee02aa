// What cpu.cpp (torch side) and the per-ISA kernels say to each other. Plain pointers and sizes
// only.
//
// G networks with their own rows: out = x + x0 * value * gate with value = x Wv^T + b and
// gate = sigmoid(x Wg^T). The two maps are one linear map of 2 D outputs, first the values.
#pragma once

#include "../stacked_linear/problem.h"

namespace mtlfast {
namespace gated_cross {

using stacked_linear::kGradientRows;
using stacked_linear::kPanel;
using stacked_linear::kRows;
using stacked_linear::padded;

struct Problem {
  stacked_linear::Problem linear;  // both maps of a network as one: out = 2 D
  const float* x0;                 // unit stride along D
  int64_t x0_stream, x0_row;
};

// Both maps as networks of their own, for packing: a panel then never holds columns of both.
inline stacked_linear::Problem halves(stacked_linear::Problem p) {
  p.streams *= 2;
  p.part /= 2;
  p.out /= 2;
  return p;
}

struct Saved {
  float *value, *gate;  // [G][R][D], what the backward reads
};

struct Gradients {
  const float* out;  // unit stride along D
  int64_t out_stream, out_row;
  float *x, *x0;  // [G][R][D], or null
};

inline int64_t forward_scratch() {
  return 2 * int64_t{kRows} * kPanel + padded(kPanel);
}

}  // namespace gated_cross
}  // namespace mtlfast

#define MTLFAST_DECLARE_GATED_CROSS(isa)                                                        \
  namespace isa {                                                                               \
  /* Rows [begin, end) of one network; `packed`: its halves, packed; out [G][R][D]; `saved` may \
   * hold nulls. */                                                                             \
  void gated_cross_forward(const gated_cross::Problem&, const float* packed, int64_t network,   \
                           int64_t begin, int64_t end, float* out, gated_cross::Saved saved,    \
                           float* scratch);                                                     \
  /* The same rows' share of the weights' gradients is added to `sums`. */                      \
  void gated_cross_backward(const gated_cross::Problem&, const gated_cross::Gradients&,         \
                            gated_cross::Saved saved, const float* packed, int64_t network,     \
                            int64_t begin, int64_t end, float* sums, float* scratch);           \
  }
