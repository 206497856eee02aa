// Rows of the tensors of conditional_layer_norm: read, written, written past the caches, fetched
// ahead of time.
#pragma once

#include "../common/columns.h"
#include "problem.h"

namespace mtlfast {
namespace MTLFAST_ISA {

using conditional_layer_norm::Kind;
using conditional_layer_norm::Rows;

// The dtype of a row where the compiler does not know it.
constexpr int kAnyKind = -1;

template <int kKind>
MTLFAST_INLINE bool is(const Rows& rows, Kind kind) {
  return kKind == kAnyKind ? rows.kind == kind : kKind == static_cast<int>(kind);
}

// use(v, vector v of the row in float32, part). kKind: the dtype as a number, or kAnyKind for a
// branch per row.
template <int kKind, int NV, class Use>
MTLFAST_INLINE void read_row(const Columns<NV>& columns, const Rows& rows, int64_t start, Use use) {
  if (is<kKind>(rows, Kind::float32)) {
    const float* p = static_cast<const float*>(rows.data) + start;
    columns.each([&](int64_t v, auto part) { use(v, load_part(p + v * kLanes, part), part); });
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(rows.data) + start;
  if (is<kKind>(rows, Kind::bfloat16))
    columns.each([&](int64_t v, auto part) { use(v, load_bf16_part(p + v * kLanes, part), part); });
  else
    columns.each([&](int64_t v, auto part) { use(v, load_f16_part(p + v * kLanes, part), part); });
}

// Stores value(v) in the row's dtype.
template <int kKind, int NV, class Value>
MTLFAST_INLINE void write_row(const Columns<NV>& columns, const Rows& rows, int64_t start,
                              Value value) {
  if (is<kKind>(rows, Kind::float32)) {
    float* p = static_cast<float*>(rows.data) + start;
    columns.each([&](int64_t v, auto part) { store_part(p + v * kLanes, value(v), part); });
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(rows.data) + start;
  if (is<kKind>(rows, Kind::bfloat16))
    columns.each([&](int64_t v, auto part) { store_bf16_part(p + v * kLanes, value(v), part); });
  else
    columns.each([&](int64_t v, auto part) { store_f16_part(p + v * kLanes, value(v), part); });
}

// The same past the caches, whole cache lines at a time: the lines need not be read first. Rows
// must start at a multiple of 64 bytes and be a multiple of it long.
template <int kKind, int NV, class Value>
MTLFAST_INLINE void stream_row(const Columns<NV>& columns, const Rows& rows, int64_t start,
                               Value value) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if (is<kKind>(rows, Kind::float32)) {
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
    if (is<kKind>(rows, Kind::bfloat16)) {
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
  write_row<kKind>(columns, rows, start, value);
}

// Writes value(v) as the row's `stream` says.
template <int kKind, int NV, class Value>
MTLFAST_INLINE void put_row(const Columns<NV>& columns, const Rows& rows, int64_t start,
                            Value value) {
  if (NV > 0 && rows.stream)
    stream_row<kKind>(columns, rows, start, value);
  else
    write_row<kKind>(columns, rows, start, value);
}

// Streamed stores become visible to other threads.
inline void finish_streams() {
#if defined(__AVX2__) || defined(__AVX512F__)
  _mm_sfence();
#endif
}

// A row that will be read soon. The hardware finds the next rows of one tensor, but not in time
// when reading alternates with long stretches of arithmetic.
MTLFAST_INLINE void prefetch_row(const Rows& rows, int64_t start, int64_t d) {
  const int64_t size = rows.kind == Kind::float32 ? 4 : 2;
  const char* p = static_cast<const char*>(rows.data) + start * size;
  for (int64_t c = 0; c < d * size; c += 64) __builtin_prefetch(p + c);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
