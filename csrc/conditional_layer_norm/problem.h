// What cpu.cpp (torch side) and the per-ISA kernels say to each other. Plain pointers and sizes
// only.
//
// All leading dimensions are split into three indices:
//   i  major   one dimension along which u = x + residual varies; its chunks go to the threads
//   j  minor   the other dimensions along which u varies, flattened
//   k  shared  the dimensions along which u is constant (usually tasks), flattened
// so that one row (i, j) of u is normalised once and used for every k.
#pragma once

#include <cstdint>

namespace mtlfast {
namespace conditional_layer_norm {

enum class Kind : int32_t { float32, bfloat16, float16 };

// A tensor as rows of d elements with unit stride; broadcast dimensions have stride 0. Row (i, j,
// k) starts at element i * step + by_minor[j] + by_shared[k].
struct Rows {
  void* data = nullptr;
  Kind kind = Kind::float32;
  int64_t step = 0;
  const int64_t* by_minor = nullptr;
  const int64_t* by_shared = nullptr;
  bool far = false;     // too large to be in the caches: prefetch
  bool stream = false;  // results only: too large to stay in the caches, write past them
};

// In which order rows are taken. Where consecutive rows have one scale and shift, and one k, those
// and the sums that are their gradients stay in registers.
enum class Order : int32_t {
  flat,         // all j of one i, then the next i; every row may have its own
  along_major,  // all i of one j, then the next j: scale and shift depend on j alone
  along_minor   // all j of one i, then the next i: scale and shift depend on i alone
};

struct Problem {
  int64_t minor = 1;
  int64_t shared = 1;
  int64_t d = 0;
  int64_t width = 0;  // d rounded up so that accumulator rows are whole vectors on every ISA
  float eps = 0.0f;
  // x, residual, the output or its gradient and the gradients that are written row by row are all
  // of x's dtype; scale and shift may have their own.
  bool uniform = false;
  Order order = Order::flat;
  Rows x, residual, scale, shift;  // residual.data may be null
  Rows statistics;                 // where row (i, j) is in mean and rstd; no data
  float* mean = nullptr;           // null: not wanted (forward only)
  float* rstd = nullptr;
};

// How a gradient is summed over the dimensions along which its tensor is broadcast.
enum class Sum : int32_t {
  none,       // not wanted
  direct,     // nothing to sum: every row is written once
  per_major,  // summed within one i
  per_chunk   // summed over i: every chunk has partial sums, added up at the end
};

// Sums are kept in float32 and in two levels, so that rounding errors stay close to those of a
// pairwise sum: about this many terms in the first.
constexpr int64_t kFirstLevel = 32;

// One gradient.
struct Gradient {
  Sum sum = Sum::none;
  Rows rows;                       // direct: the result; per_major: where the rows of i = 0 start
  int64_t count = 0;               // accumulator rows, each `width` floats
  const int64_t* flush = nullptr;  // per_major: where accumulator row r goes, beyond i * step
  int64_t fold_every = 1;          // rows added to all accumulators before the second level
  int64_t partial = 0;             // per_chunk: where its rows start in the chunk's partial sums
};

struct Backward {
  Problem problem;
  Rows grad_out;
  // Direct: elements of the result. Otherwise by_minor and by_shared address accumulators.
  Gradient x, scale, shift, residual;
};

constexpr int64_t kWidth = 16;  // the widest vector of any instruction set, in floats

// Rows that are normalised together: as many as stay in the L1 cache. Where rows are narrow, whole
// groups of one row per lane of any instruction set.
constexpr int64_t kMostBlockRows = 64;
constexpr int64_t block_rows(int64_t d) {
  const int64_t rows = 2048 / d;
  if (rows >= kMostBlockRows) return kMostBlockRows;
  return rows >= kWidth ? rows / kWidth * kWidth : rows < 2 ? 2 : rows;
}

// Floats of scratch that one call needs.
inline int64_t forward_scratch(const Problem& p) {
  return (2 + block_rows(p.d)) * p.width;
}
inline int64_t gradient_scratch(const Gradient& g, int64_t width) {
  const bool summed = g.sum == Sum::per_major || g.sum == Sum::per_chunk;
  return summed ? g.count * width * (g.sum == Sum::per_major ? 2 : 1) : 0;
}
inline int64_t backward_scratch(const Backward& b) {
  const int64_t w = b.problem.width;
  return (5 + 2 * kWidth) * w + gradient_scratch(b.x, w) + gradient_scratch(b.scale, w) +
         gradient_scratch(b.shift, w) + gradient_scratch(b.residual, w);
}

}  // namespace conditional_layer_norm
}  // namespace mtlfast

#define MTLFAST_DECLARE_CONDITIONAL_LAYER_NORM(isa)                                               \
  namespace isa {                                                                                 \
  /* Rows with major index in [begin, end). `scratch` is aligned to 64 bytes. */                  \
  void conditional_layer_norm_forward(const conditional_layer_norm::Problem&,                     \
                                      const conditional_layer_norm::Rows& out, int64_t begin,     \
                                      int64_t end, float* scratch);                               \
  /* The same, one chunk; its partial sums are written to `partials`. */                          \
  void conditional_layer_norm_backward(const conditional_layer_norm::Backward&, int64_t begin,    \
                                       int64_t end, float* partials, float* scratch);             \
  /* out[r] = the sum over chunks of partials[chunk * stride + r * width], rows [begin, end). */  \
  void conditional_layer_norm_add_partials(const float* partials, int64_t chunks, int64_t stride, \
                                           int64_t width, int64_t d,                              \
                                           conditional_layer_norm::Kind kind, int64_t begin,      \
                                           int64_t end, void* out);                               \
  }
