// gated_cross on the CPU: arguments and threads. The arithmetic is in cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../stacked_linear/run.h"
#include "problem.h"

namespace mtlfast {

MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_GATED_CROSS)

namespace {

using stacked_linear::blocks_of;
using stacked_linear::pack;
using stacked_linear::require;
using stacked_linear::sum_over_rows;
using stacked_linear::unit_last_stride;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_float(const Tensor& t, int64_t dim) {
  return t.dim() == dim && t.scalar_type() == ScalarType::Float;
}

bool same_shape(const Tensor& a, const Tensor& b) {
  return is_float(a, 3) && a.size(0) == b.size(0) && a.size(1) == b.size(1) &&
         a.size(2) == b.size(2);
}

struct Call {
  Tensor x, x0, weight;
  gated_cross::Problem problem{};

  Call(const Tensor& rows, const Tensor& first, const Tensor& weights)
      : x(rows), x0(first), weight(weights) {
    require(is_float(x, 3), "x: expected float32 [G, R, D] on the CPU kernel");
    require(same_shape(x0, x), "x0: expected float32 of x's shape");
    require(is_float(weight, 3) && weight.size(0) == x.size(0) && weight.size(1) == 2 * x.size(2) &&
                weight.size(2) == x.size(2),
            "weight: expected float32 [G, 2 * D, D]");
    x = unit_last_stride(x);
    x0 = unit_last_stride(x0);
    weight = as_float(weight);
    stacked_linear::Problem& p = problem.linear;
    p.streams = x.size(0);
    p.rows = x.size(1);
    p.part = p.out = static_cast<int>(weight.size(1));
    p.in = static_cast<int>(x.size(2));
    p.x = static_cast<const float*>(x.const_data_ptr());
    p.x_stream = x.stride(0);
    p.x_row = x.stride(1);
    p.weight = static_cast<const float*>(weight.const_data_ptr());
    problem.x0 = static_cast<const float*>(x0.const_data_ptr());
    problem.x0_stream = x0.stride(0);
    problem.x0_row = x0.stride(1);
  }

  // Of x's shape, or nothing.
  Tensor rows(bool wanted) const {
    return torch::stable::new_empty(x, {wanted ? x.size(0) : 0, x.size(1), x.size(2)},
                                    ScalarType::Float);
  }
};

float* pointer(const Tensor& t) {
  return t.numel() == 0 ? nullptr : static_cast<float*>(t.mutable_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor x0, Tensor weight, Tensor bias,
                                           bool save_for_backward) {
  Call call(x, x0, weight);
  require(is_float(bias, 2) && bias.size(0) == x.size(0) && bias.size(1) == x.size(2),
          "bias: expected float32 [G, D]");
  bias = as_float(bias);
  call.problem.linear.bias = static_cast<const float*>(bias.const_data_ptr());
  const gated_cross::Problem& p = call.problem;
  Tensor out = call.rows(true), value = call.rows(save_for_backward),
         gate = call.rows(save_for_backward);
  if (out.numel() == 0) return {out, value, gate};
  const stacked_linear::Problem halves = gated_cross::halves(p.linear);
  float* packed;
  const Tensor memory = pack(x, halves, false, &packed);
  const int64_t blocks = blocks_of(p.linear, gated_cross::kRows),
                size = 2 * packed_size(halves, false);
  const gated_cross::Saved saved{pointer(value), pointer(gate)};
  float* to = pointer(out);
  for_each_item(p.linear.streams * blocks, gated_cross::forward_scratch(),
                [&](int64_t item, float* scratch) {
                  const int64_t network = item / blocks, begin = item % blocks * gated_cross::kRows;
                  MTLFAST_SELECT_ISA(gated_cross_forward)
                  (p, packed + network * size, network, begin,
                   std::min(begin + gated_cross::kRows, p.linear.rows), to, saved, scratch);
                });
  return {out, value, gate};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor x0,
                                                    Tensor weight, Tensor value, Tensor gate,
                                                    bool need_x, bool need_x0) {
  const Call call(x, x0, weight);
  const gated_cross::Problem& p = call.problem;
  require(same_shape(grad_out, x), "grad_out: expected float32 of x's shape");
  require(
      same_shape(value, x) && value.is_contiguous() && same_shape(gate, x) && gate.is_contiguous(),
      "value, gate: expected what the forward saved");
  grad_out = unit_last_stride(grad_out);
  const Tensor grad_x = call.rows(need_x), grad_x0 = call.rows(need_x0);
  const Tensor grad_weight = torch::stable::new_zeros(
      x, {weight.size(0), weight.size(1), weight.size(2)}, ScalarType::Float);
  const Tensor grad_bias = torch::stable::new_zeros(x, {x.size(0), x.size(2)}, ScalarType::Float);
  if (x.numel() == 0) return {grad_x, grad_x0, grad_weight, grad_bias};
  const gated_cross::Gradients gradients{static_cast<const float*>(grad_out.const_data_ptr()),
                                         grad_out.stride(0), grad_out.stride(1), pointer(grad_x),
                                         pointer(grad_x0)};
  const gated_cross::Saved saved{pointer(value), pointer(gate)};
  float* packed = nullptr;
  const Tensor memory = need_x ? pack(x, p.linear, true, &packed) : grad_x;
  const int64_t size = packed_size(p.linear, true);
  sum_over_rows(x, p.linear, backward_scratch(p.linear), p.linear.in, pointer(grad_weight),
                pointer(grad_bias),
                [&](int64_t network, int64_t begin, int64_t end, float* sums, float* scratch) {
                  MTLFAST_SELECT_ISA(gated_cross_backward)
                  (p, gradients, saved, need_x ? packed + network * size : nullptr, network, begin,
                   end, sums, scratch);
                });
  return {grad_x, grad_x0, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlfast, CPU, m) {
  m.impl("gated_cross_forward", TORCH_BOX(&forward));
  m.impl("gated_cross_backward", TORCH_BOX(&backward));
}

}  // namespace mtlfast
