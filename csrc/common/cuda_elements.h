// Elements of tensors on CUDA: float32 in registers; float32, bfloat16 or float16 in memory, by one
// or by four. `Kind` is any enum with these three names.
#pragma once

#include "cuda.h"

namespace mtlfast {
namespace cuda {

template <class Kind>
__device__ inline float load_one(const void* data, Kind kind, int64_t at) {
  if (kind == Kind::float32) return static_cast<const float*>(data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(data)[at];
  return kind == Kind::bfloat16 ? bf16_to_float(bits) : f16_to_float(bits);
}

template <class Kind>
__device__ inline void store_one(void* data, Kind kind, int64_t at, float value) {
  if (kind == Kind::float32) {
    static_cast<float*>(data)[at] = value;
    return;
  }
  const uint32_t bits = kind == Kind::bfloat16 ? float_to_bf16(value) : float_to_f16(value);
  static_cast<uint16_t*>(data)[at] = static_cast<uint16_t>(bits);
}

// Of elements that start at a multiple of 16 bytes (float32) or 8.
template <class Kind>
__device__ inline void load_four(const void* data, Kind kind, int64_t at, float (&v)[4]) {
  if (kind == Kind::float32) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
  const uint2 two = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at);
  if (kind == Kind::bfloat16) {
    v[0] = bf16_to_float(two.x & 0xffffu), v[1] = bf16_to_float(two.x >> 16);
    v[2] = bf16_to_float(two.y & 0xffffu), v[3] = bf16_to_float(two.y >> 16);
  } else {
    v[0] = f16_to_float(two.x & 0xffffu), v[1] = f16_to_float(two.x >> 16);
    v[2] = f16_to_float(two.y & 0xffffu), v[3] = f16_to_float(two.y >> 16);
  }
}

template <class Kind>
__device__ inline void store_four(void* data, Kind kind, int64_t at, const float (&v)[4]) {
  if (kind == Kind::float32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = float4{v[0], v[1], v[2], v[3]};
    return;
  }
  const bool b = kind == Kind::bfloat16;
  uint32_t h[4];
  for (int e = 0; e < 4; ++e) h[e] = b ? float_to_bf16(v[e]) : float_to_f16(v[e]);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + at) =
      uint2{h[0] | (h[1] << 16), h[2] | (h[3] << 16)};
}

}  // namespace cuda
}  // namespace mtlfast
