// Calls an op through torch's dispatcher from plain C++, as a server without Python would.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/check.h"

namespace mtlfast::test {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The `outputs` tensors that mtlfast::<name> returns; std::runtime_error where it refuses.
template <class... Args>
std::vector<Tensor> call(const char* name, size_t outputs, const Args&... args) {
  std::vector<StableIValue> stack{torch::stable::detail::from(args)...};
  stack.resize(std::max(stack.size(), outputs));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  std::vector<Tensor> results;
  for (size_t i = 0; i < outputs; ++i)
    results.push_back(torch::stable::detail::to<Tensor>(stack[i]));
  return results;
}

inline Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype);
}

inline Tensor as(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

inline Tensor random(Random& source, const std::vector<int64_t>& shape,
                     ScalarType dtype = ScalarType::Float, float scale = 1.0f) {
  Tensor t = empty(shape, ScalarType::Float);
  auto* p = static_cast<float*>(t.mutable_data_ptr());
  for (int64_t i = 0; i < t.numel(); ++i) p[i] = scale * source.value();
  return as(t, dtype);
}

inline Tensor integers(const std::vector<int64_t>& values) {
  Tensor t = empty({static_cast<int64_t>(values.size())}, ScalarType::Long);
  std::copy(values.begin(), values.end(), static_cast<int64_t*>(t.mutable_data_ptr()));
  return t;
}

inline std::vector<float> floats(const Tensor& t) {
  const Tensor f = torch::stable::contiguous(as(t, ScalarType::Float));
  const auto* p = static_cast<const float*>(f.const_data_ptr());
  return std::vector<float>(p, p + f.numel());
}

// The norm of a - b relative to that of b; infinite where a NaN is on one side alone.
inline double difference(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = floats(a), y = floats(b);
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double error = 0.0, norm = 1e-12;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) != std::isnan(y[i])) return std::numeric_limits<double>::infinity();
    if (std::isnan(x[i])) continue;
    const double delta = static_cast<double>(x[i]) - y[i];
    error += delta * delta;
    norm += static_cast<double>(y[i]) * y[i];
  }
  return std::sqrt(error / norm);
}

inline bool finite(const Tensor& t) {
  const std::vector<float> x = floats(t);
  return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

// Runs `body` with a lower instruction set, and puts the former one back.
template <class Body>
void with_isa(const char* name, const Body& body) {
  const char* before = mtlfast_cpu_capability();
  mtlfast_set_cpu_capability(name);
  body();
  mtlfast_set_cpu_capability(before);
}

}  // namespace mtlfast::test
