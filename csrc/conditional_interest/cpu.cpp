// conditional_interest on the CPU: arguments, data checks, threads. The arithmetic is in
// cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../common/isa.h"
#include "../common/work.h"
#include "problem.h"

namespace mtlfast {

#define MTLFAST_DECLARE(isa)                                         \
  namespace isa {                                                    \
  const conditional_interest::Kernel& conditional_interest_kernel(); \
  }
MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE)
#undef MTLFAST_DECLARE

namespace conditional_interest {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] void fail(const std::string& message) {
  throw std::runtime_error("mtlfast: " + message);
}

std::vector<int64_t> to_int64(const Tensor& t) {
  const int64_t n = t.numel(), stride = t.dim() == 0 ? 0 : t.stride(0);
  std::vector<int64_t> values(static_cast<size_t>(n));
  if (t.scalar_type() == ScalarType::Int) {
    const auto* p = static_cast<const int32_t*>(t.const_data_ptr());
    for (int64_t i = 0; i < n; ++i) values[i] = p[i * stride];
  } else if (t.scalar_type() == ScalarType::Long) {
    const auto* p = static_cast<const int64_t*>(t.const_data_ptr());
    for (int64_t i = 0; i < n; ++i) values[i] = p[i * stride];
  } else {
    fail("offsets and user_index: expected int64 or int32");
  }
  return values;
}

void check_offsets(const std::vector<int64_t>& offsets, int64_t users, int64_t tokens,
                   int64_t max_len) {
  if (offsets.front() != 0)
    fail("offsets: expected offsets[0] == 0, found " + std::to_string(offsets.front()));
  for (size_t i = 1; i < offsets.size(); ++i)
    if (offsets[i] < offsets[i - 1])
      fail("offsets: expected non-decreasing values, found offsets[" + std::to_string(i) +
           "] = " + std::to_string(offsets[i]) + " after offsets[" + std::to_string(i - 1) +
           "] = " + std::to_string(offsets[i - 1]));
  if (offsets.back() != tokens)
    fail("offsets: expected offsets[-1] == len(values) = " + std::to_string(tokens) + ", found " +
         std::to_string(offsets.back()));
  for (size_t i = 1; i < offsets.size(); ++i)
    if (offsets[i] - offsets[i - 1] > max_len)
      fail("max_len: expected an upper bound of every sequence length, found max_len = " +
           std::to_string(max_len) + " and a sequence of length " +
           std::to_string(offsets[i] - offsets[i - 1]) + " (behavior " +
           std::to_string((i - 1) / users) + ", user " + std::to_string((i - 1) % users) + ")");
}

using WeightTensors = std::array<Tensor, 16>;  // encoder q k v o w1 b1 w2 b2, then the decoder's

struct Call {
  Problem problem{};
  const Kernel& kernel;
  WeightTensors weights;
  Tensor scale, shift;
  std::vector<int64_t> offsets, begin, list;
  int64_t tokens;

  Call(const Tensor& values, const Tensor& offsets_tensor, int64_t num_behaviors, int64_t max_len,
       const Tensor& target, const std::optional<Tensor>& user_index,
       const std::array<const Tensor*, 16>& w, const Tensor& scale_table, const Tensor& shift_table,
       int64_t num_heads, double eps)
      : kernel(MTLFAST_SELECT_ISA(conditional_interest_kernel)()),
        weights{as_float(*w[0]),  as_float(*w[1]),  as_float(*w[2]),  as_float(*w[3]),
                as_float(*w[4]),  as_float(*w[5]),  as_float(*w[6]),  as_float(*w[7]),
                as_float(*w[8]),  as_float(*w[9]),  as_float(*w[10]), as_float(*w[11]),
                as_float(*w[12]), as_float(*w[13]), as_float(*w[14]), as_float(*w[15])},
        scale(as_float(scale_table)),
        shift(as_float(shift_table)),
        offsets(to_int64(offsets_tensor)),
        tokens(values.size(0)) {
    const ScalarType dtype = values.scalar_type();
    if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16)
      fail("values: expected float32 or bfloat16 on the CPU kernel");
    if (target.scalar_type() != dtype) fail("target: expected the dtype of values");
    if (num_behaviors < 1 || offsets.empty() || (offsets.size() - 1) % num_behaviors != 0)
      fail("offsets: expected num_behaviors * num_users + 1 entries, found " +
           std::to_string(offsets.size()) +
           " with num_behaviors = " + std::to_string(num_behaviors));
    Problem& p = problem;
    p.users = static_cast<int64_t>(offsets.size() - 1) / num_behaviors;
    p.candidates = target.size(0);
    p.tasks = static_cast<int>(scale.size(0));
    p.behaviors = static_cast<int>(num_behaviors);
    p.d = static_cast<int>(values.size(1));
    p.ffn = static_cast<int>(weights[5].numel());
    p.heads = static_cast<int>(num_heads);
    if (!supported(p.d, p.ffn, p.heads))
      fail("the CPU kernel covers d and d_f that are multiples of 8 with d <= 256 and d_f <= 1024");
    check_shapes(target);
    p.eps = static_cast<float>(eps);
    p.bf16 = dtype == ScalarType::BFloat16;
    p.values = {values.const_data_ptr(), values.stride(0), values.stride(1)};
    p.target = {target.const_data_ptr(), target.stride(0), target.stride(1)};
    check_offsets(offsets, std::max<int64_t>(p.users, 1), tokens, max_len);
    p.offsets = offsets.data();
    int64_t longest = 0;
    for (size_t i = 1; i < offsets.size(); ++i)
      longest = std::max(longest, offsets[i] - offsets[i - 1]);
    p.longest = static_cast<int>(longest);
    group_candidates(user_index);
    auto transformer = [&](int at) {
      auto data = [&](int i) {
        return static_cast<const float*>(weights[at + i].const_data_ptr());
      };
      return Transformer{data(0), data(1), data(2), data(3), data(4), data(5), data(6), data(7)};
    };
    p.encoder = transformer(0);
    p.decoder = transformer(8);
    p.scale = static_cast<const float*>(scale.const_data_ptr());
    p.shift = static_cast<const float*>(shift.const_data_ptr());
  }

  // The door validates with better words; this keeps direct callers of the op inside the memory.
  void check_shapes(const Tensor& target) const {
    const int64_t d = problem.d, f = problem.ffn,
                  table = int64_t{problem.tasks} * problem.behaviors * 4 * d;
    const int64_t sizes[8] = {d * d, d * d, d * d, d * d, f * d, f, d * f, d};
    for (int i = 0; i < 16; ++i)
      if (weights[i].numel() != sizes[i % 8])
        fail("weights: shapes do not agree with values and linear1_bias");
    if (scale.numel() != table || shift.numel() != table)
      fail("scale and shift: expected [T, M, 4, d]");
    if (target.dim() != 2 || target.size(1) != d) fail("target: expected [B, d]");
  }

  void group_candidates(const std::optional<Tensor>& user_index) {
    Problem& p = problem;
    begin.assign(static_cast<size_t>(p.users) + 1, 0);
    list.resize(static_cast<size_t>(p.candidates));
    if (!user_index.has_value()) {
      if (p.users != p.candidates)
        fail("user_index: expected one when target has " + std::to_string(p.candidates) +
             " rows and the sequences " + std::to_string(p.users) + " users");
      for (int64_t i = 0; i < p.users; ++i) begin[i + 1] = i + 1, list[i] = i;
    } else {
      const std::vector<int64_t> user = to_int64(*user_index);
      if (static_cast<int64_t>(user.size()) != p.candidates)
        fail("user_index: expected " + std::to_string(p.candidates) + " entries, found " +
             std::to_string(user.size()));
      for (size_t i = 0; i < user.size(); ++i) {
        if (user[i] < 0 || user[i] >= p.users)
          fail("user_index: expected values in [0, " + std::to_string(p.users) +
               "), found user_index[" + std::to_string(i) + "] = " + std::to_string(user[i]));
        ++begin[user[i] + 1];
      }
      for (int64_t u = 0; u < p.users; ++u) begin[u + 1] += begin[u];
      std::vector<int64_t> at(begin.begin(), begin.end() - 1);
      for (size_t i = 0; i < user.size(); ++i) list[at[user[i]]++] = static_cast<int64_t>(i);
    }
    for (int64_t u = 0; u < p.users; ++u) p.busiest = std::max(p.busiest, begin[u + 1] - begin[u]);
    p.candidate_begin = begin.data();
    p.candidate_list = list.data();
  }

  // Where a sequence is empty the interest depends on the item alone: equal items are computed
  // once. Returns, for every behavior and candidate, the candidate to copy from, or -1.
  std::vector<int64_t> find_twins(std::vector<uint8_t>* twin) {
    const Problem& p = problem;
    std::vector<int64_t> source;
    const std::vector<int64_t> first = first_equal_items();
    if (first.empty()) return source;
    source.assign(static_cast<size_t>(p.behaviors * p.candidates), -1);
    twin->assign(source.size(), 0);
    std::vector<int64_t> computed(static_cast<size_t>(p.candidates));
    bool any = false;
    for (int64_t b = 0; b < p.behaviors; ++b) {
      std::fill(computed.begin(), computed.end(), -1);
      for (int64_t u = 0; u < p.users; ++u) {
        if (offsets[b * p.users + u + 1] != offsets[b * p.users + u]) continue;
        for (int64_t at = begin[u]; at < begin[u + 1]; ++at) {
          const int64_t i = list[at];
          int64_t& owner = computed[first[i]];
          if (owner < 0) {
            owner = i;
          } else {
            source[b * p.candidates + i] = owner;
            (*twin)[b * p.candidates + i] = 1;
            any = true;
          }
        }
      }
    }
    if (!any) return {};
    problem.twin = twin->data();
    return source;
  }

  // For every candidate the first one with the same bits; empty where too few are equal to matter.
  std::vector<int64_t> first_equal_items() const {
    const Problem& p = problem;
    if (p.target.column_stride != 1 || p.candidates < 2) return {};
    const size_t bytes = static_cast<size_t>(p.d) * (p.bf16 ? 2 : 4);
    auto row = [&](int64_t i) {
      return static_cast<const char*>(p.target.data) + i * p.target.row_stride * (p.bf16 ? 2 : 4);
    };
    size_t slots = 1;
    while (slots < 2 * static_cast<size_t>(p.candidates)) slots *= 2;
    std::vector<int64_t> table(slots, -1), first(static_cast<size_t>(p.candidates));
    int64_t equal = 0;
    for (int64_t i = 0; i < p.candidates; ++i) {
      uint64_t key = 0x9e3779b97f4a7c15ull;
      for (size_t at = 0; at < bytes; at += 8) {  // d is a multiple of 8
        uint64_t word;
        std::memcpy(&word, row(i) + at, 8);
        key = (key ^ word) * 0xbf58476d1ce4e5b9ull;
        key ^= key >> 29;
      }
      size_t slot = key & (slots - 1);
      while (table[slot] >= 0 && std::memcmp(row(table[slot]), row(i), bytes) != 0)
        slot = (slot + 1) & (slots - 1);
      if (table[slot] < 0) table[slot] = i;
      first[i] = table[slot];
      equal += first[i] != i;
    }
    return equal * 16 < p.candidates ? std::vector<int64_t>{} : first;
  }

  // How many users one piece of the forward takes, of one behavior: so many that there are `wanted`
  // pieces, but a batch of rows at least. A candidate's row costs about what a token does.
  int64_t users_per_item(int64_t wanted) const {
    constexpr int64_t kMost = 64, kRows = 256;
    const Problem& p = problem;
    const int64_t rows = tokens + p.candidates * p.behaviors;
    const int64_t users = std::max(kRows, rows / wanted) * p.users * p.behaviors;
    return std::clamp<int64_t>(users / std::max<int64_t>(rows, 1), 1, kMost);
  }

  // Parts of the batch whose gradients of the weights are summed apart from each other. Sums too
  // large for the second-level cache cost what 50 rows of an FFN do, to clear them and to add them
  // up: then a part has several times as many rows.
  int64_t most_partitions(int64_t sum_floats) const {
    constexpr int64_t kMost = 16, kLeast = 2, kCached = 1 << 18, kRows = 400;
    const Problem& p = problem;
    const int64_t rows = (tokens + p.candidates * p.behaviors) * p.tasks;
    int64_t partitions = kMost;
    while (sum_floats > kCached && partitions > kLeast && rows < partitions * kRows)
      partitions /= 2;
    return partitions;
  }

  // The candidates' work divided by that of encoding the histories, which every part of the
  // candidates repeats. FFNs and attention count.
  double candidate_share() const {
    const Problem& p = problem;
    const double ffn = 2.0 * p.d * p.ffn, attention = 2.0 * p.d;  // multiply-adds of a row, a pair
    double candidates = static_cast<double>(p.candidates * p.behaviors) * ffn * p.tasks;
    double histories = static_cast<double>(tokens) * ffn * p.tasks + 1.0;
    for (int64_t b = 0; b < p.behaviors; ++b)
      for (int64_t u = 0; u < p.users; ++u) {
        const auto length =
            static_cast<double>(offsets[b * p.users + u + 1] - offsets[b * p.users + u]);
        candidates += static_cast<double>(begin[u + 1] - begin[u]) * length * attention * p.tasks;
        histories += length * length * attention;
      }
    return candidates / histories;
  }

  // Packed weights, then the absorbed queries.
  Tensor prepare(bool for_backward, const Tensor& like, float** packed, float** queries) const {
    const Problem& p = problem;
    const int64_t packed_floats = (kernel.packed_size(p) + 15) / 16 * 16;
    Tensor memory = torch::stable::new_empty(like, {packed_floats + kernel.query_size(p) + 64},
                                             ScalarType::Float);
    *packed = static_cast<float*>(memory.mutable_data_ptr());
    *queries = *packed + packed_floats;
    kernel.pack(p, for_backward, *packed);
    constexpr int64_t kChunk = 256;
    const int64_t chunks = (p.candidates + kChunk - 1) / kChunk;
    for_each_item(chunks, kernel.forward_scratch(p), [&](int64_t i, float* scratch) {
      kernel.queries(p, *packed, i * kChunk, std::min((i + 1) * kChunk, p.candidates), *queries,
                     scratch);
    });
    return memory;
  }
};

void copy_twins(const Problem& p, const std::vector<int64_t>& twin_of, const ForwardOutputs& out) {
  const size_t bytes = static_cast<size_t>(p.d) * (p.bf16 ? 2 : 4);
  for (int64_t b = 0; b < p.behaviors; ++b)
    for (int64_t i = 0; i < p.candidates; ++i) {
      const int64_t from = twin_of[b * p.candidates + i];
      if (from < 0) continue;
      for (int64_t t = 0; t < p.tasks; ++t) {
        auto row = [&](int64_t candidate) { return (candidate * p.tasks + t) * p.behaviors + b; };
        auto* rows = static_cast<char*>(out.out);
        std::memcpy(rows + row(i) * bytes, rows + row(from) * bytes, bytes);
        if (out.head != nullptr)  // no attention over an empty sequence
          std::memset(out.head + row(i) * p.d, 0, sizeof(float) * static_cast<size_t>(p.d));
      }
    }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    Tensor values, Tensor offsets, int64_t num_behaviors, int64_t max_len, Tensor target,
    std::optional<Tensor> user_index, Tensor enc_q, Tensor enc_k, Tensor enc_v, Tensor enc_o,
    Tensor enc_w1, Tensor enc_b1, Tensor enc_w2, Tensor enc_b2, Tensor dec_q, Tensor dec_k,
    Tensor dec_v, Tensor dec_o, Tensor dec_w1, Tensor dec_b1, Tensor dec_w2, Tensor dec_b2,
    Tensor scale, Tensor shift, int64_t num_heads, double eps, bool save_for_backward) {
  Call call(values, offsets, num_behaviors, max_len, target, user_index,
            {&enc_q, &enc_k, &enc_v, &enc_o, &enc_w1, &enc_b1, &enc_w2, &enc_b2, &dec_q, &dec_k,
             &dec_v, &dec_o, &dec_w1, &dec_b1, &dec_w2, &dec_b2},
            scale, shift, num_heads, eps);
  const Problem& p = call.problem;
  const bool save = save_for_backward;
  Tensor out = torch::stable::new_empty(values, {p.candidates, p.tasks, p.behaviors, p.d});
  Tensor normalized =
      torch::stable::new_empty(values, {save ? call.tokens : 0, p.d}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(values, {save ? call.tokens : 0}, ScalarType::Float);
  Tensor head = torch::stable::new_empty(
      values, {save ? p.candidates : 0, p.tasks, p.behaviors, p.d}, ScalarType::Float);
  if (p.candidates == 0 && !save) return {out, normalized, rstd, head};
  ForwardOutputs outputs{out.mutable_data_ptr(), nullptr, nullptr, nullptr};
  if (save) {
    outputs.normalized = static_cast<float*>(normalized.mutable_data_ptr());
    outputs.rstd = static_cast<float*>(rstd.mutable_data_ptr());
    outputs.head = static_cast<float*>(head.mutable_data_ptr());
  }
  std::vector<uint8_t> twin;
  const std::vector<int64_t> twin_of = call.find_twins(&twin);
  float *packed, *queries;
  const Tensor memory = call.prepare(false, values, &packed, &queries);
  constexpr int64_t kItemsPerThread = 4;
  const int64_t wanted = kItemsPerThread * torch::stable::get_num_threads();
  const int64_t users_per_item = call.users_per_item(wanted);
  const int64_t chunks = (p.users + users_per_item - 1) / users_per_item;
  // A few users with many candidates (a ranking request): candidates are split as well, which
  // encodes the users' sequences once per part.
  constexpr int64_t kCandidatesPerPart = 128;
  const int64_t items = chunks * p.behaviors;
  int64_t parts = 1;
  if (items < wanted && p.candidates >= 2 * kCandidatesPerPart) {
    // As many as there are threads; more, for a fairer share, where that repeats little.
    const int64_t least = (torch::stable::get_num_threads() + items - 1) / items;
    const int64_t cheap = static_cast<int64_t>(call.candidate_share() / 4);
    parts = std::min(
        {(wanted + items - 1) / items, p.candidates / kCandidatesPerPart, std::max(least, cheap)});
  }
  const int64_t part = (p.candidates + parts - 1) / parts;
  for_each_item(items * parts, call.kernel.forward_scratch(p), [&](int64_t item, float* scratch) {
    const int64_t user = item / (p.behaviors * parts) * users_per_item;
    const int64_t first = item / p.behaviors % parts * part;
    ForwardOutputs to = outputs;
    if (first > 0) to.normalized = to.rstd = nullptr;  // the first part's to save
    call.kernel.forward(p, packed, queries, static_cast<int>(item % p.behaviors), user,
                        std::min(user + users_per_item, p.users), first,
                        std::min(first + part, p.candidates), to, scratch);
  });
  if (p.twin != nullptr) copy_twins(p, twin_of, outputs);
  return {out, normalized, rstd, head};
}

// Sums the partitions' padded [out, stride] blocks into one contiguous [out, in] tensor.
Tensor reduce_partitions(const Tensor& like, const float* partitions, int64_t count, int64_t total,
                         int64_t at, int64_t rows, int64_t columns, int64_t stride, float factor,
                         const std::vector<int64_t>& shape) {
  Tensor result = torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape),
                                           ScalarType::Float);
  auto* to = static_cast<float*>(result.mutable_data_ptr());
  constexpr int64_t kGrain = 1 << 17;  // numbers to add that are worth waking a thread
  for_each_range(rows, kGrain / (columns * std::max<int64_t>(1, count)) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     float* row = to + r * columns;
                     for (int64_t c = 0; c < columns; ++c) row[c] = 0.0f;
                     for (int64_t i = 0; i < count; ++i) {
                       const float* from = partitions + i * total + at + r * stride;
                       for (int64_t c = 0; c < columns; ++c) row[c] += from[c];
                     }
                     if (factor != 1.0f)
                       for (int64_t c = 0; c < columns; ++c) row[c] *= factor;
                   }
                 });
  return result;
}

using Gradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
               Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(Tensor grad_out, Tensor values, Tensor offsets, int64_t num_behaviors,
                   int64_t max_len, Tensor target, std::optional<Tensor> user_index, Tensor enc_q,
                   Tensor enc_k, Tensor enc_v, Tensor enc_o, Tensor enc_w1, Tensor enc_b1,
                   Tensor enc_w2, Tensor enc_b2, Tensor dec_q, Tensor dec_k, Tensor dec_v,
                   Tensor dec_o, Tensor dec_w1, Tensor dec_b1, Tensor dec_w2, Tensor dec_b2,
                   Tensor scale, Tensor shift, int64_t num_heads, double eps, Tensor normalized,
                   Tensor rstd, Tensor head) {
  const Call call(values, offsets, num_behaviors, max_len, target, user_index,
                  {&enc_q, &enc_k, &enc_v, &enc_o, &enc_w1, &enc_b1, &enc_w2, &enc_b2, &dec_q,
                   &dec_k, &dec_v, &dec_o, &dec_w1, &dec_b1, &dec_w2, &dec_b2},
                  scale, shift, num_heads, eps);
  const Problem& p = call.problem;
  if (grad_out.scalar_type() != values.scalar_type())
    grad_out = torch::stable::to(grad_out, values.scalar_type());
  if (grad_out.dim() != 4 || grad_out.size(0) != p.candidates || grad_out.size(1) != p.tasks ||
      grad_out.size(2) != p.behaviors || grad_out.size(3) != p.d)
    fail("grad_out: expected [B, T, M, d]");
  if (normalized.dim() != 2 || normalized.size(0) != call.tokens || normalized.size(1) != p.d ||
      rstd.dim() != 1 || rstd.size(0) != call.tokens || head.dim() != 4 ||
      head.size(0) != p.candidates || head.size(1) != p.tasks || head.size(2) != p.behaviors ||
      head.size(3) != p.d)
    fail("backward needs what the forward saved: call it with save_for_backward");
  normalized = as_float(normalized);
  rstd = as_float(rstd);
  head = as_float(head);

  Tensor grad_values = torch::stable::new_empty(values, {call.tokens, p.d});
  Tensor grad_target = torch::stable::new_empty(values, {p.candidates, p.d});
  const BackwardIO io{
      {grad_out.const_data_ptr(),
       {grad_out.stride(0), grad_out.stride(1), grad_out.stride(2), grad_out.stride(3)}},
      static_cast<const float*>(normalized.const_data_ptr()),
      static_cast<const float*>(rstd.const_data_ptr()),
      static_cast<const float*>(head.const_data_ptr()),
      grad_values.mutable_data_ptr(),
      p.bf16,
      grad_target.mutable_data_ptr()};

  float *packed, *queries;
  const Tensor memory = call.prepare(true, values, &packed, &queries);

  // Ranges of users and partitions depend on the batch alone, never on the number of threads.
  constexpr int64_t kUsersPerRange = 64;
  const GradLayout layout = call.kernel.grad_layout(p);
  const int64_t most = call.most_partitions(layout.total);
  const int64_t users_per_range =
      std::max<int64_t>(1, std::min(kUsersPerRange, (p.users + most - 1) / most));
  const int64_t ranges = (p.users + users_per_range - 1) / users_per_range;
  // A few users with many candidates: candidates are split as well, each part computes its share
  // of the users' gradients, and these are added up. Histories are a third of a part's work at
  // most.
  constexpr int64_t kCandidatesPerPart = 256, kPieces = 16;
  const double most_parts = call.candidate_share() / 2;
  int64_t parts = 1;
  while (2 * parts * ranges <= kPieces && p.busiest >= 2 * parts * kCandidatesPerPart &&
         2.0 * static_cast<double>(parts) <= most_parts)
    parts *= 2;
  const int64_t pieces = ranges * parts, partitions = std::min(most, pieces);
  struct Piece {
    int64_t user_begin, user_end, first, last;
  };
  auto piece = [&](int64_t i) {
    const int64_t user = i / parts * users_per_range, part = i % parts;
    const int64_t user_end = std::min(user + users_per_range, p.users);
    const int64_t first = call.begin[user], candidates = call.begin[user_end] - first;
    return Piece{user, user_end, first + candidates * part / parts,
                 first + candidates * (part + 1) / parts};
  };
  int64_t piece_candidates = 0;
  for (int64_t i = 0; i < pieces; ++i)
    piece_candidates = std::max(piece_candidates, piece(i).last - piece(i).first);
  const int64_t part_floats = call.tokens * p.d;
  const Tensor part_values = torch::stable::new_empty(
      values, {parts > 1 ? parts : 0, call.tokens, p.d}, ScalarType::Float);
  auto* part_sum = static_cast<float*>(part_values.mutable_data_ptr());
  const int64_t batch_candidates = std::max<int64_t>(kBatchCandidates, p.busiest);

  const Tensor sums =
      torch::stable::new_empty(values, {partitions * layout.total + 64}, ScalarType::Float);
  auto* sum = static_cast<float*>(sums.mutable_data_ptr());
  for_each_item(partitions, call.kernel.backward_scratch(p, batch_candidates, piece_candidates),
                [&](int64_t partition, float* scratch) {
                  std::memset(sum + partition * layout.total, 0,
                              sizeof(float) * static_cast<size_t>(layout.total));
                  for (int64_t i = partition; i < pieces; i += partitions) {
                    const Piece of = piece(i);
                    BackwardIO to = io;
                    if (parts > 1) {
                      to.grad_values = part_sum + i % parts * part_floats;
                      to.bf16_values = false;
                    }
                    call.kernel.backward(p, packed, queries, of.user_begin, of.user_end, of.first,
                                         of.last, batch_candidates, piece_candidates, to,
                                         sum + partition * layout.total, scratch);
                  }
                });
  if (parts > 1) {
    for_each_range(part_floats, int64_t{1} << 14, [&](int64_t begin, int64_t end) {
      for (int64_t part = 1; part < parts; ++part) {
        const float* from = part_sum + part * part_floats;
        for (int64_t i = begin; i < end; ++i) part_sum[i] += from[i];
      }
    });
    grad_values = torch::stable::to(torch::stable::select(part_values, 0, 0), values.scalar_type());
  }

  const int64_t d = p.d, f = p.ffn, stride = layout.d_stride;
  const float score_scale = 1.0f / std::sqrt(static_cast<float>(d / p.heads));
  auto reduce = [&](int64_t at, int64_t rows, int64_t columns, int64_t row_stride, float factor,
                    const std::vector<int64_t>& shape) {
    return reduce_partitions(values, sum, partitions, layout.total, at, rows, columns, row_stride,
                             factor, shape);
  };
  auto square = [&](int64_t at, float factor) { return reduce(at, d, d, stride, factor, {d, d}); };
  auto w1 = [&](int64_t at) { return reduce(at, f, d, stride, 1.0f, {f, d}); };
  auto b1 = [&](int64_t at) { return reduce(at, 1, f, f, 1.0f, {f}); };
  auto w2 = [&](int64_t at) { return reduce(at, d, f, layout.ffn_stride, 1.0f, {d, f}); };
  auto b2 = [&](int64_t at) { return reduce(at, 1, d, d, 1.0f, {d}); };
  const std::vector<int64_t> table{p.tasks, p.behaviors, 4, d};
  auto norms = [&](int64_t at) {
    return reduce(at, int64_t{p.tasks} * p.behaviors * 4, d, stride, 1.0f, table);
  };
  const int64_t *e = layout.encoder, *t = layout.decoder;
  return {grad_values,
          grad_target,
          square(e[0], score_scale),
          square(e[1], 1.0f),
          square(e[2], 1.0f),
          square(e[3], 1.0f),
          w1(e[4]),
          b1(e[5]),
          w2(e[6]),
          b2(e[7]),
          square(t[0], score_scale),
          square(t[1], 1.0f),
          square(t[2], 1.0f),
          square(t[3], 1.0f),
          w1(t[4]),
          b1(t[5]),
          w2(t[6]),
          b2(t[7]),
          norms(layout.scale),
          norms(layout.shift)};
}

}  // namespace
}  // namespace conditional_interest

STABLE_TORCH_LIBRARY_IMPL(mtlfast, CPU, m) {
  m.impl("conditional_interest_forward", TORCH_BOX(&conditional_interest::forward));
  m.impl("conditional_interest_backward", TORCH_BOX(&conditional_interest::backward));
}

}  // namespace mtlfast
