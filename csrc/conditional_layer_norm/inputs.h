// The inputs of conditional_layer_norm as both devices check them: shapes, dtypes, unit last
// stride.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem.h"

namespace mtlfast {
namespace conditional_layer_norm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline std::string text(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return s + "]";
}

inline Shape shape_of(const Tensor& t) {
  return Shape(t.sizes().begin(), t.sizes().end());
}

// Called where something is wrong: to make a message takes longer than to check all shapes.
[[noreturn]] inline void fail(const std::string& message) {
  throw std::runtime_error("mtlfast: " + message);
}

inline Kind kind_of(const char* argument, ScalarType type) {
  if (type == ScalarType::Float) return Kind::float32;
  if (type == ScalarType::BFloat16) return Kind::bfloat16;
  if (type != ScalarType::Half)
    fail(std::string(argument) + ": expected float32, bfloat16 or float16");
  return Kind::float16;
}

// The dtype that the op's argument `out_kind` names.
inline ScalarType dtype_of(int64_t out_kind) {
  constexpr ScalarType kDtypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};
  if (out_kind < 0 || out_kind > 2)
    fail("out_kind: expected 0 (float32), 1 (bfloat16) or 2 (float16), found " +
         std::to_string(out_kind));
  return kDtypes[out_kind];
}

// ---- shapes ----

// Leading dimensions (all but the last) of tensors, aligned on the right as numpy broadcasts them.
inline Shape broadcast_leading(const Shape& a, const Shape& b, const char* argument) {
  const size_t rank = std::max(a.size(), b.size());
  Shape result(rank, 1);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t na = i + a.size() >= rank ? a[i + a.size() - rank] : 1;
    const int64_t nb = i + b.size() >= rank ? b[i + b.size() - rank] : 1;
    if (na != nb && na != 1 && nb != 1)
      fail(std::string(argument) + ": shape " + text(b) + " does not broadcast against " + text(a));
    result[i] = na == 1 ? nb : na;
  }
  return result;
}

inline Shape leading(const Tensor& t) {
  Shape s = shape_of(t);
  s.pop_back();
  return s;
}

inline Shape with_last(Shape s, int64_t d) {
  s.push_back(d);
  return s;
}

inline Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

inline int64_t product(const Shape& s) {
  int64_t n = 1;
  for (const int64_t size : s) n *= size;
  return n;
}

// A tensor whose last dimension has unit stride. Where that needs a copy, dimensions that are
// themselves broadcast (stride 0, as in the gradient of a sum) are not blown up.
inline Tensor unit_last_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (t.stride(last) == 1 || t.size(last) == 1) return t;
  Tensor core = t;
  for (int64_t i = 0; i < last; ++i)
    if (t.stride(i) == 0 && t.size(i) > 1) core = torch::stable::narrow(core, i, 0, 1);
  return torch::stable::contiguous(core);
}

struct Inputs {
  Tensor x, scale, shift;
  std::optional<Tensor> residual;
  int64_t d;
  Shape u, out;  // leading dimensions
};

inline Inputs check_inputs(const Tensor& x, const Tensor& scale, const Tensor& shift,
                           const std::optional<Tensor>& residual) {
  const auto last = [](const char* name, const Tensor& t) {
    if (t.dim() < 1) fail(std::string(name) + ": expected at least one dimension, found none");
    kind_of(name, t.scalar_type());
    return t.size(t.dim() - 1);
  };
  Inputs in{x, scale, shift, residual, last("x", x), leading(x), {}};
  if (in.d < 1) fail("x: expected a last dimension of at least 1, found 0");
  const auto same = [&](const char* name, const Tensor& t) {
    const int64_t d = last(name, t);
    if (d != in.d)
      fail(std::string(name) + ": expected last dimension " + std::to_string(in.d) + ", found " +
           std::to_string(d));
  };
  same("scale", scale);
  same("shift", shift);
  if (residual) {
    same("residual", *residual);
    in.u = broadcast_leading(in.u, leading(*residual), "residual");
  }
  in.out = broadcast_leading(in.u, leading(scale), "scale");
  in.out = broadcast_leading(in.out, leading(shift), "shift");

  in.x = unit_last_stride(x);
  in.scale = unit_last_stride(scale);
  in.shift = unit_last_stride(shift);
  if (residual) in.residual = unit_last_stride(*residual);
  return in;
}

// What the backward is given besides the inputs.
inline void check_backward(const Inputs& in, const Tensor& grad_out, const Tensor& mean,
                           const Tensor& rstd) {
  kind_of("grad_out", grad_out.scalar_type());
  const Shape out = with_last(in.out, in.d);
  if (shape_of(grad_out) != out)
    fail("grad_out: expected shape " + text(out) + ", found " + text(shape_of(grad_out)));
  for (const Tensor* t : {&mean, &rstd})
    if (t->scalar_type() != ScalarType::Float || !t->is_contiguous() || shape_of(*t) != in.u)
      fail("mean, rstd: expected contiguous float32 of shape " + text(in.u) + ", found shape " +
           text(shape_of(*t)));
}

}  // namespace conditional_layer_norm
}  // namespace mtlfast
