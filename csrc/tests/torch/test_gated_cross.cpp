// gated_cross on sizes that are no multiple of anything: what the sanitizers should see.
#include "common/isa.h"
#include "tests/torch/op.h"

using namespace mtlfast::test;

namespace {

std::vector<Tensor> run(const Tensor& x, const Tensor& x0, const Tensor& weight, const Tensor& bias,
                        const Tensor& grad) {
  std::vector<Tensor> results = call("mtlfast::gated_cross_forward", 3, x, x0, weight, bias, true);
  for (const Tensor& t : call("mtlfast::gated_cross_backward", 4, grad, x, x0, weight, results[1],
                              results[2], true, true))
    results.push_back(t);
  return results;
}

}  // namespace

TEST(gated_cross_agrees_on_every_instruction_set) {
  Random r(1);
  const int64_t shapes[][3] = {// networks, rows, width
                               {1, 400, 33},
                               {3, 97, 1},
                               {2, 5, 64},
                               {1, 193, 130},
                               {2, 0, 8}};
  for (const auto& [networks, rows, width] : shapes) {
    const Tensor x = random(r, {networks, rows, width}), x0 = random(r, {networks, rows, width}),
                 weight = random(r, {networks, 2 * width, width}),
                 bias = random(r, {networks, width}), grad = random(r, {networks, rows, width});
    const std::vector<Tensor> results = run(x, x0, weight, bias, grad);
    with_isa("portable", [&] {
      const std::vector<Tensor> expected = run(x, x0, weight, bias, grad);
      for (size_t i = 0; i < results.size(); ++i)
        CHECK_CLOSE(difference(results[i], expected[i]), 0.0, 1e-5);
    });
    const Tensor alone = call("mtlfast::gated_cross_forward", 3, x, x0, weight, bias, false)[0];
    CHECK_CLOSE(difference(alone, results[0]), 0.0, 0.0);
  }
}

TEST(gated_cross_refuses_other_shapes) {
  Random r(2);
  const Tensor x = random(r, {2, 9, 8}), weight = random(r, {2, 16, 8}), bias = random(r, {2, 8});
  CHECK_THROWS(run(x, random(r, {2, 8, 8}), weight, bias, x));
  CHECK_THROWS(run(x, x, random(r, {2, 8, 8}), bias, x));
  CHECK_THROWS(run(x, x, random(r, {1, 16, 8}), bias, x));
  CHECK_THROWS(run(x, x, weight, random(r, {2, 16}), x));
  CHECK_THROWS(run(x, x, weight, bias, random(r, {2, 9, 7})));
  CHECK_THROWS(run(random(r, {9, 8}), x, weight, bias, x));
}
