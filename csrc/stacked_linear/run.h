// What the torch side of every op on linear maps needs: packed weights, and sums over the rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../common/isa.h"
#include "../common/work.h"
#include "problem.h"

namespace mtlfast {

MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_STACKED_LINEAR)

namespace stacked_linear {

using torch::stable::Tensor;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("mtlfast: " + message);
}

inline Tensor unit_last_stride(const Tensor& t) {
  return t.stride(2) == 1 || t.size(2) == 1 ? t : torch::stable::contiguous(t);
}

inline int64_t blocks_of(const Problem& p, int64_t rows) {
  return (p.rows + rows - 1) / rows;
}

// The packed weights of every stream.
inline Tensor pack(const Tensor& like, const Problem& p, bool for_backward, float** packed) {
  const int64_t size = packed_size(p, for_backward);
  Tensor memory =
      torch::stable::new_empty(like, {p.streams * size + 16}, torch::headeronly::ScalarType::Float);
  *packed = static_cast<float*>(memory.mutable_data_ptr());
  for_each_item(p.streams, 0, [&](int64_t stream, float*) {
    MTLFAST_SELECT_ISA(stacked_linear_pack)(p, for_backward, stream, *packed + stream * size);
  });
  return memory;
}

// Partial sums: how many depends on the shapes alone, so results never depend on the threads.
inline int64_t partitions_of(const Problem& p, int64_t blocks) {
  constexpr int64_t kMostFloats = int64_t{1} << 23, kMost = 8, kFewest = 2;
  const int64_t affordable = kMostFloats / std::max<int64_t>(1, p.streams * sums_size(p));
  const int64_t wanted = std::max<int64_t>(1, kMost / p.streams);
  return std::min(blocks, std::max(kFewest, std::min(wanted, affordable)));
}

// Runs block(stream, begin, end, sums, scratch) on blocks of rows; each adds its share to `sums`,
// laid out as sums_size says. The totals are added to to_weight [streams][out][in], and those of
// the first `biased` outputs to to_bias [streams][biased], which may be null.
template <typename Block>
void sum_over_rows(const Tensor& like, const Problem& p, int64_t scratch_floats, int biased,
                   float* to_weight, float* to_bias, const Block& block) {
  const int64_t blocks = blocks_of(p, kGradientRows), sums = sums_size(p);
  const int64_t partitions = partitions_of(p, blocks);
  const Tensor partial = torch::stable::new_empty(like, {p.streams * partitions * sums + 16},
                                                  torch::headeronly::ScalarType::Float);
  auto* sum = static_cast<float*>(partial.mutable_data_ptr());
  for_each_item(p.streams * partitions, scratch_floats, [&](int64_t item, float* scratch) {
    const int64_t stream = item / partitions, partition = item % partitions;
    std::fill_n(sum + item * sums, sums, 0.0f);
    for (int64_t b = blocks * partition / partitions; b < blocks * (partition + 1) / partitions;
         ++b)
      block(stream, b * kGradientRows, std::min((b + 1) * kGradientRows, p.rows), sum + item * sums,
            scratch);
  });
  const int64_t ld = padded(p.in);
  for_each_item(p.streams * p.out, 0, [&](int64_t item, float*) {
    const int64_t stream = item / p.out, row = item % p.out;
    for (int64_t i = 0; i < partitions; ++i) {
      const float* from = sum + (stream * partitions + i) * sums;
      for (int64_t c = 0; c < p.in; ++c) to_weight[item * p.in + c] += from[row * ld + c];
      if (to_bias != nullptr && row < biased)
        to_bias[stream * biased + row] += from[p.out * ld + row];
    }
  });
}

}  // namespace stacked_linear
}  // namespace mtlfast
