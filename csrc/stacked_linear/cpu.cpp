// stacked_linear on the CPU: arguments and threads. The arithmetic is in cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../common/isa.h"
#include "../common/work.h"
#include "run.h"

namespace mtlfast {
namespace {

using namespace stacked_linear;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Call {
  Tensor x, weight;
  std::optional<Tensor> bias;
  Problem problem{};

  Call(const Tensor& rows, const Tensor& weights, const std::optional<Tensor>& biases, bool relu)
      : x(rows), weight(weights) {
    require(x.dim() == 3 && x.scalar_type() == ScalarType::Float,
            "x: expected float32 [S, R, in] on the CPU kernel");
    require(weight.dim() == 3 && weight.scalar_type() == ScalarType::Float &&
                weight.size(2) == x.size(2),
            "weight: expected float32 [G, out, in] with x's width");
    const int64_t streams = x.size(0), groups = weight.size(0);
    require(streams > 0 && groups % streams == 0,
            "weight: expected a multiple of x's streams, found " + std::to_string(groups) +
                " networks and " + std::to_string(streams) + " streams");
    x = unit_last_stride(x);
    weight = as_float(weight);
    Problem& p = problem;
    p.streams = streams;
    p.rows = x.size(1);
    p.part = static_cast<int>(weight.size(1));
    p.out = static_cast<int>(groups / streams * weight.size(1));
    p.in = static_cast<int>(x.size(2));
    p.relu = relu;
    p.x = static_cast<const float*>(x.const_data_ptr());
    p.x_stream = x.stride(0);
    p.x_row = x.stride(1);
    p.weight = static_cast<const float*>(weight.const_data_ptr());
    if (biases.has_value()) {
      require(biases->scalar_type() == ScalarType::Float && biases->numel() == streams * p.out,
              "bias: expected float32 [G, out]");
      bias = as_float(*biases);
      p.bias = static_cast<const float*>(bias->const_data_ptr());
    }
  }
};

Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, bool relu) {
  const Call call(x, weight, bias, relu);
  const Problem& p = call.problem;
  Tensor out = torch::stable::new_empty(x, {p.streams, p.rows, p.out / std::max(p.part, 1), p.part},
                                        ScalarType::Float);
  if (out.numel() == 0) return out;
  float* packed;
  const Tensor memory = pack(x, p, false, &packed);
  const int64_t blocks = blocks_of(p, kRows), size = packed_size(p, false);
  auto* to = static_cast<float*>(out.mutable_data_ptr());
  for_each_item(p.streams * blocks, forward_scratch(p), [&](int64_t item, float* scratch) {
    const int64_t stream = item / blocks, begin = item % blocks * kRows;
    MTLFAST_SELECT_ISA(stacked_linear_forward)
    (p, packed + stream * size, stream, begin, std::min(begin + kRows, p.rows), to, scratch);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor weight,
                                            std::optional<Tensor> bias, Tensor out, bool relu,
                                            bool need_x) {
  const Call call(x, weight, bias, relu);
  const Problem& p = call.problem;
  require(grad_out.dim() == 4 && grad_out.size(0) == p.streams && grad_out.size(1) == p.rows &&
              grad_out.size(2) * grad_out.size(3) == p.out && grad_out.size(3) == p.part &&
              grad_out.scalar_type() == ScalarType::Float,
          "grad_out: expected float32 of the output's shape");
  require(!relu || (out.numel() == p.streams * p.rows * p.out && out.is_contiguous() &&
                    out.scalar_type() == ScalarType::Float),
          "out: expected the forward's result");
  Tensor grad_x = torch::stable::new_empty(
      x, {need_x ? p.streams : 0, p.rows, static_cast<int64_t>(p.in)}, ScalarType::Float);
  Tensor grad_weight = torch::stable::new_zeros(x, {weight.size(0), weight.size(1), weight.size(2)},
                                                ScalarType::Float);
  Tensor grad_bias = torch::stable::new_zeros(
      x, {bias.has_value() ? weight.size(0) : 0, weight.size(1)}, ScalarType::Float);
  if (p.rows == 0 || p.out == 0) {
    if (need_x) torch::stable::zero_(grad_x);
    return {grad_x, grad_weight, grad_bias};
  }
  const GradientSource source{
      static_cast<const float*>(grad_out.const_data_ptr()),
      {grad_out.stride(0), grad_out.stride(1), grad_out.stride(2), grad_out.stride(3)},
      relu ? static_cast<const float*>(out.const_data_ptr()) : nullptr};
  float* packed = nullptr;
  const Tensor memory = need_x ? pack(x, p, true, &packed) : grad_x;
  const int64_t size = packed_size(p, true);
  auto* to_x = need_x ? static_cast<float*>(grad_x.mutable_data_ptr()) : nullptr;
  sum_over_rows(x, p, backward_scratch(p), p.out,
                static_cast<float*>(grad_weight.mutable_data_ptr()),
                bias.has_value() ? static_cast<float*>(grad_bias.mutable_data_ptr()) : nullptr,
                [&](int64_t stream, int64_t begin, int64_t end, float* sums, float* scratch) {
                  MTLFAST_SELECT_ISA(stacked_linear_backward)
                  (p, source, need_x ? packed + stream * size : nullptr, stream, begin, end, to_x,
                   sums, scratch);
                });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlfast, CPU, m) {
  m.impl("stacked_linear_forward", TORCH_BOX(&forward));
  m.impl("stacked_linear_backward", TORCH_BOX(&backward));
}

}  // namespace mtlfast
