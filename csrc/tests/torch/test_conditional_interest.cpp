// conditional_interest on ragged shapes and on malformed data: what the sanitizers should see.
// Results are only compared among instruction sets here; the Python tests hold them to the
// reference.
#include <limits>
#include <optional>
#include <string>

#include "common/isa.h"
#include "tests/torch/op.h"

using namespace mtlfast::test;

namespace {

struct Inputs {
  int64_t behaviors = 0;
  int64_t heads = 0;
  int64_t max_len = 0;
  std::vector<int64_t> offsets;
  std::optional<std::vector<int64_t>> user_index;
  Tensor values, target, scale, shift, grad;
  std::vector<Tensor> weights;
};

// In bfloat16 every hidden unit is kept far from the kink of its ReLU: instruction sets round
// differently, and a unit on the other side of it changes whole rows of gradients.
Tensor hidden_bias(Random& r, int64_t ffn, ScalarType dtype) {
  Tensor bias = random(r, {ffn});
  auto* b = static_cast<float*>(bias.mutable_data_ptr());
  if (dtype == ScalarType::BFloat16)
    for (int64_t i = 0; i < ffn; ++i) b[i] += b[i] < 0.0f ? -5.0f : 5.0f;
  return bias;
}

Inputs make(Random& r, int64_t users, std::optional<int64_t> candidates, int64_t tasks,
            int64_t behaviors, int64_t d, int64_t ffn, int64_t heads, int64_t longest,
            ScalarType dtype) {
  const int64_t rows = candidates.value_or(users);
  Inputs in;
  in.behaviors = behaviors;
  in.heads = heads;
  in.offsets = {0};
  for (int64_t s = 0; s < behaviors * users; ++s) {
    const bool empty_segment = r.integer(0, 2) == 0;
    const int64_t length = empty_segment ? 0 : r.integer(0, longest);
    in.max_len = std::max(in.max_len, length);
    in.offsets.push_back(in.offsets.back() + length);
  }
  if (candidates.has_value()) {
    in.user_index.emplace();
    for (int64_t i = 0; i < rows; ++i) in.user_index->push_back(r.integer(0, users - 1));
  }
  in.values = random(r, {in.offsets.back(), d}, dtype);
  in.target = random(r, {rows, d}, dtype);
  in.scale = random(r, {tasks, behaviors, 4, d});
  in.shift = random(r, {tasks, behaviors, 4, d});
  in.grad = random(r, {rows, tasks, behaviors, d}, dtype);
  for (int layer = 0; layer < 2; ++layer) {
    const float s = 1.0f / std::sqrt(static_cast<float>(d));
    for (int i = 0; i < 4; ++i) in.weights.push_back(random(r, {d, d}, ScalarType::Float, s));
    in.weights.push_back(random(r, {ffn, d}, ScalarType::Float, s));
    in.weights.push_back(hidden_bias(r, ffn, dtype));
    in.weights.push_back(random(r, {d, ffn}, ScalarType::Float, s));
    in.weights.push_back(random(r, {d}));
  }
  return in;
}

std::optional<Tensor> user_index(const Inputs& in) {
  if (!in.user_index.has_value()) return std::nullopt;
  return integers(*in.user_index);
}

std::vector<Tensor> forward(const Inputs& in, bool save) {
  const auto& w = in.weights;
  return call("mtlfast::conditional_interest_forward", 4, in.values, integers(in.offsets),
              in.behaviors, in.max_len, in.target, user_index(in), w[0], w[1], w[2], w[3], w[4],
              w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], in.scale,
              in.shift, in.heads, 1e-5, save);
}

std::vector<Tensor> backward(const Inputs& in, const std::vector<Tensor>& saved) {
  const auto& w = in.weights;
  return call("mtlfast::conditional_interest_backward", 20, in.grad, in.values,
              integers(in.offsets), in.behaviors, in.max_len, in.target, user_index(in), w[0], w[1],
              w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14],
              w[15], in.scale, in.shift, in.heads, 1e-5, saved[1], saved[2], saved[3]);
}

// The output, then the 20 gradients.
std::vector<Tensor> forward_backward(const Inputs& in) {
  const std::vector<Tensor> saved = forward(in, true);
  std::vector<Tensor> results = backward(in, saved);
  results.insert(results.begin(), saved[0]);
  return results;
}

// In bfloat16 the set that multiplies pairs rounds the FFNs' operands, the others only inputs and
// results: 0.2 % each, a handful of times on the way to a gradient. The rule for errors against
// float64 is the Python tests'.
void check_against_portable(const Inputs& in) {
  const bool bf16 = in.values.scalar_type() == ScalarType::BFloat16;
  const bool rounds = bf16 && std::string(mtlfast_cpu_capability()) == "avx512_bf16";
  const std::vector<Tensor> results = forward_backward(in);
  for (const Tensor& t : results) CHECK(finite(t));
  CHECK(difference(forward(in, false)[0], results[0]) == 0.0);
  with_isa("portable", [&] {
    const std::vector<Tensor> expected = forward_backward(in);
    for (size_t i = 0; i < results.size(); ++i) {
      const double tolerance = !bf16 ? 2e-4 : rounds && i > 0 ? 0.03 : 0.004;
      CHECK_CLOSE(difference(results[i], expected[i]), 0.0, tolerance);
    }
  });
}

}  // namespace

TEST(interest_ragged_shapes) {
  Random r(1);
  const int64_t widths[][3] = {{8, 8, 1},   {16, 64, 2},  {24, 40, 3}, {32, 128, 2},
                               {64, 72, 4}, {136, 24, 4}, {256, 64, 8}};
  for (const auto& [d, ffn, heads] : widths) {
    const int64_t tasks = r.integer(1, 6), behaviors = r.integer(1, 5);
    check_against_portable(make(r, r.integer(1, 40), std::nullopt, tasks, behaviors, d, ffn, heads,
                                20, ScalarType::Float));
  }
}

TEST(interest_bfloat16) {
  Random r(2);
  for (const int64_t d : {8, 16, 32, 40}) {
    check_against_portable(make(r, 19, std::nullopt, 3, 2, d, 2 * d, 2, 20, ScalarType::BFloat16));
  }
  check_against_portable(make(r, 5, std::nullopt, 1, 1, 136, 200, 4, 9, ScalarType::BFloat16));
  check_against_portable(make(r, 2, 81, 1, 2, 24, 72, 3, 9, ScalarType::BFloat16));
}

TEST(interest_shared_users) {
  Random r(3);
  for (const int64_t candidates : {1, 5, 40, 300}) {
    check_against_portable(make(r, 3, candidates, 4, 2, 16, 32, 2, 30, ScalarType::Float));
  }
  // Heads of one vector, of several, of parts of one; a whole group of candidates of one task.
  const int64_t widths[][3] = {{24, 3, 2}, {32, 2, 1}, {40, 1, 3}, {64, 2, 2}, {136, 4, 5}};
  for (const auto& [d, heads, tasks] : widths)
    check_against_portable(make(r, 3, 210, tasks, 2, d, d, heads, 30, ScalarType::Float));
}

// The backward splits the candidates of few users, a part may find none of a user's.
TEST(interest_busy_users) {
  Random r(8);
  check_against_portable(make(r, 1, 600, 2, 2, 16, 32, 2, 30, ScalarType::Float));
  check_against_portable(make(r, 3, 1900, 1, 2, 8, 8, 1, 9, ScalarType::Float));
  check_against_portable(make(r, 1, 600, 1, 1, 16, 16, 2, 30, ScalarType::BFloat16));
}

TEST(interest_long_sequences) {
  Random r(4);
  check_against_portable(make(r, 5, std::nullopt, 2, 1, 16, 16, 2, 700, ScalarType::Float));
}

TEST(interest_nothing_to_do) {
  Random r(5);
  Inputs all_empty = make(r, 7, std::nullopt, 2, 3, 16, 16, 2, 0, ScalarType::Float);
  check_against_portable(all_empty);
  Inputs nobody = make(r, 0, std::nullopt, 2, 3, 16, 16, 2, 0, ScalarType::Float);
  CHECK(forward_backward(nobody)[0].numel() == 0);
  Inputs no_candidates = make(r, 4, 0, 2, 3, 16, 16, 2, 9, ScalarType::Float);
  CHECK(forward_backward(no_candidates)[0].numel() == 0);
}

TEST(interest_strided_inputs) {
  Random r(6);
  Inputs in = make(r, 9, std::nullopt, 2, 2, 16, 32, 2, 11, ScalarType::Float);
  const std::vector<Tensor> expected = forward_backward(in);
  // The same numbers, laid out column by column, inside larger tensors.
  const auto spread = [](const Tensor& t) {
    Tensor wide = empty({t.size(1), 2 * t.size(0) + 3}, t.scalar_type());
    Tensor view = torch::stable::transpose(torch::stable::narrow(wide, 1, 3, t.size(0)), 0, 1);
    torch::stable::copy_(view, t);
    return view;
  };
  in.values = spread(in.values);
  in.target = spread(in.target);
  for (Tensor& w : in.weights)
    if (w.dim() == 2) w = spread(w);
  const std::vector<Tensor> results = forward_backward(in);
  for (size_t i = 0; i < results.size(); ++i) CHECK(difference(results[i], expected[i]) == 0.0);
}

TEST(interest_malformed_data_is_refused) {
  Random r(7);
  const int64_t huge = std::numeric_limits<int64_t>::max();
  const int64_t odd[] = {-1, 1000000007, huge, std::numeric_limits<int64_t>::min(), -huge};
  for (int round = 0; round < 60; ++round) {
    Inputs in = make(r, 4, 9, 2, 2, 16, 16, 2, 9, ScalarType::Float);
    const int64_t value = odd[r.integer(0, 4)];
    switch (r.integer(0, 4)) {
      case 0:  // anything but 0 at the start, anything but N at the end, a jump between
        in.offsets[static_cast<size_t>(r.integer(0, 8))] = value;
        break;
      case 1:
        (*in.user_index)[static_cast<size_t>(r.integer(0, 8))] = r.integer(0, 1) ? value : 4;
        break;
      case 2:
        in.offsets.pop_back();
        break;
      case 3:
        in.user_index->pop_back();
        break;
      default:
        in.offsets.back() += r.integer(0, 1) ? 1 : -100;
    }
    CHECK_THROWS(forward(in, true));
  }
}

TEST(interest_backward_refuses_what_no_forward_saved) {
  Random r(9);
  const Inputs in = make(r, 6, std::nullopt, 2, 2, 16, 16, 2, 9, ScalarType::Float);
  const std::vector<Tensor> saved = forward(in, true);
  CHECK(backward(in, saved).size() == 20);
  for (size_t i = 1; i < saved.size(); ++i) {
    const int64_t last = saved[i].dim() - 1;
    for (const int64_t axis : {int64_t{0}, last}) {
      std::vector<Tensor> cut = saved;
      cut[i] = torch::stable::narrow(cut[i], axis, 0, cut[i].size(axis) - 1);
      CHECK_THROWS(backward(in, cut));
    }
  }
}

TEST(interest_too_small_max_len_is_refused) {
  Random r(8);
  Inputs in = make(r, 6, std::nullopt, 2, 2, 16, 16, 2, 9, ScalarType::Float);
  CHECK(in.max_len > 0);
  --in.max_len;
  CHECK_THROWS(forward(in, true));
  in.max_len = -1;
  CHECK_THROWS(forward(in, true));
}
