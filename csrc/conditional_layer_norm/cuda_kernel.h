// The CUDA kernels of conditional_layer_norm, free of torch.
//
// A row belongs to a group of LANES threads of one warp; a thread holds VECS vectors of four of its
// elements, so that d <= 4 * LANES * VECS. Arithmetic is float32. Sums have a fixed order: results
// have the same bits in every run.
#pragma once

#include <cstdint>

#include "../common/cuda_elements.h"
#include "problem.h"

namespace mtlfast {
namespace conditional_layer_norm {
namespace cuda {

using namespace mtlfast::cuda;

constexpr int kThreads = 128;
constexpr int kVector = 4;
constexpr int kMaxDims = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

// A tensor as rows of d elements: where a step of each loop leads, in elements.
struct Operand {
  void* data = nullptr;
  Kind kind = Kind::float32;
  int64_t stride[kMaxDims] = {};
};

// What all kernels know. Row `i` of the result has one index per loop, the last one fastest.
struct Rows {
  Operand x, residual, scale, shift, statistics, grad;  // residual.data may be null
  int64_t size[kMaxDims] = {};
  int dims = 1;
  int64_t count = 0;
  int d = 0;
  float eps = 0.0f;
  bool narrow = true;   // row numbers fit into 32 bits, whose divisions are much faster
  bool vectors = true;  // every row of every operand may be read and written by whole vectors
  float* mean = nullptr;
  float* rstd = nullptr;
};

struct Offsets {
  int64_t x = 0, residual = 0, scale = 0, shift = 0, statistics = 0, grad = 0;
};

__device__ inline void step(Offsets& at, const Rows& p, int dim, int64_t index) {
  at.x += index * p.x.stride[dim];
  at.residual += index * p.residual.stride[dim];
  at.scale += index * p.scale.stride[dim];
  at.shift += index * p.shift.stride[dim];
  at.statistics += index * p.statistics.stride[dim];
  at.grad += index * p.grad.stride[dim];
}

template <class Index>
__device__ inline void locate(Offsets& at, const Rows& p, Index row) {
#pragma unroll 1
  for (int dim = p.dims - 1; dim > 0; --dim) {
    const Index size = static_cast<Index>(p.size[dim]);
    const Index outer = row / size;
    step(at, p, dim, static_cast<int64_t>(row - outer * size));
    row = outer;
  }
  step(at, p, 0, static_cast<int64_t>(row));
}

__device__ inline Offsets offsets(const Rows& p, int64_t row) {
  Offsets at;
  if (p.narrow)
    locate(at, p, static_cast<uint32_t>(row));
  else
    locate(at, p, row);
  return at;
}

// ---- elements ----

__device__ inline float load_one(const Operand& o, int64_t at) {
  return mtlfast::cuda::load_one(o.data, o.kind, at);
}

__device__ inline void store_one(const Operand& o, int64_t at, float value) {
  mtlfast::cuda::store_one(o.data, o.kind, at, value);
}

__device__ inline void load_vector(const Operand& o, int64_t at, float (&v)[kVector]) {
  load_four(o.data, o.kind, at, v);
}

__device__ inline void store_vector(const Operand& o, int64_t at, const float (&v)[kVector]) {
  store_four(o.data, o.kind, at, v);
}

// ---- rows ----

// The part of a row that one thread of a group holds; what lies beyond d is 0.
template <int LANES, int VECS>
struct Part {
  float v[VECS][kVector];

  static __device__ int column(int vec, int lane) { return (vec * LANES + lane) * kVector; }

  __device__ void fill(float value) {
    for (int j = 0; j < VECS; ++j)
      for (int e = 0; e < kVector; ++e) v[j][e] = value;
  }

  __device__ void load(const Rows& p, const Operand& o, int64_t at, int lane, bool valid) {
#pragma unroll
    for (int j = 0; j < VECS; ++j) {
      const int col = column(j, lane);
      for (int e = 0; e < kVector; ++e) v[j][e] = 0.0f;
      if (!valid || col >= p.d) continue;
      if (p.vectors) {
        load_vector(o, at + col, v[j]);
      } else {
        for (int e = 0; e < kVector; ++e)
          if (col + e < p.d) v[j][e] = load_one(o, at + col + e);
      }
    }
  }

  __device__ void store(const Rows& p, const Operand& o, int64_t at, int lane) const {
#pragma unroll
    for (int j = 0; j < VECS; ++j) {
      const int col = column(j, lane);
      if (col >= p.d) continue;
      if (p.vectors) {
        store_vector(o, at + col, v[j]);
      } else {
        for (int e = 0; e < kVector; ++e)
          if (col + e < p.d) store_one(o, at + col + e, v[j][e]);
      }
    }
  }

  // f(element, column), for the columns below d.
  template <class F>
  __device__ void each(const Rows& p, int lane, F f) {
#pragma unroll
    for (int j = 0; j < VECS; ++j)
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        if (column(j, lane) + e < p.d) f(v[j][e], j, e);
  }
};

template <int LANES>
__device__ inline float sum_of_group(float value) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

// x + residual of one row.
template <int LANES, int VECS>
__device__ inline Part<LANES, VECS> load_u(const Rows& p, const Offsets& at, int lane, bool valid) {
  Part<LANES, VECS> u;
  u.load(p, p.x, at.x, lane, valid);
  if (p.residual.data != nullptr) {
    Part<LANES, VECS> more;
    more.load(p, p.residual, at.residual, lane, valid);
    u.each(p, lane, [&](float& value, int j, int e) { value += more.v[j][e]; });
  }
  return u;
}

// The same, normalised with saved statistics.
template <int LANES, int VECS>
__device__ inline Part<LANES, VECS> load_normalized(const Rows& p, const Offsets& at, int lane,
                                                    bool valid, float rstd) {
  Part<LANES, VECS> u = load_u<LANES, VECS>(p, at, lane, valid);
  const float mean = valid ? p.mean[at.statistics] : 0.0f;
  u.each(p, lane, [&](float& value, int, int) { value = (value - mean) * rstd; });
  return u;
}

// From the gradient of the normalised row, in place, that of the row itself.
template <int LANES, int VECS>
__device__ inline void through_norm(const Rows& p, Part<LANES, VECS>& grad,
                                    Part<LANES, VECS>& normalized, int lane, float rstd) {
  float sum = 0.0f, along = 0.0f;
  grad.each(p, lane, [&](float& g, int j, int e) {
    sum += g;
    along += g * normalized.v[j][e];
  });
  const float size = static_cast<float>(p.d);
  sum = sum_of_group<LANES>(sum) / size;
  along = sum_of_group<LANES>(along) / size;
  grad.each(p, lane,
            [&](float& g, int j, int e) { g = (g - sum - normalized.v[j][e] * along) * rstd; });
}

// ---- kernels ----

struct Forward {
  Rows rows;
  Operand out;  // contiguous: row i starts at i * d
};

template <int LANES, int VECS>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Forward f) {
  const Rows& p = f.rows;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + group;
  const bool valid = row < p.count;
  const Offsets at = offsets(p, valid ? row : 0);
  Part<LANES, VECS> u = load_u<LANES, VECS>(p, at, lane, valid);

  const float size = static_cast<float>(p.d);
  float sum = 0.0f;
  u.each(p, lane, [&](float& value, int, int) { sum += value; });
  const float mean = sum_of_group<LANES>(sum) / size;
  float squares = 0.0f;
  u.each(p, lane, [&](float& value, int, int) {
    value -= mean;
    squares += value * value;
  });
  const float rstd = 1.0f / sqrtf(sum_of_group<LANES>(squares) / size + p.eps);
  if (!valid) return;

  Part<LANES, VECS> scale, shift;
  scale.load(p, p.scale, at.scale, lane, true);
  shift.load(p, p.shift, at.shift, lane, true);
  u.each(p, lane, [&](float& value, int j, int e) {
    value = scale.v[j][e] * (value * rstd) + shift.v[j][e];
  });
  u.store(p, f.out, row * p.d, lane);
  if (p.mean != nullptr && lane == 0) {
    // Rows that share their x + residual all write the same numbers.
    p.mean[at.statistics] = mean;
    p.rstd[at.statistics] = rstd;
  }
}

// Rows (i, k): i over what x + residual varies along, k over the rest, which is summed.
struct BackwardRows {
  Rows rows;
  Operand grad_u;  // contiguous, as the statistics
  int64_t outer = 0, inner = 0;
};

template <int LANES, int VECS>
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(const __grid_constant__ BackwardRows b) {
  const Rows& p = b.rows;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + group;
  const bool valid = row < b.outer;
  const int64_t first = (valid ? row : 0) * b.inner;
  Part<LANES, VECS> total;
  total.fill(0.0f);
#pragma unroll 1
  for (int64_t k = 0; k < b.inner; ++k) {
    const Offsets at = offsets(p, first + k);
    Part<LANES, VECS> grad, scale;
    grad.load(p, p.grad, at.grad, lane, valid);
    scale.load(p, p.scale, at.scale, lane, valid);
    total.each(p, lane, [&](float& t, int j, int e) { t += grad.v[j][e] * scale.v[j][e]; });
  }
  const Offsets at = offsets(p, first);
  const float rstd = valid ? p.rstd[at.statistics] : 0.0f;
  Part<LANES, VECS> normalized = load_normalized<LANES, VECS>(p, at, lane, valid, rstd);
  through_norm<LANES, VECS>(p, total, normalized, lane, rstd);
  if (valid) total.store(p, b.grad_u, at.statistics * p.d, lane);
}

// Rows (q, r): q over what the tables vary along, r over the rest, which is summed. A block takes
// `chunk` of the r, of one q; with EACH, of one q per group, one r after the other.
struct BackwardTables {
  Rows rows;
  Operand grad_u;                  // data may be null; else every row has its own x + residual
  Operand grad_scale, grad_shift;  // [chunks, outer, d]; data may be null
  int64_t outer = 0, inner = 0, chunk = 0, chunks = 0;
};

// Blocks per multiprocessor are asked for only to say how many registers there are: left to itself,
// ptxas spills a few bytes to stay below 64.
template <int LANES, int VECS, bool EACH>
__global__ void __launch_bounds__(kThreads, VECS <= 2 ? 4 : 2)
    backward_tables_kernel(const __grid_constant__ BackwardTables b) {
  constexpr int kGroups = kThreads / LANES;
  const Rows& p = b.rows;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t block = static_cast<int64_t>(blockIdx.x) / b.chunks;
  const int64_t part = static_cast<int64_t>(blockIdx.x) - block * b.chunks;
  const int64_t begin = part * b.chunk;
  const int64_t end = begin + b.chunk < b.inner ? begin + b.chunk : b.inner;
  const int64_t q = EACH ? block * kGroups + group : block;
  const bool normalize = b.grad_scale.data != nullptr || b.grad_u.data != nullptr;

  Part<LANES, VECS> sum_scale, sum_shift;
  sum_scale.fill(0.0f);
  sum_shift.fill(0.0f);
#pragma unroll 1
  for (int64_t r0 = begin; r0 < end; r0 += EACH ? 1 : kGroups) {
    const int64_t r = EACH ? r0 : r0 + group;
    const bool valid = EACH ? q < b.outer : r < end;
    const Offsets at = offsets(p, valid ? q * b.inner + r : 0);
    Part<LANES, VECS> grad;
    grad.load(p, p.grad, at.grad, lane, valid);
    sum_shift.each(p, lane, [&](float& s, int j, int e) { s += grad.v[j][e]; });
    if (!normalize) continue;
    const float rstd = valid ? p.rstd[at.statistics] : 0.0f;
    Part<LANES, VECS> normalized = load_normalized<LANES, VECS>(p, at, lane, valid, rstd);
    sum_scale.each(p, lane,
                   [&](float& s, int j, int e) { s += grad.v[j][e] * normalized.v[j][e]; });
    if (b.grad_u.data == nullptr) continue;
    Part<LANES, VECS> scale;
    scale.load(p, p.scale, at.scale, lane, valid);
    grad.each(p, lane, [&](float& g, int j, int e) { g *= scale.v[j][e]; });
    through_norm<LANES, VECS>(p, grad, normalized, lane, rstd);
    if (valid) grad.store(p, b.grad_u, at.statistics * p.d, lane);
  }

  const int64_t place = (part * b.outer + q) * p.d;
  if (EACH) {
    if (q >= b.outer) return;
    if (b.grad_scale.data != nullptr) sum_scale.store(p, b.grad_scale, place, lane);
    if (b.grad_shift.data != nullptr) sum_shift.store(p, b.grad_shift, place, lane);
    return;
  }
  // The groups' sums, added up by the threads of the block, one column each.
  constexpr int kWidth = LANES * VECS * kVector;
  __shared__ float partial[2][kGroups][kWidth];
  sum_scale.each(p, lane, [&](float& s, int j, int e) {
    partial[0][group][Part<LANES, VECS>::column(j, lane) + e] = s;
  });
  sum_shift.each(p, lane, [&](float& s, int j, int e) {
    partial[1][group][Part<LANES, VECS>::column(j, lane) + e] = s;
  });
  __syncthreads();
  for (int col = threadIdx.x; col < p.d; col += kThreads) {
    float scale = 0.0f, shift = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      scale += partial[0][g][col];
      shift += partial[1][g][col];
    }
    if (b.grad_scale.data != nullptr) store_one(b.grad_scale, place + col, scale);
    if (b.grad_shift.data != nullptr) store_one(b.grad_shift, place + col, shift);
  }
}

// to[i] = sum over chunks of from[chunk * elements + i].
struct AddPartials {
  const float* from = nullptr;
  Operand to;
  int64_t chunks = 0, elements = 0;
};

template <int COLUMNS>
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const __grid_constant__ AddPartials a) {
  constexpr int kParts = kThreads / COLUMNS;
  const int part = threadIdx.x / COLUMNS;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * COLUMNS + threadIdx.x % COLUMNS;
  float sum = 0.0f;
  if (i < a.elements)
    for (int64_t chunk = part; chunk < a.chunks; chunk += kParts)
      sum += a.from[chunk * a.elements + i];
  __shared__ float sums[kParts][COLUMNS];
  sums[part][threadIdx.x % COLUMNS] = sum;
  __syncthreads();
  if (part != 0 || i >= a.elements) return;
  for (int other = 1; other < kParts; ++other) sum += sums[other][threadIdx.x % COLUMNS];
  store_one(a.to, i, sum);
}

constexpr int kPartialColumns = 16;

}  // namespace cuda
}  // namespace conditional_layer_norm
}  // namespace mtlfast
