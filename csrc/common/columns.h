// Rows of any width, vector by vector: whole vectors, and the first columns of the last one.
#pragma once

#include "half.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// A whole vector of columns, or the first columns of the last, incomplete one.
struct Whole {};
struct First {
  int count;
};

MTLFAST_INLINE Vec load_part(const float* p, Whole) {
  return load(p);
}
MTLFAST_INLINE Vec load_part(const float* p, First f) {
  return load_first(p, f.count);
}
MTLFAST_INLINE void store_part(float* p, Vec v, Whole) {
  store(p, v);
}
MTLFAST_INLINE void store_part(float* p, Vec v, First f) {
  store_first(p, v, f.count);
}
MTLFAST_INLINE Vec load_bf16_part(const uint16_t* p, Whole) {
  return load_bf16(p);
}
MTLFAST_INLINE Vec load_bf16_part(const uint16_t* p, First f) {
  return load_bf16_first(p, f.count);
}
MTLFAST_INLINE void store_bf16_part(uint16_t* p, Vec v, Whole) {
  store_bf16(p, v);
}
MTLFAST_INLINE void store_bf16_part(uint16_t* p, Vec v, First f) {
  store_bf16_first(p, v, f.count);
}
MTLFAST_INLINE Vec load_f16_part(const uint16_t* p, Whole) {
  return load_f16(p);
}
MTLFAST_INLINE Vec load_f16_part(const uint16_t* p, First f) {
  return load_f16_first(p, f.count);
}
MTLFAST_INLINE void store_f16_part(uint16_t* p, Vec v, Whole) {
  store_f16(p, v);
}
MTLFAST_INLINE void store_f16_part(uint16_t* p, Vec v, First f) {
  store_f16_first(p, v, f.count);
}
MTLFAST_INLINE Vec zero_outside(Vec v, Whole) {
  return v;
}
MTLFAST_INLINE Vec zero_outside(Vec v, First f) {
  return select_first(f.count, v, zero());
}

// The columns of a row: NV vectors, or -NV of which the last one is incomplete, where that is known
// at compile time; any number when NV is 0.
template <int NV>
struct Columns {
  explicit Columns(int64_t) {}
  template <class Body>
  MTLFAST_INLINE void each(Body body) const {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) body(v, Whole{});
  }
};
template <int NV>
  requires(NV < 0)
struct Columns<NV> {
  int tail;
  explicit Columns(int64_t d) : tail(static_cast<int>(d % kLanes)) {}
  template <class Body>
  MTLFAST_INLINE void each(Body body) const {
#pragma GCC unroll 8
    for (int v = 0; v < -NV - 1; ++v) body(v, Whole{});
    body(-NV - 1, First{tail});
  }
};
template <>
struct Columns<0> {
  int64_t whole;
  int tail;
  explicit Columns(int64_t d) : whole(d / kLanes), tail(static_cast<int>(d % kLanes)) {}
  template <class Body>
  MTLFAST_INLINE void each(Body body) const {
    for (int64_t v = 0; v < whole; ++v) body(v, Whole{});
    if (tail != 0) body(whole, First{tail});
  }
};

// One row in float32: registers where NV is known, else scratch memory.
template <int NV>
struct Buffer {
  Vec v[NV > 0 ? NV : -NV];
  MTLFAST_INLINE explicit Buffer(float*) {}
  MTLFAST_INLINE Vec get(int64_t i) const { return v[i]; }
  MTLFAST_INLINE void put(int64_t i, Vec value) { v[i] = value; }
};
template <>
struct Buffer<0> {
  float* p;
  MTLFAST_INLINE explicit Buffer(float* scratch) : p(scratch) {}
  MTLFAST_INLINE Vec get(int64_t i) const { return load(p + i * kLanes); }
  MTLFAST_INLINE void put(int64_t i, Vec value) { store(p + i * kLanes, value); }
};

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
