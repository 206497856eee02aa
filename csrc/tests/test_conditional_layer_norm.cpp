// The kernels without torch: every way to read and write gives the same bits, and stays in bounds.
#include <cstring>
#include <memory>
#include <vector>

#include "common/half.h"
#include "common/isa.h"
#include "conditional_layer_norm/problem.h"
#include "tests/check.h"

namespace mtlfast {
MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_CONDITIONAL_LAYER_NORM)
}

using namespace mtlfast;
using namespace mtlfast::conditional_layer_norm;
using mtlfast::test::Random;

namespace {

// Memory that begins at a cache line and ends where the address sanitizer looks.
class Memory {
 public:
  explicit Memory(int64_t bytes)
      : memory_(new char[static_cast<size_t>(bytes) + 64]), bytes_(static_cast<size_t>(bytes)) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    start_ = memory_.get() + (64 - address % 64) % 64;
    std::memset(start_, 0, bytes_);
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(start_);
  }
  bool operator==(const Memory& other) const {
    return std::memcmp(start_, other.start_, bytes_) == 0;
  }

 private:
  std::unique_ptr<char[]> memory_;
  size_t bytes_;
  char* start_;
};

// x [I, J, d], out [I, K, J, d]; scale and shift [K, J, d], or [I, 1, d] per sample.
struct Layout {
  int64_t d, shared, majors = 37, minors = 21;
  int64_t width = (d + kWidth - 1) / kWidth * kWidth;
  std::vector<int64_t> rows, accumulators, numbers, out_by_k, sums_by_k, none;

  Layout(int64_t d_, int64_t shared_) : d(d_), shared(shared_) {
    for (int64_t j = 0; j < minors; ++j) {
      rows.push_back(j * d);
      accumulators.push_back(j * width);
      numbers.push_back(j);
    }
    none.assign(static_cast<size_t>(minors), 0);
    for (int64_t k = 0; k < shared; ++k) {
      out_by_k.push_back(k * minors * d);
      sums_by_k.push_back(k * minors * width);
    }
  }
  Rows at(void* data, Kind kind, int64_t step, const int64_t* by_minor,
          const int64_t* by_shared) const {
    Rows r;
    r.data = data;
    r.kind = kind;
    r.step = step;
    r.by_minor = by_minor;
    r.by_shared = by_shared;
    return r;
  }
};

int64_t size_of(Kind kind) {
  return kind == Kind::float32 ? 4 : 2;
}

void fill(Random& random, const Memory& memory, Kind kind, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.value();
    if (kind == Kind::float32)
      memory.as<float>()[i] = value;
    else
      memory.as<uint16_t>()[i] =
          kind == Kind::bfloat16 ? portable::float_to_bf16(value) : portable::float_to_f16(value);
  }
}

struct Results {
  Memory out, grad_x, statistics, sums;
};

struct Arrangement {
  int64_t shared;  // K
  bool per_sample;
  Order order;
};
constexpr Arrangement kShared{3, false, Order::flat};

Results run(int64_t d, Kind kind, bool large, Arrangement arranged) {
  const Layout l(d, arranged.shared);
  const bool per_sample = arranged.per_sample;
  const int64_t x_count = l.majors * l.minors * d;
  const int64_t table_count = (per_sample ? l.majors : l.shared * l.minors) * d;
  const int64_t sums = l.shared * l.minors;
  // Rows that differ from sample to sample have the dtype of x.
  const Kind table_kind = per_sample ? kind : Kind::float32;
  Random random(static_cast<unsigned long long>(d) * 3 + static_cast<unsigned long long>(kind));
  const Memory x(x_count * size_of(kind)), residual(x_count * size_of(kind));
  const Memory scale(table_count * size_of(table_kind)), shift(table_count * size_of(table_kind));
  const Memory grad(x_count * l.shared * size_of(kind));
  fill(random, x, kind, x_count);
  fill(random, residual, kind, x_count);
  fill(random, scale, table_kind, table_count);
  fill(random, shift, table_kind, table_count);
  fill(random, grad, kind, x_count * l.shared);
  Results r{Memory(x_count * l.shared * size_of(kind)), Memory(x_count * size_of(kind)),
            Memory(2 * l.majors * l.minors * 4),
            Memory(2 * (per_sample ? table_count : sums * l.width) * 4)};

  Backward b;
  Problem& p = b.problem;
  p.minor = l.minors;
  p.shared = l.shared;
  p.d = d;
  p.width = l.width;
  p.eps = 1e-5f;
  p.uniform = true;
  p.order = arranged.order;
  p.x = l.at(x.as<void>(), kind, l.minors * d, l.rows.data(), l.none.data());
  p.residual = l.at(residual.as<void>(), kind, l.minors * d, l.rows.data(), l.none.data());
  const auto table = [&](const Memory& of) {
    return per_sample ? l.at(of.as<void>(), kind, d, l.none.data(), l.none.data())
                      : l.at(of.as<void>(), Kind::float32, 0, l.rows.data(), l.out_by_k.data());
  };
  p.scale = table(scale);
  p.shift = table(shift);
  p.statistics = l.at(nullptr, Kind::float32, l.minors, l.numbers.data(), l.none.data());
  p.mean = r.statistics.as<float>();
  p.rstd = p.mean + l.majors * l.minors;
  Rows out =
      l.at(r.out.as<void>(), kind, l.shared * l.minors * d, l.rows.data(), l.out_by_k.data());
  b.grad_out = out;
  b.grad_out.data = grad.as<void>();
  b.x.sum = Sum::direct;
  b.x.rows = p.x;
  b.x.rows.data = r.grad_x.as<void>();
  if (per_sample) {  // the sums are the gradients themselves
    b.scale.sum = Sum::per_major;
    b.scale.count = 1;
    b.scale.rows = l.at(r.sums.as<void>(), kind, d, l.none.data(), l.none.data());
    b.scale.flush = l.none.data();
    b.scale.fold_every = 16;
    b.shift = b.scale;
    b.shift.rows.data = r.sums.as<char>() + table_count * size_of(kind);
  } else {
    b.scale.sum = Sum::per_chunk;
    b.scale.count = sums;
    b.scale.rows = l.at(nullptr, Kind::float32, 0, l.accumulators.data(), l.sums_by_k.data());
    b.scale.fold_every = 32 * sums;
    b.shift = b.scale;
    b.shift.partial = sums * l.width;
  }
  p.x.far = p.residual.far = b.grad_out.far = large;
  out.stream = b.x.rows.stream = large && d * size_of(kind) % 64 == 0;

  const Memory scratch(4 * (forward_scratch(p) + backward_scratch(b)));
  MTLFAST_SELECT_ISA(conditional_layer_norm_forward)(p, out, 0, l.majors, scratch.as<float>());
  MTLFAST_SELECT_ISA(conditional_layer_norm_backward)
  (b, 0, l.majors, r.sums.as<float>(), scratch.as<float>());
  return r;
}

}  // namespace

constexpr int64_t kWidths[] = {1, 8, 16, 17, 31, 32, 48, 64, 65, 96, 128, 130, 256, 700};

TEST(layer_norm_large_tensors_have_the_same_bits) {
  for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::float16})
    for (const Arrangement& arranged : {kShared, Arrangement{1, false, Order::along_major},
                                        Arrangement{1, true, Order::along_minor}})
      for (const int64_t d : kWidths) {
        const Results small = run(d, kind, false, arranged), large = run(d, kind, true, arranged);
        CHECK(small.out == large.out);
        CHECK(small.grad_x == large.grad_x);
        CHECK(small.statistics == large.statistics);
        CHECK(small.sums == large.sums);
      }
}

TEST(layer_norm_orders_of_rows_agree) {
  for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::float16})
    for (const bool per_sample : {false, true})
      for (const int64_t d : kWidths) {
        const Order other = per_sample ? Order::along_minor : Order::along_major;
        const Results flat = run(d, kind, false, {1, per_sample, Order::flat});
        const Results found = run(d, kind, false, {1, per_sample, other});
        CHECK(flat.out == found.out);
        CHECK(flat.grad_x == found.grad_x);
        CHECK(flat.statistics == found.statistics);
        const Layout l(d, 1);
        const int64_t count = per_sample ? 2 * l.majors * d : 2 * l.minors * l.width;
        const bool in_float32 = !per_sample || kind == Kind::float32;
        for (int64_t at = 0; at < count; ++at) {
          const auto sum = [&](const Results& r) {
            if (in_float32) return r.sums.as<float>()[at];
            const uint16_t half = r.sums.as<uint16_t>()[at];
            return kind == Kind::bfloat16 ? portable::bf16_to_float(half)
                                          : portable::f16_to_float(half);
          };
          const double rounding = in_float32 ? 1e-5 : kind == Kind::bfloat16 ? 8e-3 : 1e-3;
          const double expected = sum(flat);
          CHECK_CLOSE(sum(found), expected, rounding * (10.0 + std::abs(expected)));
        }
      }
}

TEST(layer_norm_kernel_normalizes) {
  const int64_t d = 40;
  const Results r = run(d, Kind::float32, false, kShared);
  const Layout l(d, 3);
  // The gradient of every row of x is orthogonal to a constant.
  for (int64_t row = 0; row < l.majors * l.minors; ++row) {
    double sum = 0.0;
    for (int64_t c = 0; c < d; ++c) sum += r.grad_x.as<float>()[row * d + c];
    CHECK_CLOSE(sum, 0.0, 1e-4);
  }
}

TEST(half_numbers_survive_a_round_trip) {
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = portable::f16_to_float(half), bf16 = portable::bf16_to_float(half);
    if (std::isnan(f16))
      CHECK(std::isnan(portable::f16_to_float(portable::float_to_f16(f16))));
    else
      CHECK(portable::float_to_f16(f16) == half);
    if (!std::isnan(bf16)) CHECK(portable::float_to_bf16(bf16) == half);
  }
}

TEST(float16_rounds_to_nearest_even) {
  CHECK(portable::float_to_f16(1.0f + 0x1p-11f) == 0x3c00);             // tie: to even
  CHECK(portable::float_to_f16(1.0f + 3 * 0x1p-11f) == 0x3c02);         // tie: to even
  CHECK(portable::float_to_f16(1.0f + 0x1p-11f + 0x1p-20f) == 0x3c01);  // above
  CHECK(portable::float_to_f16(65519.0f) == 0x7bff);                    // the largest
  CHECK(portable::float_to_f16(65520.0f) == 0x7c00);                    // infinity
  CHECK(portable::float_to_f16(-1e30f) == 0xfc00);                      // -infinity
  CHECK(portable::float_to_f16(0x1p-24f) == 0x0001);                    // the smallest
  CHECK(portable::float_to_f16(0x1p-25f) == 0x0000);                    // tie: to zero
  CHECK(portable::float_to_f16(-0x1p-25f - 0x1p-30f) == 0x8001);        // above
  CHECK(portable::float_to_f16(0x1p-14f - 0x1p-26f) == 0x0400);         // to a normal number
  CHECK(portable::float_to_f16(-0.0f) == 0x8000);
}
