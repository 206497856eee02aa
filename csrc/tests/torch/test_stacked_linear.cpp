// stacked_linear on sizes that are no multiple of anything: what the sanitizers should see.
#include <optional>

#include "common/isa.h"
#include "tests/torch/op.h"

using namespace mtlfast::test;

namespace {

std::vector<Tensor> run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Tensor& grad, bool relu) {
  const Tensor out = call("mtlfast::stacked_linear_forward", 1, x, weight, bias, relu)[0];
  std::vector<Tensor> results =
      call("mtlfast::stacked_linear_backward", 3, grad, x, weight, bias, out, relu, true);
  results.insert(results.begin(), out);
  return results;
}

}  // namespace

TEST(stacked_linear_agrees_on_every_instruction_set) {
  Random r(1);
  const int64_t shapes[][5] = {// streams, rows, maps of a stream, out, in
                               {1, 400, 4, 24, 33},
                               {3, 97, 1, 1, 64},
                               {2, 5, 3, 7, 1},
                               {1, 193, 1, 65, 130},
                               {1, 0, 2, 8, 8}};
  for (const auto& [streams, rows, parts, out, in] : shapes)
    for (const bool has_bias : {false, true}) {
      const Tensor x = random(r, {streams, rows, in}),
                   weight = random(r, {streams * parts, out, in});
      const Tensor grad = random(r, {streams, rows, parts, out});
      std::optional<Tensor> bias;
      if (has_bias) bias = random(r, {streams * parts, out});
      const std::vector<Tensor> results = run(x, weight, bias, grad, false);
      with_isa("portable", [&] {
        const std::vector<Tensor> expected = run(x, weight, bias, grad, false);
        for (size_t i = 0; i < results.size(); ++i)
          CHECK_CLOSE(difference(results[i], expected[i]), 0.0, 1e-5);
      });
      for (const Tensor& t : run(x, weight, bias, grad, true)) CHECK(finite(t));
    }
}

TEST(stacked_linear_refuses_other_shapes) {
  Random r(2);
  const Tensor x = random(r, {2, 9, 8}), weight = random(r, {4, 3, 8}), bias = random(r, {4, 3});
  const Tensor grad = random(r, {2, 9, 2, 3});
  const std::optional<Tensor> none, short_bias = random(r, {3, 3}), some = bias;
  CHECK_THROWS(run(x, random(r, {3, 3, 8}), none, grad, true));
  CHECK_THROWS(run(x, random(r, {4, 3, 7}), none, grad, true));
  CHECK_THROWS(run(x, weight, short_bias, grad, true));
  CHECK_THROWS(run(x, weight, some, random(r, {2, 8, 2, 3}), true));
  CHECK_THROWS(
      call("mtlfast::stacked_linear_backward", 3, grad, x, weight, some, bias, true, true));
}
