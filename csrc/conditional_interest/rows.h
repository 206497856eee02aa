// Row operations on padded float32 scratch: [rows][D] with the columns from d on equal to zero.
#pragma once

#include "../common/gemm.h"
#include "../common/half.h"
#include "problem.h"

namespace mtlfast {
namespace MTLFAST_ISA {

// A stack of scratch blocks; with a null base it only measures.
struct Arena {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* p = base == nullptr ? nullptr : base + used;
    used += (floats + 15) / 16 * 16;
    return p;
  }
};

struct Width {
  int d;        // valid columns
  int columns;  // d rounded up to full vectors
  bool padded() const { return columns != d; }
};

MTLFAST_INLINE float element(const void* data, int64_t index, bool bf16) {
  return bf16 ? bf16_to_float(static_cast<const uint16_t*>(data)[index])
              : static_cast<const float*>(data)[index];
}

// One strided row of float32 or bfloat16 to float32, zero padded.
inline void load_row(const void* data, int64_t start, int64_t stride, bool bf16, Width w,
                     float* dst) {
  if (!bf16 && stride == 1) {
    const float* src = static_cast<const float*>(data) + start;
    int c = 0;
    for (; c + kLanes <= w.d; c += kLanes) store(dst + c, load(src + c));
    if (c < w.d) store(dst + c, load_first(src + c, w.d - c));
    return;
  }
  if (bf16 && stride == 1) {
    const uint16_t* src = static_cast<const uint16_t*>(data) + start;
    int c = 0;
    for (; c + kLanes <= w.d; c += kLanes) store(dst + c, load_bf16(src + c));
    if (c < w.d) store(dst + c, load_bf16_first(src + c, w.d - c));
    return;
  }
  for (int c = 0; c < w.d; ++c) dst[c] = element(data, start + c * stride, bf16);
  for (int c = w.d; c < w.columns; ++c) dst[c] = 0.0f;
}

inline void store_row(const float* src, Width w, bool bf16, void* data, int64_t start) {
  if (bf16) {
    uint16_t* dst = static_cast<uint16_t*>(data) + start;
    int c = 0;
    for (; c + kLanes <= w.d; c += kLanes) store_bf16(dst + c, load(src + c));
    if (c < w.d) store_bf16_first(dst + c, load(src + c), w.d - c);
    return;
  }
  float* dst = static_cast<float*>(data) + start;
  int c = 0;
  for (; c + kLanes <= w.d; c += kLanes) store(dst + c, load(src + c));
  if (c < w.d) store_first(dst + c, load(src + c), w.d - c);
}

template <int D>
void load_rows(const conditional_interest::Matrix& m, bool bf16, int64_t first, int rows, Width w,
               float* dst) {
  for (int r = 0; r < rows; ++r)
    load_row(m.data, (first + r) * m.row_stride, m.column_stride, bf16, w, dst + r * D);
}

inline void fill_zero(float* p, int64_t n) {
  std::memset(p, 0, sizeof(float) * static_cast<size_t>(n));
}
inline void copy_floats(float* to, const float* from, int64_t n) {
  std::memcpy(to, from, sizeof(float) * static_cast<size_t>(n));
}

// dst[r] = scale * src[r] + shift, one table row for all rows.
template <int D>
void affine_rows(const float* src, int rows, Width w, const float* scale, const float* shift,
                 float* dst) {
  for (int c = 0; c < w.columns; c += kLanes) {
    const Vec g = load(scale + c), b = load(shift + c);
    for (int r = 0; r < rows; ++r) store(dst + r * D + c, load(src + r * D + c) * g + b);
  }
}

// x[r] = (x[r] - mean) / sqrt(var + eps) in place, kLanes rows at a time; rstd[r] is written too.
// rstd needs room for rows rounded up to kLanes.
template <int D>
void normalize_rows(float* x, int rows, Width w, float eps, float* rstd) {
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(w.d));
  const int tail = w.d - (w.columns - kLanes);  // valid lanes of the last vector
  for (int r0 = 0; r0 < rows; r0 += kLanes) {
    const int count = rows - r0 < kLanes ? rows - r0 : kLanes;
    Vec partial[kLanes];
    float mean[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const float* row = x + (r0 + (i < count ? i : 0)) * D;
      Vec s = load(row);
      for (int c = kLanes; c < w.columns; c += kLanes) s += load(row + c);
      partial[i] = s;
    }
    store(mean, sum_each(partial) * inverse_d);
    for (int i = 0; i < kLanes; ++i) {
      float* row = x + (r0 + (i < count ? i : 0)) * D;
      const Vec m = broadcast(mean[i]);
      Vec s = zero();
      for (int c = 0; c < w.columns - kLanes; c += kLanes) {
        const Vec y = load(row + c) - m;
        s += y * y;
      }
      Vec y = load(row + w.columns - kLanes) - m;
      if (w.padded()) y = select_first(tail, y, zero());
      s += y * y;
      partial[i] = s;
    }
    const Vec r = broadcast(1.0f) / square_root(sum_each(partial) * inverse_d + broadcast(eps));
    store(rstd + r0, r);
    for (int i = 0; i < count; ++i) {
      float* row = x + (r0 + i) * D;
      const Vec m = broadcast(mean[i]), scale = broadcast(rstd[r0 + i]);
      for (int c = 0; c < w.columns - kLanes; c += kLanes)
        store(row + c, (load(row + c) - m) * scale);
      Vec y = (load(row + w.columns - kLanes) - m) * scale;
      if (w.padded()) y = select_first(tail, y, zero());
      store(row + w.columns - kLanes, y);
    }
  }
}

// Layer-norm backward without the affine part, in place on the gradient of the normalized rows:
// g[r] = rstd * (g - mean(g) - normalized * mean(g * normalized)).
template <int D>
void normalize_rows_backward(float* g, const float* normalized, int rows, Width w,
                             const float* rstd) {
  const Vec inverse_d = broadcast(1.0f / static_cast<float>(w.d));
  const int tail = w.d - (w.columns - kLanes);
  for (int r0 = 0; r0 < rows; r0 += kLanes) {
    const int count = rows - r0 < kLanes ? rows - r0 : kLanes;
    Vec sum[kLanes], dot[kLanes];
    float mean[kLanes], projection[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t at = static_cast<int64_t>(r0 + (i < count ? i : 0)) * D;
      Vec s = zero(), p = zero();
      for (int c = 0; c < w.columns; c += kLanes) {
        const Vec v = load(g + at + c);
        s += v;
        p += v * load(normalized + at + c);
      }
      sum[i] = s;
      dot[i] = p;
    }
    store(mean, sum_each(sum) * inverse_d);
    store(projection, sum_each(dot) * inverse_d);
    for (int i = 0; i < count; ++i) {
      const int64_t at = static_cast<int64_t>(r0 + i) * D;
      const Vec m = broadcast(mean[i]), p = broadcast(projection[i]), s = broadcast(rstd[r0 + i]);
      for (int c = 0; c < w.columns; c += kLanes) {
        Vec y = (load(g + at + c) - m - load(normalized + at + c) * p) * s;
        if (w.padded() && c + kLanes == w.columns) y = select_first(tail, y, zero());
        store(g + at + c, y);
      }
    }
  }
}

// sum[c] += sum over rows of g[r][c].
template <int D>
void accumulate_rows(const float* g, int rows, Width w, float* sum) {
  for (int c = 0; c < w.columns; c += kLanes) {
    Vec s = zero();
    for (int r = 0; r < rows; ++r) s += load(g + r * D + c);
    store(sum + c, load(sum + c) + s);
  }
}

// Backward of affine_rows, one table row for all rows: adds to its gradients, and calls put(i, dx)
// with the gradient of src for the vector at offset i.
template <int D, typename Put>
MTLFAST_INLINE void affine_rows_backward(const float* g, const float* src, int rows, Width w,
                                         const float* scale, float* d_scale, float* d_shift,
                                         Put put) {
  for (int c = 0; c < w.columns; c += kLanes) {
    const Vec factor = load(scale + c);
    Vec sum = zero(), product = zero();
    for (int64_t i = c; i < int64_t{rows} * D; i += D) {
      const Vec v = load(g + i);
      sum += v;
      product += v * load(src + i);
      put(i, v * factor);
    }
    store(d_shift + c, load(d_shift + c) + sum);
    store(d_scale + c, load(d_scale + c) + product);
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
