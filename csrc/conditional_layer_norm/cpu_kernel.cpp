// conditional_layer_norm on one CPU thread. DTRN (CIKM 2023) Eq. 6:
//   u = x + residual,  n = (u - mean) / sqrt(var + eps),  y = scale * n + shift
#include "../common/isa.h"
#include "problem.h"
#include "row_sums.h"
#include "rows.h"

namespace mtlfast {
MTLFAST_DECLARE_CONDITIONAL_LAYER_NORM(MTLFAST_ISA)

namespace MTLFAST_ISA {
namespace {

using namespace conditional_layer_norm;

// A row (i, j) of u, with i in [begin, end).
template <Order kOrder>
struct Position {
  static constexpr bool kMajorFirst = kOrder == Order::along_major;
  int64_t i, j, begin, end, minor;

  static Position first(const Problem& p, int64_t begin, int64_t end) {
    return {begin, 0, begin, end, p.minor};
  }
  MTLFAST_INLINE bool valid() const { return i < end && j < minor; }
  MTLFAST_INLINE void next() {
    if (kMajorFirst ? ++i == end : ++j == minor) {
      i = kMajorFirst ? begin : i + 1;
      j = kMajorFirst ? j + 1 : 0;
    }
  }
  MTLFAST_INLINE Position after(int64_t rows) const {
    Position p = *this;
    if (kMajorFirst) {
      const int64_t n = i - begin + rows;
      p.i = begin + n % (end - begin);
      p.j = j + n / (end - begin);
    } else {
      const int64_t n = j + rows;
      p.i = i + n / minor;
      p.j = n % minor;
    }
    return p;
  }
  // Rows from here on that may be in one block.
  MTLFAST_INLINE int64_t left() const {
    if (kOrder == Order::along_major) return end - i;
    if (kOrder == Order::along_minor) return minor - j;
    return (end - i) * minor - j;
  }
  MTLFAST_INLINE int64_t in(const Rows& r) const { return i * r.step + r.by_minor[j]; }
};

// u = x + residual in float32.
template <int kKind, int NV, class At>
MTLFAST_INLINE void load_u(const Columns<NV>& columns, const Rows& x, const Rows& residual,
                           const At& at, Buffer<NV>& u) {
  read_row<kKind>(columns, x, at.in(x), [&](int64_t v, Vec a, auto) { u.put(v, a); });
  if (residual.data == nullptr) return;
  read_row<kKind>(columns, residual, at.in(residual),
                  [&](int64_t v, Vec a, auto) { u.put(v, u.get(v) + a); });
}

// A row of scale or shift, which may have a dtype of their own.
template <int NV>
MTLFAST_INLINE void load_parameter(const Columns<NV>& columns, const Rows& rows, int64_t start,
                                   Buffer<NV>& to) {
  read_row<kAnyKind>(columns, rows, start, [&](int64_t v, Vec a, auto) { to.put(v, a); });
}

// Rows are taken a block at a time and, wherever there is one number per row, one row per lane:
// sums over the columns, square roots and divisions are then a few instructions for kLanes rows. A
// block has several such groups, so that the latencies of one are hidden behind another.
template <int NV, int kKind, Order kOrder>
void forward(const Problem& p, const Rows& result, int64_t begin, int64_t end, float* scratch) {
  const Columns<NV> columns(p.d);
  const int64_t width = p.width, block = block_rows(p.d);
  Buffer<NV> g(scratch), b(scratch + width);
  float* const rows = scratch + 2 * width;
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(p.d)), eps = broadcast(p.eps);
  const Rows x = p.x, residual = p.residual, scale = p.scale, shift = p.shift, out = result;
  constexpr bool kTogether = kOrder != Order::flat;
  const int64_t shared = kTogether ? 1 : p.shared;
  constexpr bool kInPlace = NV > 0 && kKind == static_cast<int>(Kind::float32);
  float means[kMostBlockRows], rstds[kMostBlockRows];
  const float* u_at[kMostBlockRows];  // float32 rows that need no sum are read where they are

  auto at = Position<kOrder>::first(p, begin, end), ahead = at.after(block);
  while (at.valid()) {
    const int count = static_cast<int>(at.left() < block ? at.left() : block);
    auto row = at;
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r, row.next()) {
      if (kInPlace && residual.data == nullptr) {
        u_at[r] = static_cast<const float*>(x.data) + row.in(x);
        continue;
      }
      Buffer<NV> u(rows + r * width);
      load_u<kKind>(columns, x, residual, row, u);
      if (NV > 0)
        columns.each([&](int64_t v, auto) { store(rows + r * width + v * kLanes, u.get(v)); });
      u_at[r] = rows + r * width;
    }
    if (NV > 0)
      for (int r = count; r % kLanes != 0; ++r) u_at[r] = u_at[0];  // fills the last group

    const auto in_group = [&](int first) {
      return count - first < kLanes ? count - first : kLanes;
    };
    for (int first = 0; first < count; first += kLanes) {
      const auto sum = [&](int r) __attribute__((always_inline)) {
        RowSum<NV> total;
        const float* u = u_at[first + r];
        columns.each([&](int64_t v, auto) { total.add(v, load(u + v * kLanes)); });
        return total.get();
      };
      store(means + first, sum_rows<NV>(in_group(first), sum) * inverse_d);
    }
    for (int first = 0; first < count; first += kLanes) {
      // Deviations from the rounded mean also tell by how much it is off.
      const auto deviations = [&](int r) __attribute__((always_inline)) {
        RowSum<NV> total, squares;
        const float* u = u_at[first + r];
        columns.each([&](int64_t v, auto part) {
          const Vec c = zero_outside(load(u + v * kLanes) - broadcast(means[first + r]), part);
          total.add(v, c);
          squares.add(v, c * c);
        });
        return Pair{total.get(), squares.get()};
      };
      const Pair moments = sum_rows<NV>(in_group(first), deviations);
      const Vec correction = moments.first * inverse_d;
      const Vec variance = moments.second * inverse_d - correction * correction;
      store(means + first, load(means + first) + correction);
      store(rstds + first, broadcast(1.0f) / square_root(relu(variance) + eps));
    }

    if (kTogether) {
      load_parameter(columns, scale, at.in(scale), g);
      load_parameter(columns, shift, at.in(shift), b);
    }
    row = at;
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r, row.next()) {
      if (p.mean != nullptr) {
        const int64_t statistics = row.in(p.statistics);
        p.mean[statistics] = means[r];
        p.rstd[statistics] = rstds[r];
      }
      Buffer<NV> n(rows + r * width);
      columns.each([&](int64_t v, auto) {
        const Vec u = load(u_at[r] + v * kLanes);
        n.put(v, (u - broadcast(means[r])) * broadcast(rstds[r]));
      });
      if ((x.far || residual.far) && ahead.valid()) {
        if (x.far) prefetch_row(x, ahead.in(x), p.d);
        if (residual.far) prefetch_row(residual, ahead.in(residual), p.d);
        ahead.next();
      }
      const int64_t out_at = row.in(out);
      for (int64_t k = 0; k < shared; ++k) {
        if (!kTogether) {
          load_parameter(columns, scale, row.in(scale) + scale.by_shared[k], g);
          load_parameter(columns, shift, row.in(shift) + shift.by_shared[k], b);
        }
        put_row<kKind>(columns, out, out_at + out.by_shared[k],
                       [&](int64_t v) { return n.get(v) * g.get(v) + b.get(v); });
      }
    }
    at = row;
  }
}

// The two levels of accumulators of one gradient.
struct Sums {
  const Gradient* gradient;
  float* recent = nullptr;
  float* total = nullptr;
  int64_t width, floats = 0;
  int64_t until_fold = 0;
  bool folded = false;  // whether `total` holds anything

  Sums(const Gradient& g, int64_t row, float* partials, float*& scratch)
      : gradient(&g), width(row) {
    if (g.sum != Sum::per_major && g.sum != Sum::per_chunk) return;
    floats = g.count * width;
    until_fold = g.fold_every;
    recent = scratch;
    scratch += floats;
    if (g.sum == Sum::per_chunk) {
      total = partials + g.partial;
    } else {
      total = scratch;
      scratch += floats;
    }
    clear(recent);
    clear(total);
  }

  void clear(float* p) const { std::memset(p, 0, sizeof(float) * static_cast<size_t>(floats)); }

  __attribute__((noinline, cold)) void fold() {
    for (int64_t c = 0; c < floats; c += kLanes)
      store(total + c, load(total + c) + load(recent + c));
    clear(recent);
    until_fold = gradient->fold_every;
    folded = true;
  }

  // Adds value(v) to the row at `at`.
  template <int NV, class Value>
  MTLFAST_INLINE void add(const Columns<NV>& columns, int64_t at, Value value) const {
    float* to = recent + at;
    columns.each(
        [&](int64_t v, auto) { store(to + v * kLanes, load(to + v * kLanes) + value(v)); });
  }

  // After `rows` rows were added; outside of inner loops, for the call costs them their registers.
  MTLFAST_INLINE void added(int64_t rows) {
    if (recent == nullptr) return;
    until_fold -= rows;
    if (until_fold <= 0) fold();
  }

  template <int kKind, int NV>
  MTLFAST_INLINE void end_of_major(const Columns<NV>& columns, int64_t i) {
    if (gradient->sum != Sum::per_major) return;
    const float* sums = recent;
    if (folded) {
      fold();
      sums = total;
    }
    for (int64_t r = 0; r < gradient->count; ++r)
      write_row<kKind>(columns, gradient->rows, i * gradient->rows.step + gradient->flush[r],
                       [&](int64_t v) { return load(sums + r * width + v * kLanes); });
    clear(recent);
    if (folded) clear(total);
    folded = false;
    until_fold = gradient->fold_every;
  }

  void end_of_chunk() {
    if (gradient->sum == Sum::per_chunk) fold();
  }
};

// Writes one row of a gradient, or adds it to its accumulator. `value(v)` gives its vectors.
template <int kKind, int NV, class Value>
MTLFAST_INLINE void emit(const Columns<NV>& columns, const Gradient& g, Sums& sums, int64_t i,
                         int64_t at, Value value) {
  if (g.sum == Sum::direct)
    put_row<kKind>(columns, g.rows, i * g.rows.step + at, value);
  else
    sums.add(columns, at, value);
}

template <int NV, int kKind, Order kOrder>
void backward(const Backward& problem, int64_t begin, int64_t end, float* partials,
              float* scratch) {
  const Problem& p = problem.problem;
  const Columns<NV> columns(p.d);
  const int64_t width = p.width, block = kLanes;
  Buffer<NV> g(scratch), factor(scratch + width), sum(scratch + 2 * width);
  Buffer<NV> scale_sum(scratch + 3 * width), shift_sum(scratch + 4 * width);
  float* const n_rows = scratch + 5 * width;
  float* const sum_rows = n_rows + block * width;
  float* free = sum_rows + block * width;
  Sums to_x(problem.x, width, partials, free), to_residual(problem.residual, width, partials, free);
  Sums to_scale(problem.scale, width, partials, free);
  Sums to_shift(problem.shift, width, partials, free);
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(p.d));
  const Rows x = p.x, residual = p.residual, scale = p.scale, grad_out = problem.grad_out;
  const Gradient d_x = problem.x, d_scale = problem.scale, d_shift = problem.shift;
  const Gradient d_residual = problem.residual;
  const bool wants_u = d_x.sum != Sum::none || d_residual.sum != Sum::none;
  const bool sums_per_major = d_x.sum == Sum::per_major || d_residual.sum == Sum::per_major ||
                              d_scale.sum == Sum::per_major || d_shift.sum == Sum::per_major;
  constexpr bool kTogether = kOrder != Order::flat;
  const int64_t shared = kTogether ? 1 : p.shared;
  Vec sums[kLanes] = {}, products[kLanes] = {};
  float averages[kLanes], slopes[kLanes];

  auto at = Position<kOrder>::first(p, begin, end), ahead = at.after(block_rows(p.d));
  while (at.valid()) {
    const int count = static_cast<int>(at.left() < block ? at.left() : block);
    if (kTogether) {
      load_parameter(columns, scale, at.in(scale), factor);
      columns.each([&](int64_t v, auto) {
        scale_sum.put(v, zero());
        shift_sum.put(v, zero());
      });
    }
    auto row = at;
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r, row.next()) {
      Buffer<NV> n(n_rows + r * width);
      float* const total_sum = sum_rows + r * width;
      const int64_t statistics = row.in(p.statistics);
      const Vec mean = broadcast(p.mean[statistics]), rstd = broadcast(p.rstd[statistics]);
      load_u<kKind>(columns, x, residual, row, n);
      columns.each([&](int64_t v, auto part) {
        n.put(v, zero_outside((n.get(v) - mean) * rstd, part));
        sum.put(v, zero());
      });
      if (grad_out.far && ahead.valid()) {
        if (x.far) prefetch_row(x, ahead.in(x), p.d);
        if (residual.far) prefetch_row(residual, ahead.in(residual), p.d);
        for (int64_t k = 0; k < shared; ++k)
          prefetch_row(grad_out, ahead.in(grad_out) + grad_out.by_shared[k], p.d);
        ahead.next();
      }
      const int64_t grad_at = row.in(grad_out);
      if constexpr (kTogether) {
        read_row<kKind>(columns, grad_out, grad_at, [&](int64_t v, Vec a, auto) {
          sum.put(v, a * factor.get(v));
          scale_sum.put(v, scale_sum.get(v) + a * n.get(v));
          shift_sum.put(v, shift_sum.get(v) + a);
        });
      } else {
        for (int64_t first = 0; first < shared; first += kFirstLevel) {
          const int64_t last = first + kFirstLevel < shared ? first + kFirstLevel : shared;
          for (int64_t k = first; k < last; ++k) {
            read_row<kKind>(columns, grad_out, grad_at + grad_out.by_shared[k],
                            [&](int64_t v, Vec a, auto) { g.put(v, a); });
            if (wants_u) {
              load_parameter(columns, scale, row.in(scale) + scale.by_shared[k], factor);
              columns.each(
                  [&](int64_t v, auto) { sum.put(v, sum.get(v) + g.get(v) * factor.get(v)); });
            }
            if (d_scale.sum != Sum::none)
              emit<kKind>(columns, d_scale, to_scale, row.i,
                          d_scale.rows.by_minor[row.j] + d_scale.rows.by_shared[k],
                          [&](int64_t v) { return g.get(v) * n.get(v); });
            if (d_shift.sum != Sum::none)
              emit<kKind>(columns, d_shift, to_shift, row.i,
                          d_shift.rows.by_minor[row.j] + d_shift.rows.by_shared[k],
                          [&](int64_t v) { return g.get(v); });
          }
          if (shared > kFirstLevel)
            columns.each([&](int64_t v, auto) {
              const Vec before = first == 0 ? zero() : load(total_sum + v * kLanes);
              store(total_sum + v * kLanes, before + sum.get(v));
              sum.put(v, zero());
            });
          to_scale.added(last - first);
          to_shift.added(last - first);
        }
        if (sums_per_major && row.j == p.minor - 1) {
          to_scale.template end_of_major<kKind>(columns, row.i);
          to_shift.template end_of_major<kKind>(columns, row.i);
        }
      }
      if (!wants_u) continue;
      RowSum<NV> total, product;
      columns.each([&](int64_t v, auto) {
        const Vec a = shared > kFirstLevel ? load(total_sum + v * kLanes) : sum.get(v);
        total.add(v, a);
        product.add(v, a * n.get(v));
        store(total_sum + v * kLanes, a);
        if (NV > 0) store(n_rows + r * width + v * kLanes, n.get(v));
      });
      sums[r] = total.get();
      products[r] = product.get();
    }

    if (kTogether && d_scale.sum != Sum::none) {
      to_scale.add(columns, d_scale.rows.by_minor[at.j],
                   [&](int64_t v) { return scale_sum.get(v); });
      to_scale.added(count);
    }
    if (kTogether && d_shift.sum != Sum::none) {
      to_shift.add(columns, d_shift.rows.by_minor[at.j],
                   [&](int64_t v) { return shift_sum.get(v); });
      to_shift.added(count);
    }
    if (kOrder == Order::along_minor && at.j + count == p.minor) {
      to_scale.template end_of_major<kKind>(columns, at.i);
      to_shift.template end_of_major<kKind>(columns, at.i);
    }
    if (wants_u) {
      store(averages, sum_each(sums) * inverse_d);
      store(slopes, sum_each(products) * inverse_d);
      row = at;
#pragma GCC unroll 1
      for (int r = 0; r < count; ++r, row.next()) {
        const float* n = n_rows + r * width;
        const float* sum = sum_rows + r * width;
        const Vec rstd = broadcast(p.rstd[row.in(p.statistics)]);
        const Vec average = broadcast(averages[r]), slope = broadcast(slopes[r]);
        const auto d_u = [&](int64_t v) {
          return (load(sum + v * kLanes) - average - load(n + v * kLanes) * slope) * rstd;
        };
        if (d_x.sum != Sum::none)
          emit<kKind>(columns, d_x, to_x, row.i, d_x.rows.by_minor[row.j], d_u);
        if (d_residual.sum != Sum::none)
          emit<kKind>(columns, d_residual, to_residual, row.i, d_residual.rows.by_minor[row.j],
                      d_u);
        to_x.added(1);
        to_residual.added(1);
        if (sums_per_major && row.j == p.minor - 1) {
          to_x.template end_of_major<kKind>(columns, row.i);
          to_residual.template end_of_major<kKind>(columns, row.i);
        }
      }
    }
    at = row;
  }
  to_x.end_of_chunk();
  to_scale.end_of_chunk();
  to_shift.end_of_chunk();
  to_residual.end_of_chunk();
}

// The number of vectors in a row when there is a kernel for just that number, else 0.
int fixed_vectors(int64_t d) {
  if (d % kLanes != 0) return 0;
  const int64_t vectors = d / kLanes;
  return vectors == 1 || vectors == 2 || vectors == 4 || vectors == 8 ? static_cast<int>(vectors)
                                                                      : 0;
}

constexpr int kFloat32 = static_cast<int>(Kind::float32),
              kBfloat16 = static_cast<int>(Kind::bfloat16);

#define MTLFAST_BY_ORDER(kernel, vectors, kind, problem, ...) \
  switch ((problem).order) {                                  \
    case Order::flat:                                         \
      kernel<vectors, kind, Order::flat>(__VA_ARGS__);        \
      break;                                                  \
    case Order::along_major:                                  \
      kernel<vectors, kind, Order::along_major>(__VA_ARGS__); \
      break;                                                  \
    case Order::along_minor:                                  \
      kernel<vectors, kind, Order::along_minor>(__VA_ARGS__); \
      break;                                                  \
  }

// Mixed dtypes and float16 are rare enough to have the most general kernel alone.
#define MTLFAST_BY_KIND(kernel, vectors, problem, ...)                  \
  if ((problem).uniform && (problem).x.kind == Kind::float32) {         \
    MTLFAST_BY_ORDER(kernel, vectors, kFloat32, problem, __VA_ARGS__)   \
  } else if ((problem).uniform && (problem).x.kind == Kind::bfloat16) { \
    MTLFAST_BY_ORDER(kernel, vectors, kBfloat16, problem, __VA_ARGS__)  \
  } else {                                                              \
    kernel<vectors, kAnyKind, Order::flat>(__VA_ARGS__);                \
  }

#if defined(__SANITIZE_ADDRESS__)  // these builds take minutes: one of each kind is enough
#define MTLFAST_BY_WIDTH(kernel, problem, ...)         \
  switch (fixed_vectors((problem).d)) {                \
    case 2:                                            \
      MTLFAST_BY_KIND(kernel, 2, problem, __VA_ARGS__) \
      break;                                           \
    default:                                           \
      MTLFAST_BY_KIND(kernel, 0, problem, __VA_ARGS__) \
  }
#else
#define MTLFAST_BY_WIDTH(kernel, problem, ...)         \
  switch (fixed_vectors((problem).d)) {                \
    case 1:                                            \
      MTLFAST_BY_KIND(kernel, 1, problem, __VA_ARGS__) \
      break;                                           \
    case 2:                                            \
      MTLFAST_BY_KIND(kernel, 2, problem, __VA_ARGS__) \
      break;                                           \
    case 4:                                            \
      MTLFAST_BY_KIND(kernel, 4, problem, __VA_ARGS__) \
      break;                                           \
    case 8:                                            \
      MTLFAST_BY_KIND(kernel, 8, problem, __VA_ARGS__) \
      break;                                           \
    default:                                           \
      MTLFAST_BY_KIND(kernel, 0, problem, __VA_ARGS__) \
  }
#endif

}  // namespace

void conditional_layer_norm_forward(const conditional_layer_norm::Problem& problem,
                                    const conditional_layer_norm::Rows& out, int64_t begin,
                                    int64_t end, float* scratch) {
  MTLFAST_BY_WIDTH(forward, problem, problem, out, begin, end, scratch)
  finish_streams();
}

void conditional_layer_norm_backward(const conditional_layer_norm::Backward& b, int64_t begin,
                                     int64_t end, float* partials, float* scratch) {
  MTLFAST_BY_WIDTH(backward, b.problem, b, begin, end, partials, scratch)
  finish_streams();
}

void conditional_layer_norm_add_partials(const float* partials, int64_t chunks, int64_t stride,
                                         int64_t width, int64_t d,
                                         conditional_layer_norm::Kind kind, int64_t begin,
                                         int64_t end, void* out) {
  const Columns<0> columns(d);
  Rows rows;
  rows.data = out;
  rows.kind = kind;
  for (int64_t r = begin; r < end; ++r)
    write_row<kAnyKind>(columns, rows, r * d, [&](int64_t v) {
      const float* column = partials + r * width + v * kLanes;
      Vec total = zero();
      for (int64_t first = 0; first < chunks; first += kFirstLevel) {
        const int64_t last = first + kFirstLevel < chunks ? first + kFirstLevel : chunks;
        Vec block = zero();
        for (int64_t c = first; c < last; ++c) block += load(column + c * stride);
        total += block;
      }
      return total;
    });
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
