// conditional_layer_norm on fuzzed shapes, broadcasts and strides: what the sanitizers should see.
// Results are only compared among instruction sets here; the Python tests hold them to the
// reference.
#include <optional>

#include "common/isa.h"
#include "tests/torch/op.h"

using namespace mtlfast::test;

namespace {

using Shape = std::vector<int64_t>;

// A shape that broadcasts against `full`: some leading dimensions are 1, or missing at the front.
Shape broadcast_from(Random& r, const Shape& full) {
  Shape shape = full;
  for (size_t i = 0; i + 1 < shape.size(); ++i)
    if (r.integer(0, 1) == 0) shape[i] = 1;
  const auto missing = r.integer(0, static_cast<int64_t>(shape.size()) - 1);
  shape.erase(shape.begin(), shape.begin() + missing);
  return shape;
}

// How the op numbers the dtype of its result.
int64_t kind_of(ScalarType dtype) {
  return dtype == ScalarType::Float ? 0 : dtype == ScalarType::BFloat16 ? 1 : 2;
}

std::vector<Tensor> forward_backward(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                     const std::optional<Tensor>& residual, const Tensor& grad) {
  std::vector<Tensor> results = call("mtlfast::conditional_layer_norm_forward", 3, x, scale, shift,
                                     residual, 1e-5, kind_of(x.scalar_type()), true);
  const std::vector<Tensor> gradients =
      call("mtlfast::conditional_layer_norm_backward", 4, grad, x, scale, shift, residual,
           results[1], results[2], true, true, true, residual.has_value());
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

void check_shape(Random& r, const Shape& full, ScalarType dtype, double tolerance) {
  const Tensor x = random(r, broadcast_from(r, full), dtype);
  const Tensor scale = random(r, broadcast_from(r, full));
  const Tensor shift = random(r, full);  // together they broadcast to `full`
  std::optional<Tensor> residual;
  if (r.integer(0, 1) == 0) residual = random(r, broadcast_from(r, full), dtype);
  const Tensor grad = random(r, full, dtype);
  const std::vector<Tensor> results = forward_backward(x, scale, shift, residual, grad);
  for (const Tensor& t : results) CHECK(finite(t));
  with_isa("portable", [&] {
    const std::vector<Tensor> expected = forward_backward(x, scale, shift, residual, grad);
    for (size_t i = 0; i < results.size(); ++i)
      CHECK_CLOSE(difference(results[i], expected[i]), 0.0, tolerance);
  });
}

}  // namespace

TEST(layer_norm_broadcasts) {
  Random r(11);
  for (int round = 0; round < 40; ++round) {
    Shape full(static_cast<size_t>(r.integer(1, 4)));
    for (int64_t& size : full) size = r.integer(1, 7);
    full.back() = r.integer(1, 70);
    check_shape(r, full, ScalarType::Float, 1e-3);
  }
}

TEST(layer_norm_low_precision) {
  Random r(12);
  for (const ScalarType dtype : {ScalarType::BFloat16, ScalarType::Half})
    for (const int64_t d : {1, 8, 17, 64}) check_shape(r, {5, 3, d}, dtype, 0.1);
}

TEST(layer_norm_many_rows) {
  Random r(13);
  check_shape(r, {3000, 2, 24}, ScalarType::Float, 1e-3);
  check_shape(r, {2, 3000, 9}, ScalarType::Float, 1e-3);
}

TEST(layer_norm_nothing_to_do) {
  Random r(14);
  check_shape(r, {0, 4, 8}, ScalarType::Float, 0.0);
  check_shape(r, {4, 0, 8}, ScalarType::Float, 0.0);
}

TEST(layer_norm_wrong_shapes_are_refused) {
  Random r(15);
  const Tensor x = random(r, {4, 8}), table = random(r, {8}), wrong = random(r, {9});
  const std::optional<Tensor> none, bad = random(r, {3, 8});
  const char* name = "mtlfast::conditional_layer_norm_forward";
  CHECK_THROWS(call(name, 3, x, wrong, table, none, 1e-5, int64_t{0}, false));
  CHECK_THROWS(call(name, 3, x, table, wrong, none, 1e-5, int64_t{0}, false));
  CHECK_THROWS(call(name, 3, x, table, table, bad, 1e-5, int64_t{0}, false));
  for (const int64_t kind : {-1, 3, 6})
    CHECK_THROWS(call(name, 3, x, table, table, none, 1e-5, kind, false));
}
