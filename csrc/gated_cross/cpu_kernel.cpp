// gated_cross on the CPU, compiled once per instruction set (-DMTLFAST_ISA=...).
#include "../stacked_linear/products.h"
#include "problem.h"

namespace mtlfast {
MTLFAST_DECLARE_GATED_CROSS(MTLFAST_ISA)

namespace MTLFAST_ISA {
namespace {

using namespace stacked_linear_products;
using gated_cross::Gradients;
using gated_cross::Saved;

// By exp(-|x|), which never overflows; infinite x give 0 and 1, NaN stays NaN.
MTLFAST_INLINE Vec sigmoid(Vec x) {
  const Vec below = max_keeping_nan(broadcast(-128.0f), x < zero() ? x : -x);
  const Vec e = exponential_below(below, zero());
  const Vec one = broadcast(1.0f);
  return (x < zero() ? e : one) / (one + e);
}

// body(c, n) for vectors of n columns at c.
template <typename Body>
MTLFAST_INLINE void for_each_vector(int columns, const Body& body) {
  int c = 0;
  for (; c + kLanes <= columns; c += kLanes) body(c, kLanes);
  if (c < columns) body(c, columns - c);
}

MTLFAST_INLINE Vec load_columns(const float* p, int count) {
  return count == kLanes ? load(p) : load_first(p, count);
}

MTLFAST_INLINE void store_columns(float* p, Vec v, int count) {
  if (count == kLanes)
    store(p, v);
  else
    store_first(p, v, count);
}

// The gradient before the gate, [rows][padded 2 D]: of the values, then of the gate's inputs.
void load_gradient(const gated_cross::Problem& p, const Gradients& g, Saved saved, int64_t network,
                   int64_t begin, int rows, float* dst) {
  const int width = p.linear.in;
  const int64_t ld = padded(p.linear.out);
  for (int r = 0; r < rows; ++r) {
    const int64_t row = (network * p.linear.rows + begin + r) * width;
    const float* grad = g.out + network * g.out_stream + (begin + r) * g.out_row;
    const float* x0 = p.x0 + network * p.x0_stream + (begin + r) * p.x0_row;
    float* to = dst + r * ld;
    for_each_vector(width, [&](int c, int n) {
      const Vec value = load_columns(saved.value + row + c, n);
      const Vec gate = load_columns(saved.gate + row + c, n);
      const Vec gated = load_columns(grad + c, n) * gate;
      if (g.x0 != nullptr) store_columns(g.x0 + row + c, gated * value, n);
      const Vec grad_value = gated * load_columns(x0 + c, n);
      store_columns(to + c, grad_value, n);
      store_columns(to + width + c, grad_value * value * (broadcast(1.0f) - gate), n);
    });
    for (int64_t c = p.linear.out; c < ld; ++c) to[c] = 0.0f;
  }
}

}  // namespace

void gated_cross_forward(const gated_cross::Problem& p, const float* packed, int64_t network,
                         int64_t begin, int64_t end, float* out, Saved saved, float* scratch) {
  const int rows = static_cast<int>(end - begin), width = p.linear.in;
  const int64_t gates = packed_size(gated_cross::halves(p.linear), false);
  float* values = scratch;
  float* gate_inputs = values + int64_t{kRows} * kPanel;
  float* bias = gate_inputs + int64_t{kRows} * kPanel;
  const float* x = p.linear.x + network * p.linear.x_stream + begin * p.linear.x_row;
  const float* x0 = p.x0 + network * p.x0_stream + begin * p.x0_row;
  prefetch_rows(x, p.linear.x_row, rows, width);
  for (int first = 0; first < width; first += kPanel, packed += int64_t{width} * kPanel) {
    const int columns = width - first < kPanel ? width - first : kPanel;
    copy_rows(p.linear.bias + network * width + first, 0, 1, columns, bias, kPanel);
    GemmTile g{};
    g.a = x;
    g.lda = p.linear.x_row;
    g.b = packed;
    g.ldb = kPanel;
    g.c = values;
    g.ldc = kPanel;
    g.k = width;
    g.bias = bias;
    gemm<kStrided>(rows, columns, g);
    g.b = packed + gates;
    g.c = gate_inputs;
    g.bias = nullptr;
    gemm<kStrided>(rows, columns, g);
    for (int r = 0; r < rows; ++r) {
      const int64_t row = (network * p.linear.rows + begin + r) * width + first;
      for_each_vector(columns, [&](int c, int n) {
        const Vec value = load(values + r * kPanel + c);
        const Vec gate = sigmoid(load(gate_inputs + r * kPanel + c));
        const Vec from = load_columns(x + r * p.linear.x_row + first + c, n);
        const Vec times = load_columns(x0 + r * p.x0_row + first + c, n);
        store_columns(out + row + c, from + times * (value * gate), n);
        if (saved.value == nullptr) return;
        store_columns(saved.value + row + c, value, n);
        store_columns(saved.gate + row + c, gate, n);
      });
    }
  }
}

void gated_cross_backward(const gated_cross::Problem& p, const Gradients& g, Saved saved,
                          const float* packed, int64_t network, int64_t begin, int64_t end,
                          float* sums, float* scratch) {
  const stacked_linear::Problem& linear = p.linear;
  const int rows = static_cast<int>(end - begin), width = linear.in;
  float* grad = scratch;
  float* x_copy = grad + kGradientRows * padded(linear.out);
  float* tile = x_copy + kGradientRows * padded(width);
  load_gradient(p, g, saved, network, begin, rows, grad);
  add_column_sums(grad, rows, padded(linear.out), width, sums + linear.out * padded(width));
  add_weight_gradient(linear, grad, network, begin, rows, sums, x_copy);
  if (g.x == nullptr) return;
  for (int first = 0; first < width; first += kPanel) {
    const int columns = width - first < kPanel ? width - first : kPanel;
    GemmTile dx = input_gradient_panel(linear, grad, packed, first);
    dx.c = tile;
    dx.ldc = kPanel;
    gemm<kStrided>(rows, columns, dx);
    for (int r = 0; r < rows; ++r) {
      const float* from = g.out + network * g.out_stream + (begin + r) * g.out_row + first;
      float* to = g.x + (network * linear.rows + begin + r) * width + first;
      for_each_vector(columns, [&](int c, int n) {
        store_columns(to + c, load_columns(from + c, n) + load(tile + r * kPanel + c), n);
      });
    }
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
