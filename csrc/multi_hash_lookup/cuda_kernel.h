// The CUDA kernels of multi_hash_indices and multi_hash_lookup, free of torch.
//
// A row of the result, of one hash function, belongs to a group of LANES threads of one warp; a
// thread holds VECS vectors of four of its columns. Each thread of a group hashes another cross;
// then the group fetches the codewords of all of them, one after the other. Sums have a fixed
// order: results have the same bits in every run.
#pragma once

#include <cstdint>

#include "../common/cuda_elements.h"
#include "../common/hash.h"
#include "numbering.h"
#include "problem.h"

namespace mtlfast {
namespace multi_hash_lookup {
namespace cuda {

using namespace mtlfast::cuda;

constexpr int kThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Hashed {
  Fields fields;
  const int64_t* ids = nullptr;
  int64_t stride_sample = 0, stride_field = 0;
  int64_t crosses = 0, num_hashes = 1, first_hash = 0;
  uint64_t num_codewords = 1;
};

__device__ inline uint64_t key_of(const Hashed& h, int64_t sample, int field) {
  const int64_t id = h.ids[sample * h.stride_sample + field * h.stride_field];
  return hash::key(static_cast<uint64_t>(field), static_cast<uint64_t>(id));
}

// The keys of the fields of one cross; of pairs, the third is not used.
struct Keys {
  uint64_t first, second, third;
};

__device__ inline Keys keys_of(const Hashed& h, int64_t sample, int i, int j, int k) {
  Keys keys{key_of(h, sample, i), key_of(h, sample, j), 0};
  if (h.fields.order == 3) keys.third = key_of(h, sample, k);
  return keys;
}

// In [0, num_codewords), whatever the ids.
__device__ inline uint32_t codeword_of(const Hashed& h, const Keys& keys, uint64_t seed) {
  uint64_t hashed = hash::cross(hash::cross(seed, keys.first), keys.second);
  if (h.fields.order == 3) hashed = hash::cross(hashed, keys.third);
  return static_cast<uint32_t>(hash::index(hashed, h.num_codewords));
}

__device__ inline uint64_t seed_of(const Hashed& h, int64_t s) {
  return hash::seed(static_cast<uint64_t>(h.first_hash + s));
}

// ---- indices ----

struct Indices {
  Hashed hashed;
  int64_t rows = 0;        // (sample, cross)
  int64_t* out = nullptr;  // [rows, num_hashes]
};

// `static`: a kernel that is no template has a definition in every file that includes this.
static __global__ void __launch_bounds__(kThreads)
    indices_kernel(const __grid_constant__ Indices p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.rows) return;
  const Hashed& h = p.hashed;
  const int64_t sample = row / h.crosses;
  int i, j, k;
  fields_of(h.fields, static_cast<int>(row - sample * h.crosses), i, j, k);
  const Keys keys = keys_of(h, sample, i, j, k);
  for (int64_t s = 0; s < h.num_hashes; ++s)
    p.out[row * h.num_hashes + s] = codeword_of(h, keys, seed_of(h, s));
}

// ---- lookup ----

struct Weights {
  const void* data = nullptr;  // null: all are 1
  Kind kind = Kind::float32;
  int64_t sample = 0, cross = 0, member = 0;  // strides in elements
};

struct Forward {
  Hashed hashed;
  const void* codebook = nullptr;
  Kind kind = Kind::float32;
  int64_t book_stride = 0, row_stride = 0;  // in elements; between books 0 where there is one
  int width = 0;
  bool vectors = true;  // rows of all operands may be read by whole vectors
  Weights pair_weights, codeword_weights;
  int64_t rows = 0;      // of `out`: (sample, field or cross, hash function)
  float* out = nullptr;  // [rows, width]
};

// The columns of a row that one thread of a group holds.
template <int LANES, int VECS>
struct Columns {
  float v[VECS][4];

  static __device__ int first(int vec, int lane) { return (vec * LANES + lane) * 4; }

  // What lies beyond the width is left as it is.
  __device__ void load(const Forward& f, const void* data, Kind kind, int64_t at, int lane) {
#pragma unroll
    for (int j = 0; j < VECS; ++j) {
      const int column = first(j, lane);
      if (column >= f.width) continue;
      if (f.vectors) {
        load_four(data, kind, at + column, v[j]);
      } else {
        for (int e = 0; e < 4; ++e)
          if (column + e < f.width) v[j][e] = load_one(data, kind, at + column + e);
      }
    }
  }

  __device__ void fill(float value) {
#pragma unroll
    for (int j = 0; j < VECS; ++j)
      for (int e = 0; e < 4; ++e) v[j][e] = value;
  }

  __device__ void store(const Forward& f, int64_t row, int lane) const {
#pragma unroll
    for (int j = 0; j < VECS; ++j) {
      const int column = first(j, lane);
      if (column >= f.width) continue;
      if (f.vectors) {
        store_four(f.out, Kind::float32, row * f.width + column, v[j]);
      } else {
        for (int e = 0; e < 4; ++e)
          if (column + e < f.width) f.out[row * f.width + column + e] = v[j][e];
      }
    }
  }
};

// total += weight * codeword_weights * codeword of one cross.
template <int LANES, int VECS>
__device__ inline void add_codeword(const Forward& f, Columns<LANES, VECS>& total, int64_t book,
                                    uint32_t index, float weight, int64_t sample, int64_t number,
                                    int64_t s, int lane) {
  Columns<LANES, VECS> word, scale;
  word.fill(0.0f);
  word.load(f, f.codebook, f.kind, book + static_cast<int64_t>(index) * f.row_stride, lane);
  const Weights& w = f.codeword_weights;
  if (w.data != nullptr) {
    scale.fill(0.0f);
    scale.load(f, w.data, w.kind, sample * w.sample + number * w.cross + s * f.width, lane);
  }
#pragma unroll
  for (int j = 0; j < VECS; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float value = w.data != nullptr ? word.v[j][e] * scale.v[j][e] : word.v[j][e];
      total.v[j][e] += weight * value;
    }
}

__device__ inline float pair_weight(const Forward& f, int64_t sample, int64_t number, int place) {
  const Weights& w = f.pair_weights;
  if (w.data == nullptr) return 1.0f;
  return load_one(w.data, w.kind, sample * w.sample + number * w.cross + place * w.member);
}

// A row is (sample, field, hash function): the sum over the crosses with that field. Blocks per
// multiprocessor are asked for only to say how many registers there are: left to itself, ptxas
// spills a few bytes to stay below 48.
template <int LANES, int VECS>
__global__ void __launch_bounds__(kThreads, VECS <= 2 ? 5 : 2)
    pooled_kernel(const __grid_constant__ Forward f) {
  const Hashed& h = f.hashed;
  const Fields& fields = h.fields;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + group;
  const bool valid = row < f.rows;
  const int64_t rest = (valid ? row : 0) / h.num_hashes;
  const int64_t s = (valid ? row : 0) - rest * h.num_hashes;
  const int64_t sample = rest / fields.count;
  const int field = static_cast<int>(rest - sample * fields.count);
  const uint64_t seed = seed_of(h, s), own = key_of(h, sample, field);
  const int64_t book = s * f.book_stride;
  // The other fields of a cross: one, or a pair.
  const int others = fields.order == 3 ? pairs_before(fields.count, fields.count) : fields.count;

  Columns<LANES, VECS> total;
  total.fill(0.0f);
#pragma unroll 1
  for (int begin = 0; begin < others; begin += LANES) {
    // The cross that this thread hashes; no cross: -1.
    int number = -1;
    uint32_t index = 0;
    float weight = 0.0f;
    const int other = begin + lane;
    if (valid && other < others) {
      int place = 0;
      Keys keys{own, own, own};
      if (fields.order == 3) {
        int g, k;
        pair_of(other, fields.count, g, k);
        if (g != field && k != field) {
          place = (field > g ? 1 : 0) + (field > k ? 1 : 0);
          const int first = field < g ? field : g, last = field > k ? field : k;
          const int middle = field + g + k - first - last;
          number = number_of_triple(fields, first, middle, last);
          const uint64_t of_g = key_of(h, sample, g), of_k = key_of(h, sample, k);
          keys.first = place == 0 ? own : of_g;
          keys.third = place == 2 ? own : of_k;
          keys.second = own ^ of_g ^ of_k ^ keys.first ^ keys.third;
        }
      } else if (other != field && (is_key(fields, other) || is_key(fields, field))) {
        place = field > other ? 1 : 0;
        number = place == 0 ? number_of_pair(fields, field, other)
                            : number_of_pair(fields, other, field);
        const uint64_t of_other = key_of(h, sample, other);
        keys.first = place == 0 ? own : of_other;
        keys.second = place == 0 ? of_other : own;
      }
      if (number >= 0) {
        index = codeword_of(h, keys, seed);
        weight = pair_weight(f, sample, number, place);
      }
    }
    const int count = others - begin < LANES ? others - begin : LANES;
#pragma unroll VECS == 1 ? 4 : 1
    for (int u = 0; u < count; ++u) {
      const int number_u = __shfl_sync(kAllLanes, number, u, LANES);
      const uint32_t index_u = __shfl_sync(kAllLanes, index, u, LANES);
      const float weight_u = __shfl_sync(kAllLanes, weight, u, LANES);
      if (number_u >= 0) add_codeword(f, total, book, index_u, weight_u, sample, number_u, s, lane);
    }
  }
  if (valid) total.store(f, row, lane);
}

// A row is (sample, cross, hash function).
template <int LANES, int VECS>
__global__ void __launch_bounds__(kThreads) crosses_kernel(const __grid_constant__ Forward f) {
  const Hashed& h = f.hashed;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + group;
  if (row >= f.rows) return;
  const int64_t rest = row / h.num_hashes, s = row - rest * h.num_hashes;
  const int64_t sample = rest / h.crosses;
  const int number = static_cast<int>(rest - sample * h.crosses);
  int i, j, k;
  fields_of(h.fields, number, i, j, k);
  const uint32_t index = codeword_of(h, keys_of(h, sample, i, j, k), seed_of(h, s));
  Columns<LANES, VECS> total;
  total.fill(0.0f);
  add_codeword(f, total, s * f.book_stride, index, pair_weight(f, sample, number, 0), sample,
               number, s, lane);
  total.store(f, row, lane);
}

}  // namespace cuda
}  // namespace multi_hash_lookup
}  // namespace mtlfast
