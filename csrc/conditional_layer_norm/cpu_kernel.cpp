// conditional_layer_norm on one CPU thread. DTRN (CIKM 2023) Eq. 6:
//   u = x + residual,  n = (u - mean) / sqrt(var + eps),  y = scale * n + shift
#include "../common/columns.h"
#include "../common/isa.h"
#include "problem.h"

namespace mtlfast {
MTLFAST_DECLARE_CONDITIONAL_LAYER_NORM(MTLFAST_ISA)

namespace MTLFAST_ISA {
namespace {

using namespace conditional_layer_norm;

// use(v, vector v of the row in float32, part). kFloat32 says at compile time that the dtype needs
// no branch; otherwise there is one per row.
template <int NV, bool kFloat32, class Use>
MTLFAST_INLINE void read_row(const Columns<NV>& columns, const Rows& rows, int64_t start, Use use) {
  if (kFloat32 || rows.kind == Kind::float32) {
    const float* p = static_cast<const float*>(rows.data) + start;
    columns.each([&](int64_t v, auto part) { use(v, load_part(p + v * kLanes, part), part); });
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(rows.data) + start;
  if (rows.kind == Kind::bfloat16)
    columns.each([&](int64_t v, auto part) { use(v, load_bf16_part(p + v * kLanes, part), part); });
  else
    columns.each([&](int64_t v, auto part) { use(v, load_f16_part(p + v * kLanes, part), part); });
}

// Stores value(v) in the row's dtype.
template <int NV, bool kFloat32, class Value>
MTLFAST_INLINE void write_row(const Columns<NV>& columns, const Rows& rows, int64_t start,
                              Value value) {
  if (kFloat32 || rows.kind == Kind::float32) {
    float* p = static_cast<float*>(rows.data) + start;
    columns.each([&](int64_t v, auto part) { store_part(p + v * kLanes, value(v), part); });
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(rows.data) + start;
  if (rows.kind == Kind::bfloat16)
    columns.each([&](int64_t v, auto part) { store_bf16_part(p + v * kLanes, value(v), part); });
  else
    columns.each([&](int64_t v, auto part) { store_f16_part(p + v * kLanes, value(v), part); });
}

// The same past the caches, whole cache lines at a time: the lines need not be read first. Rows
// must start at a multiple of 64 bytes and be a multiple of it long.
template <int NV, bool kFloat32, class Value>
MTLFAST_INLINE void stream_row(const Columns<NV>& columns, const Rows& rows, int64_t start,
                               Value value) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if (kFloat32 || rows.kind == Kind::float32) {
    float* p = static_cast<float*>(rows.data) + start;
#if defined(__AVX512F__)
    columns.each([&](int64_t v, auto) { _mm512_stream_ps(p + v * kLanes, value(v)); });
#else
    columns.each([&](int64_t v, auto) { _mm256_stream_ps(p + v * kLanes, value(v)); });
#endif
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (NV % 2 == 0 && NV > 0) {
    if (rows.kind == Kind::bfloat16) {
      uint16_t* p = static_cast<uint16_t*>(rows.data) + start;
#pragma GCC unroll 8
      for (int v = 0; v < NV; v += 2) {
        const __m512i low = _mm512_castsi256_si512(narrow_bf16(value(v)));
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p + v * kLanes),
                            _mm512_inserti64x4(low, narrow_bf16(value(v + 1)), 1));
      }
      return;
    }
  }
#endif
  write_row<NV, kFloat32>(columns, rows, start, value);
}

// Sums the vectors of a row; wide rows in blocks, so that rounding errors stay small.
template <int NV>
struct RowSum {
  Vec block = zero(), total = zero();
  MTLFAST_INLINE void add(int64_t v, Vec value) {
    // 0 + value would be an instruction: it is not value for value = -0.
    block = NV > 0 && v == 0 ? value : block + value;
    if (NV == 0 && (v & 31) == 31) {
      total += block;
      block = zero();
    }
  }
  MTLFAST_INLINE Vec get() const { return NV == 0 ? total + block : block; }
};

// What rows add up to, one row per lane: two sums for the price of reading once.
struct Pair {
  Vec first, second;
};

// Half-way from N / 2 summed rows in each of a and b to N in one vector; see sum_each.
template <int N>
MTLFAST_INLINE Vec join(Vec a, Vec b) {
#if defined(__AVX512F__)
  if constexpr (N <= 4) return _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD);
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD);
#elif defined(__AVX2__)
  if constexpr (N <= 4) return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD);
  return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
#else
  return a + b;  // never used
#endif
}
template <int N>
MTLFAST_INLINE Pair join(Pair a, Pair b) {
  return {join<N>(a.first, b.first), join<N>(a.second, b.second)};
}

// Depth first, so that few vectors are alive at a time and none goes through memory.
template <int First, int N, class Value>
MTLFAST_INLINE auto sum_tree(Value value) {
  if constexpr (N == 1)
    return value(First);
  else
    return join<N>(sum_tree<First, N / 2>(value), sum_tree<First + N / 2, N / 2>(value));
}

// Lane r of the result (of its two members) is the sum over the lanes of value(r), for r < count.
template <int NV, class Value>
MTLFAST_INLINE auto sum_rows(int count, Value value) {
  if constexpr (NV >= 1 && NV <= 4 && kLanes >= 8) {
    return sum_tree<0, kLanes>(value);
  } else if constexpr (__is_same(decltype(value(0)), Pair)) {
    Vec first[kLanes] = {}, second[kLanes] = {};
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r) {
      const Pair p = value(r);
      first[r] = p.first;
      second[r] = p.second;
    }
    return Pair{sum_each(first), sum_each(second)};
  } else {
    Vec all[kLanes] = {};
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r) all[r] = value(r);
    return sum_each(all);
  }
}

// A row (i, j) of u.
struct Position {
  int64_t i, j, minor;
  MTLFAST_INLINE void next() {
    if (++j == minor) {
      j = 0;
      ++i;
    }
  }
  MTLFAST_INLINE int64_t in(const Rows& r) const { return i * r.step + r.by_minor[j]; }
  MTLFAST_INLINE Position after(int64_t rows) const {
    const int64_t n = j + rows;
    return {i + n / minor, n % minor, minor};
  }
};

// A row that will be read soon. The hardware finds the next rows of one tensor, but not in time
// when reading alternates with long stretches of arithmetic.
MTLFAST_INLINE void prefetch_row(const Rows& rows, int64_t start, int64_t d) {
  const int64_t size = rows.kind == Kind::float32 ? 4 : 2;
  const char* p = static_cast<const char*>(rows.data) + start * size;
  for (int64_t c = 0; c < d * size; c += 64) __builtin_prefetch(p + c);
}

template <int NV, bool kFloat32>
MTLFAST_INLINE void load_u(const Columns<NV>& columns, const Rows& x, const Rows& residual,
                           Position at, Buffer<NV>& u) {
  read_row<NV, kFloat32>(columns, x, at.in(x), [&](int64_t v, Vec a, auto) { u.put(v, a); });
  if (residual.data == nullptr) return;
  read_row<NV, kFloat32>(columns, residual, at.in(residual),
                         [&](int64_t v, Vec a, auto) { u.put(v, u.get(v) + a); });
}

// Rows are taken a block at a time and, wherever there is one number per row, one row per lane:
// sums over the columns, square roots and divisions are then a few instructions for kLanes rows. A
// block has several such groups, so that the latencies of one are hidden behind another.
template <int NV, bool kFloat32>
void forward(const Problem& p, const Rows& result, int64_t begin, int64_t end, float* scratch) {
  const Columns<NV> columns(p.d);
  const int64_t width = p.width, block = block_rows(p.d);
  Buffer<NV> g(scratch), b(scratch + width);
  float* const rows = scratch + 2 * width;
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(p.d)), eps = broadcast(p.eps);
  const Rows x = p.x, residual = p.residual, scale = p.scale, shift = p.shift, out = result;
  const int64_t shared = p.shared;
  float means[kMostBlockRows], rstds[kMostBlockRows];
  const float* u_at[kMostBlockRows];  // float32 rows that need no sum are read where they are

  Position at{begin, 0, p.minor}, ahead = at.after(block);
  for (int64_t left = (end - begin) * p.minor; left > 0; left -= block) {
    const int count = static_cast<int>(left < block ? left : block);
    Position row = at;
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r, row.next()) {
      if (NV > 0 && kFloat32 && residual.data == nullptr) {
        u_at[r] = static_cast<const float*>(x.data) + row.in(x);
        continue;
      }
      Buffer<NV> u(rows + r * width);
      load_u<NV, kFloat32>(columns, x, residual, row, u);
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
      if ((x.far || residual.far) && ahead.i < end) {
        if (x.far) prefetch_row(x, ahead.in(x), p.d);
        if (residual.far) prefetch_row(residual, ahead.in(residual), p.d);
        ahead.next();
      }
      const int64_t scale_at = row.in(scale), shift_at = row.in(shift), out_at = row.in(out);
      for (int64_t k = 0; k < shared; ++k) {
        read_row<NV, kFloat32>(columns, scale, scale_at + scale.by_shared[k],
                               [&](int64_t v, Vec a, auto) { g.put(v, a); });
        read_row<NV, kFloat32>(columns, shift, shift_at + shift.by_shared[k],
                               [&](int64_t v, Vec a, auto) { b.put(v, a); });
        const auto y = [&](int64_t v) { return n.get(v) * g.get(v) + b.get(v); };
        if (NV > 0 && out.stream)
          stream_row<NV, kFloat32>(columns, out, out_at + out.by_shared[k], y);
        else
          write_row<NV, kFloat32>(columns, out, out_at + out.by_shared[k], y);
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
  int64_t floats = 0;
  int64_t until_fold = 0;

  Sums(const Gradient& g, int64_t width, float* partials, float*& scratch) : gradient(&g) {
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
  }

  // After `rows` rows were added; outside of inner loops, for the call costs them their registers.
  MTLFAST_INLINE void added(int64_t rows) {
    if (recent == nullptr) return;
    until_fold -= rows;
    if (until_fold <= 0) fold();
  }

  void end_of_major(int64_t i, int64_t width, int64_t d) {
    if (gradient->sum != Sum::per_major) return;
    fold();
    const Columns<0> columns(d);
    for (int64_t r = 0; r < gradient->count; ++r) {
      const float* from = total + r * width;
      write_row<0, false>(columns, gradient->rows, i * gradient->rows.step + gradient->flush[r],
                          [&](int64_t v) { return load(from + v * kLanes); });
    }
    clear(total);
  }

  void end_of_chunk() {
    if (gradient->sum == Sum::per_chunk) fold();
  }
};

// Writes one row of a gradient, or adds it to its accumulator. `value(v)` gives its vectors.
template <int NV, bool kFloat32, class Value>
MTLFAST_INLINE void emit(const Columns<NV>& columns, const Gradient& g, Sums& sums, int64_t i,
                         int64_t at, Value value) {
  if (g.sum == Sum::direct) {
    if (NV > 0 && g.rows.stream)
      stream_row<NV, kFloat32>(columns, g.rows, i * g.rows.step + at, value);
    else
      write_row<NV, kFloat32>(columns, g.rows, i * g.rows.step + at, value);
  } else {
    float* to = sums.recent + at;
    columns.each(
        [&](int64_t v, auto) { store(to + v * kLanes, load(to + v * kLanes) + value(v)); });
  }
}

template <int NV, bool kFloat32>
void backward(const Backward& problem, int64_t begin, int64_t end, float* partials,
              float* scratch) {
  const Problem& p = problem.problem;
  const Columns<NV> columns(p.d);
  const int64_t width = p.width, block = kLanes;
  Buffer<NV> g(scratch), factor(scratch + width), sum(scratch + 2 * width);
  float* const n_rows = scratch + 3 * width;
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
  const int64_t shared = p.shared;
  Vec sums[kLanes] = {}, products[kLanes] = {};
  float averages[kLanes], slopes[kLanes];

  Position at{begin, 0, p.minor}, ahead = at.after(block_rows(p.d));
  int64_t left = (end - begin) * p.minor;
  while (left > 0) {
    int64_t count = left < block ? left : block;
    // Sums per major index are complete before the next index begins.
    if (sums_per_major && count > p.minor - at.j) count = p.minor - at.j;
    Position row = at;
#pragma GCC unroll 1
    for (int r = 0; r < count; ++r, row.next()) {
      Buffer<NV> n(n_rows + r * width);
      float* const total_sum = sum_rows + r * width;
      const int64_t statistics = row.in(p.statistics);
      const Vec mean = broadcast(p.mean[statistics]), rstd = broadcast(p.rstd[statistics]);
      load_u<NV, kFloat32>(columns, x, residual, row, n);
      columns.each([&](int64_t v, auto part) {
        n.put(v, zero_outside((n.get(v) - mean) * rstd, part));
        sum.put(v, zero());
      });
      if (grad_out.far && ahead.i < end) {
        if (x.far) prefetch_row(x, ahead.in(x), p.d);
        if (residual.far) prefetch_row(residual, ahead.in(residual), p.d);
        for (int64_t k = 0; k < shared; ++k)
          prefetch_row(grad_out, ahead.in(grad_out) + grad_out.by_shared[k], p.d);
        ahead.next();
      }
      const int64_t grad_at = row.in(grad_out), scale_at = row.in(scale);
      for (int64_t first = 0; first < shared; first += kFirstLevel) {
        const int64_t last = first + kFirstLevel < shared ? first + kFirstLevel : shared;
        for (int64_t k = first; k < last; ++k) {
          read_row<NV, kFloat32>(columns, grad_out, grad_at + grad_out.by_shared[k],
                                 [&](int64_t v, Vec a, auto) { g.put(v, a); });
          if (wants_u) {
            read_row<NV, kFloat32>(columns, scale, scale_at + scale.by_shared[k],
                                   [&](int64_t v, Vec a, auto) { factor.put(v, a); });
            columns.each(
                [&](int64_t v, auto) { sum.put(v, sum.get(v) + g.get(v) * factor.get(v)); });
          }
          if (d_scale.sum != Sum::none)
            emit<NV, kFloat32>(columns, d_scale, to_scale, row.i,
                               d_scale.rows.by_minor[row.j] + d_scale.rows.by_shared[k],
                               [&](int64_t v) { return g.get(v) * n.get(v); });
          if (d_shift.sum != Sum::none)
            emit<NV, kFloat32>(columns, d_shift, to_shift, row.i,
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
          emit<NV, kFloat32>(columns, d_x, to_x, row.i, d_x.rows.by_minor[row.j], d_u);
        if (d_residual.sum != Sum::none)
          emit<NV, kFloat32>(columns, d_residual, to_residual, row.i,
                             d_residual.rows.by_minor[row.j], d_u);
        to_x.added(1);
        to_residual.added(1);
      }
    }
    if (sums_per_major && row.j == 0) {
      to_x.end_of_major(at.i, width, p.d);
      to_scale.end_of_major(at.i, width, p.d);
      to_shift.end_of_major(at.i, width, p.d);
      to_residual.end_of_major(at.i, width, p.d);
    }
    at = row;
    left -= count;
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

#define MTLFAST_IF_FLOAT32(kernel, vectors, ...) \
  all_float32 ? kernel<vectors, true>(__VA_ARGS__) : kernel<vectors, false>(__VA_ARGS__)

#if defined(__SANITIZE_ADDRESS__)  // these builds take minutes: one of each kind is enough
#define MTLFAST_BY_WIDTH(kernel, d, ...)          \
  switch (fixed_vectors(d)) {                     \
    case 2:                                       \
      MTLFAST_IF_FLOAT32(kernel, 2, __VA_ARGS__); \
      break;                                      \
    default:                                      \
      MTLFAST_IF_FLOAT32(kernel, 0, __VA_ARGS__); \
  }
#else
#define MTLFAST_BY_WIDTH(kernel, d, ...)          \
  switch (fixed_vectors(d)) {                     \
    case 1:                                       \
      MTLFAST_IF_FLOAT32(kernel, 1, __VA_ARGS__); \
      break;                                      \
    case 2:                                       \
      MTLFAST_IF_FLOAT32(kernel, 2, __VA_ARGS__); \
      break;                                      \
    case 4:                                       \
      MTLFAST_IF_FLOAT32(kernel, 4, __VA_ARGS__); \
      break;                                      \
    case 8:                                       \
      MTLFAST_IF_FLOAT32(kernel, 8, __VA_ARGS__); \
      break;                                      \
    default:                                      \
      MTLFAST_IF_FLOAT32(kernel, 0, __VA_ARGS__); \
  }
#endif

// Streamed stores become visible to other threads.
void finish_streams() {
#if defined(__AVX2__) || defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace

void conditional_layer_norm_forward(const conditional_layer_norm::Problem& problem,
                                    const conditional_layer_norm::Rows& out, int64_t begin,
                                    int64_t end, float* scratch) {
  const bool all_float32 = problem.all_float32;
  MTLFAST_BY_WIDTH(forward, problem.d, problem, out, begin, end, scratch)
  finish_streams();
}

void conditional_layer_norm_backward(const conditional_layer_norm::Backward& b, int64_t begin,
                                     int64_t end, float* partials, float* scratch) {
  const bool all_float32 = b.problem.all_float32;
  MTLFAST_BY_WIDTH(backward, b.problem.d, b, begin, end, partials, scratch)
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
    write_row<0, false>(columns, rows, r * d, [&](int64_t v) {
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
