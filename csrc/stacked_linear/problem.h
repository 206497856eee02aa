// What cpu.cpp (torch side) and the per-ISA kernels say to each other. Plain pointers and sizes
// only.
//
// S streams of R rows; stream s is multiplied by its own weight [out, in]. `out` may consist of
// several parts (networks that read the same stream), which matters to the gradient's layout alone.
#pragma once

#include <cstdint>

namespace mtlfast {
namespace stacked_linear {

struct Problem {
  int64_t streams, rows;
  int part, out, in;  // out = parts * part
  bool relu;
  const float* x;  // unit stride along `in`
  int64_t x_stream, x_row;
  const float* weight;  // [streams][out][in]
  const float* bias;    // [streams][out], or null
};

struct GradientSource {
  const float* grad;  // [stream][row][part index][column]
  int64_t stride[4];
  const float* out;  // the forward's result, contiguous; null without ReLU
};

constexpr int kPanel = 64;  // columns of a packed panel

constexpr int64_t padded(int64_t n, int64_t multiple = 16) {
  return (n + multiple - 1) / multiple * multiple;
}

// Rows that are taken together: enough to reuse a panel, few enough for the second-level cache.
constexpr int kRows = 96;
constexpr int kGradientRows = 192;  // more, as every block adds to all sums

// Packed weights of one stream: panels of the transpose for the forward, of the weight itself for
// the gradient of x.
inline int64_t packed_size(const Problem& p, bool for_backward) {
  return for_backward ? padded(p.in, kPanel) * p.out : padded(p.out, kPanel) * p.in;
}
inline int64_t forward_scratch(const Problem&) {
  return int64_t{kRows} * kPanel + padded(kPanel);
}
inline int64_t backward_scratch(const Problem& p) {
  return kGradientRows * (padded(p.out) + padded(p.in) + kPanel);
}
// Sums of one partition: weight [out][padded in], then bias [padded out].
inline int64_t sums_size(const Problem& p) {
  return p.out * padded(p.in) + padded(p.out);
}

}  // namespace stacked_linear
}  // namespace mtlfast

#define MTLFAST_DECLARE_STACKED_LINEAR(isa)                                                        \
  namespace isa {                                                                                  \
  void stacked_linear_pack(const stacked_linear::Problem&, bool for_backward, int64_t stream,      \
                           float* packed);                                                         \
  /* Rows [begin, end) of one stream; `out` is [streams][rows][out]. */                            \
  void stacked_linear_forward(const stacked_linear::Problem&, const float* packed, int64_t stream, \
                              int64_t begin, int64_t end, float* out, float* scratch);             \
  /* The same rows' share of the sums is added to `sums`; grad_x [streams][rows][in] may be null.  \
   */                                                                                              \
  void stacked_linear_backward(const stacked_linear::Problem&,                                     \
                               const stacked_linear::GradientSource&, const float* packed,         \
                               int64_t stream, int64_t begin, int64_t end, float* grad_x,          \
                               float* sums, float* scratch);                                       \
  }
