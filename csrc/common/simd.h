// One vector of float32 lanes, as wide as the instruction set this file is compiled for.
//
// Kernels are compiled once per instruction set with -DMTLFAST_ISA=<name>; everything here lives in
// a namespace of that name, so the copies never meet. No standard-library templates: an AVX-512
// copy of a shared inline function must not be picked by the linker for an older machine.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
// GCC 12 warns about its own _mm512_undefined_ps() wherever an intrinsic is inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#ifndef MTLFAST_ISA
#define MTLFAST_ISA portable
#endif

#define MTLFAST_INLINE inline __attribute__((always_inline))

namespace mtlfast {
namespace MTLFAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

constexpr int round_up(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr int round_up_lanes(int n) {
  return round_up(n, kLanes);
}

MTLFAST_INLINE Vec load(const float* p) {
  return *reinterpret_cast<const UnalignedVec*>(p);
}
MTLFAST_INLINE void store(float* p, Vec v) {
  *reinterpret_cast<UnalignedVec*>(p) = v;
}
// x - 0 is x for every x, which the compiler knows; x + 0 is not (x = -0) and would cost an
// addition.
MTLFAST_INLINE Vec broadcast(float x) {
  return x - Vec{};
}
MTLFAST_INLINE Vec zero() {
  return Vec{};
}

// Lane i holds i.
MTLFAST_INLINE IntVec lane_index() {
  IntVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// v in the first `count` lanes, `other` in the rest.
MTLFAST_INLINE Vec select_first(int count, Vec v, Vec other) {
#if defined(__AVX512F__)
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>((1u << count) - 1u), v);
#else
  return lane_index() < (IntVec{} + count) ? v : other;
#endif
}

MTLFAST_INLINE Vec load_first(const float* p, int count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
#else
  Vec v{};
  std::memcpy(&v, p, sizeof(float) * static_cast<size_t>(count));
  return v;
#endif
}

// The same, without a look at lines of memory behind the last float: a masked load waits for those
// that its whole vector would touch.
MTLFAST_INLINE Vec load_first_narrow(const float* p, int count) {
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  if (count <= 8)
    return _mm512_zextps256_ps512(
        _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1u), p));
  if (count <= 12) {
    const __m128 rest = _mm_maskz_loadu_ps(static_cast<__mmask8>((1u << (count - 8)) - 1u), p + 8);
    return _mm512_insertf32x4(_mm512_zextps256_ps512(_mm256_loadu_ps(p)), rest, 2);
  }
#endif
  return load_first(p, count);
}

MTLFAST_INLINE void store_first(float* p, Vec v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), v);
#else
  std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
#endif
}

// The larger of two values; NaN in `x` survives (a max instruction that returns its second operand
// when either is NaN would otherwise swallow it).
MTLFAST_INLINE Vec max_keeping_nan(Vec floor, Vec x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(floor, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(floor, x);
#else
  return floor > x ? floor : x;
#endif
}

MTLFAST_INLINE Vec relu(Vec x) {
  return max_keeping_nan(zero(), x);
}

// gradient where the activation is positive, else zero; NaN activations pass the gradient on.
MTLFAST_INLINE Vec relu_backward(Vec activation, Vec gradient) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(activation, zero(), _CMP_NLE_UQ), gradient);
#else
  return activation <= zero() ? zero() : gradient;
#endif
}

MTLFAST_INLINE float sum_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float s = 0.0f;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
#endif
}

// The maximum of all lanes (NaN may or may not win: callers only use it to shift exponents).
MTLFAST_INLINE float max_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

MTLFAST_INLINE Vec square_root(Vec v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

constexpr float kLog2e = 1.44269504088896341f;

// exp(x - top) for x <= top, to about 1 ulp plus the rounding of x - top; 0 where it underflows,
// NaN stays NaN. Takes top * kLog2e: its rounding is a factor common to all x, which cancels in a
// softmax. 2^n 2^r with |r| <= 1/2 and a degree-6 polynomial (relative error 2e-9).
MTLFAST_INLINE Vec exponential_below(Vec x, Vec top_log2) {
  const Vec t = x * broadcast(kLog2e) - top_log2;
#if defined(__AVX512F__)
  const Vec n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  const Vec n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (t + magic) - magic;
#endif
  const Vec r = t - n;
  Vec p = broadcast(1.5353361554e-4f);
  p = p * r + broadcast(1.3398874445e-3f);
  p = p * r + broadcast(9.6184373583e-3f);
  p = p * r + broadcast(5.5503324710e-2f);
  p = p * r + broadcast(2.4022647914e-1f);
  p = p * r + broadcast(6.9314720286e-1f);
  p = p * r + broadcast(1.0f);
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  const Vec lowest = broadcast(-126.0f);
  const IntVec bits = (__builtin_convertvector(n < lowest ? lowest : n, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  const Vec y = t < lowest ? zero() : p * scale;
  return t != t ? t : y;
#endif
}

// Sums the lanes of kLanes vectors at once: lane i of the result is the sum over v[i]'s lanes.
MTLFAST_INLINE Vec sum_each(const Vec* v) {
#if defined(__AVX512F__)
  Vec a[8], b[4];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0x88) +
           _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0xDD);
  for (int i = 0; i < 4; ++i)
    b[i] = _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x88) +
           _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xDD);
  const Vec c0 = _mm512_shuffle_f32x4(b[0], b[1], 0x88) + _mm512_shuffle_f32x4(b[0], b[1], 0xDD);
  const Vec c1 = _mm512_shuffle_f32x4(b[2], b[3], 0x88) + _mm512_shuffle_f32x4(b[2], b[3], 0xDD);
  return _mm512_shuffle_f32x4(c0, c1, 0x88) + _mm512_shuffle_f32x4(c0, c1, 0xDD);
#elif defined(__AVX2__)
  Vec a[4], b[2];
  for (int i = 0; i < 4; ++i)
    a[i] = _mm256_shuffle_ps(v[2 * i], v[2 * i + 1], 0x88) +
           _mm256_shuffle_ps(v[2 * i], v[2 * i + 1], 0xDD);
  for (int i = 0; i < 2; ++i)
    b[i] = _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x88) +
           _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xDD);
  return _mm256_permute2f128_ps(b[0], b[1], 0x20) + _mm256_permute2f128_ps(b[0], b[1], 0x31);
#else
  Vec r{};
  for (int i = 0; i < kLanes; ++i) r[i] = sum_lanes(v[i]);
  return r;
#endif
}

#if defined(__AVX512F__)
// Lane j of r[i] becomes lane i of r[j].
MTLFAST_INLINE void transpose_registers(Vec* r) {
  Vec t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i + 0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
  }
}
#endif

// dst[j * ld_dst + i] = src[i * ld_src + j] for a kLanes x kLanes block.
MTLFAST_INLINE void transpose_block(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
#if defined(__AVX512F__)
  Vec r[kLanes];
  for (int i = 0; i < kLanes; ++i) r[i] = load(src + i * ld_src);
  transpose_registers(r);
  for (int i = 0; i < kLanes; ++i) store(dst + i * ld_dst, r[i]);
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) dst[j * ld_dst + i] = src[i * ld_src + j];
#endif
}

// bfloat16 <-> float32 for one row of n elements. Rounding is to nearest even; NaN stays NaN.
MTLFAST_INLINE float bf16_to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

MTLFAST_INLINE uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
