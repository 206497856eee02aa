// bfloat16 and float16 in memory, float32 in registers: whole vectors and the first `count` lanes.
// Rounding is to nearest even, NaN stays NaN.
#pragma once

#include "simd.h"

namespace mtlfast {
namespace MTLFAST_ISA {

MTLFAST_INLINE float f16_to_float(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x & 0x7fffu) << 13;
  uint32_t bits;
  if (rest >= 0x0f800000u) {  // infinity or NaN, made quiet as the hardware does
    bits = rest | 0x70000000u | (rest > 0x0f800000u ? 0x00400000u : 0u);
    bits |= 0x7f800000u;
  } else if (rest >= 0x00800000u) {
    bits = rest + 0x38000000u;  // exponent bias 15 -> 127
  } else {                      // subnormal or zero: rest * 2^-24 / 2^13, exactly
    const float value = static_cast<float>(rest >> 13) * 5.9604644775390625e-08f;
    std::memcpy(&bits, &value, sizeof(bits));
  }
  bits |= sign;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

MTLFAST_INLINE uint16_t float_to_f16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | static_cast<uint16_t>(0x7e00u | ((bits >> 13) & 0x3ffu));
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 2^16 or more
  if (bits >= 0x38800000u) {
    bits += 0xfffu + ((bits >> 13) & 1u);
    return sign | static_cast<uint16_t>((bits - 0x38000000u) >> 13);
  }
  // Below 2^-14: adding 0.5 moves the result's last bit to that of the sum and rounds there.
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  magnitude += 0.5f;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  return sign | static_cast<uint16_t>(bits - 0x3f000000u);
}

#if defined(__AVX512F__)
MTLFAST_INLINE __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}
MTLFAST_INLINE Vec widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
#if defined(__AVX512BF16__)
// Of results below 2^-126 only zero is left; else the same bits as in the code below.
MTLFAST_INLINE __m256i narrow_bf16(Vec v) {
  const __m256bh x = _mm512_cvtneps_pbh(v);
  __m256i bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
#else
MTLFAST_INLINE __m256i narrow_bf16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits,
                           _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
#endif
MTLFAST_INLINE Vec widen_f16(__m256i x) {
  return _mm512_cvtph_ps(x);
}
MTLFAST_INLINE __m256i narrow_f16(Vec v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#define MTLFAST_HALF(type)                                                        \
  MTLFAST_INLINE Vec load_##type(const uint16_t* p) {                             \
    return widen_##type(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); \
  }                                                                               \
  MTLFAST_INLINE Vec load_##type##_first(const uint16_t* p, int count) {          \
    return widen_##type(_mm256_maskz_loadu_epi16(first_lanes(count), p));         \
  }                                                                               \
  MTLFAST_INLINE void store_##type(uint16_t* p, Vec v) {                          \
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_##type(v));         \
  }                                                                               \
  MTLFAST_INLINE void store_##type##_first(uint16_t* p, Vec v, int count) {       \
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_##type(v));            \
  }
#elif defined(__AVX2__)
MTLFAST_INLINE Vec widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
MTLFAST_INLINE __m128i narrow_bf16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0xD8);
  return _mm256_castsi256_si128(packed);
}
MTLFAST_INLINE Vec widen_f16(__m128i x) {
  return _mm256_cvtph_ps(x);
}
MTLFAST_INLINE __m128i narrow_f16(Vec v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#define MTLFAST_HALF(type)                                                     \
  MTLFAST_INLINE Vec load_##type(const uint16_t* p) {                          \
    return widen_##type(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); \
  }                                                                            \
  MTLFAST_INLINE Vec load_##type##_first(const uint16_t* p, int count) {       \
    __m128i x = _mm_setzero_si128();                                           \
    std::memcpy(&x, p, sizeof(uint16_t) * static_cast<size_t>(count));         \
    return widen_##type(x);                                                    \
  }                                                                            \
  MTLFAST_INLINE void store_##type(uint16_t* p, Vec v) {                       \
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_##type(v));         \
  }                                                                            \
  MTLFAST_INLINE void store_##type##_first(uint16_t* p, Vec v, int count) {    \
    const __m128i x = narrow_##type(v);                                        \
    std::memcpy(p, &x, sizeof(uint16_t) * static_cast<size_t>(count));         \
  }
#else
// Out of line: a dozen instructions for each lane.
#define MTLFAST_HALF(type)                                                                    \
  __attribute__((noinline)) inline Vec load_##type##_first(const uint16_t* p, int count) {    \
    Vec v{};                                                                                  \
    for (int i = 0; i < count; ++i) v[i] = type##_to_float(p[i]);                             \
    return v;                                                                                 \
  }                                                                                           \
  MTLFAST_INLINE Vec load_##type(const uint16_t* p) {                                         \
    return load_##type##_first(p, kLanes);                                                    \
  }                                                                                           \
  __attribute__((noinline)) inline void store_##type##_first(uint16_t* p, Vec v, int count) { \
    for (int i = 0; i < count; ++i) p[i] = float_to_##type(v[i]);                             \
  }                                                                                           \
  MTLFAST_INLINE void store_##type(uint16_t* p, Vec v) {                                      \
    store_##type##_first(p, v, kLanes);                                                       \
  }
#endif

MTLFAST_HALF(bf16)
MTLFAST_HALF(f16)
#undef MTLFAST_HALF

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
