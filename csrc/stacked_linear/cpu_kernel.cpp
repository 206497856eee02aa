// stacked_linear on the CPU, compiled once per instruction set (-DMTLFAST_ISA=...).
#include "problem.h"
#include "products.h"

namespace mtlfast {
MTLFAST_DECLARE_STACKED_LINEAR(MTLFAST_ISA)

namespace MTLFAST_ISA {
namespace {

using namespace stacked_linear_products;

// rows x columns of a product, into memory whose rows are not padded: a last vector that would
// spill goes through `tail` [rows][kPanel].
void panel_product(int rows, int columns, GemmTile g, float* tail) {
  if (columns % kLanes == 0) return gemm<kStrided>(rows, columns, g);
  float* c = g.c;
  const int64_t ldc = g.ldc;
  g.c = tail;
  g.ldc = kPanel;
  gemm<kStrided>(rows, columns, g);
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < columns; j += kLanes)
      store_first(c + r * ldc + j, load(tail + r * kPanel + j),
                  columns - j < kLanes ? columns - j : kLanes);
}

// The gradient before the ReLU, [rows][padded out]; its column sums are added to `bias`.
void load_gradient(const Problem& p, const GradientSource& g, int64_t stream, int64_t begin,
                   int rows, float* dst, float* bias) {
  const int width = static_cast<int>(padded(p.out));
  for (int r = 0; r < rows; ++r) {
    const float* row = g.grad + stream * g.stride[0] + (begin + r) * g.stride[1];
    float* to = dst + static_cast<int64_t>(r) * width;
    for (int first = 0; first < p.out; first += p.part, row += g.stride[2]) {
      if (g.stride[3] == 1) {
        int c = 0;
        for (; c + kLanes <= p.part; c += kLanes) store(to + first + c, load(row + c));
        if (c < p.part) store_first(to + first + c, load_first(row + c, p.part - c), p.part - c);
      } else {
        for (int c = 0; c < p.part; ++c) to[first + c] = row[c * g.stride[3]];
      }
    }
    for (int c = p.out; c < width; ++c) to[c] = 0.0f;
    if (g.out != nullptr) {
      const float* out = g.out + (stream * p.rows + begin + r) * p.out;
      int c = 0;
      for (; c + kLanes <= p.out; c += kLanes)
        store(to + c, relu_backward(load(out + c), load(to + c)));
      if (c < p.out) store(to + c, relu_backward(load_first(out + c, p.out - c), load(to + c)));
    }
  }
  add_column_sums(dst, rows, width, width, bias);
}

}  // namespace

void stacked_linear_pack(const Problem& p, bool for_backward, int64_t stream, float* packed) {
  const float* w = p.weight + stream * p.out * p.in;
  const int depth = for_backward ? p.out : p.in, columns = for_backward ? p.in : p.out;
  for (int first = 0; first < columns; first += kPanel, packed += int64_t{depth} * kPanel) {
    const int count = columns - first < kPanel ? columns - first : kPanel;
    if (for_backward) {
      copy_rows(w + first, p.in, depth, count, packed, kPanel);
      continue;
    }
    int k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      int c = 0;
      for (; c + kLanes <= count; c += kLanes)
        transpose_block(w + static_cast<int64_t>(first + c) * depth + k, depth,
                        packed + static_cast<int64_t>(k) * kPanel + c, kPanel);
      for (; c < kPanel; ++c)
        for (int i = 0; i < kLanes; ++i)
          packed[static_cast<int64_t>(k + i) * kPanel + c] =
              c < count ? w[static_cast<int64_t>(first + c) * depth + k + i] : 0.0f;
    }
    for (; k < depth; ++k)
      for (int c = 0; c < kPanel; ++c)
        packed[static_cast<int64_t>(k) * kPanel + c] =
            c < count ? w[static_cast<int64_t>(first + c) * depth + k] : 0.0f;
  }
}

void stacked_linear_forward(const Problem& p, const float* packed, int64_t stream, int64_t begin,
                            int64_t end, float* out, float* scratch) {
  const int rows = static_cast<int>(end - begin);
  float* bias = scratch + int64_t{kRows} * kPanel;
  prefetch_rows(p.x + stream * p.x_stream + begin * p.x_row, p.x_row, rows, p.in);
  for (int first = 0; first < p.out; first += kPanel, packed += int64_t{p.in} * kPanel) {
    const int columns = p.out - first < kPanel ? p.out - first : kPanel;
    GemmTile g{};
    g.a = p.x + stream * p.x_stream + begin * p.x_row;
    g.lda = p.x_row;
    g.b = packed;
    g.ldb = kPanel;
    g.c = out + (stream * p.rows + begin) * p.out + first;
    g.ldc = p.out;
    if (p.bias != nullptr) {
      copy_rows(p.bias + stream * p.out + first, 0, 1, columns, bias, kPanel);
      g.bias = bias;
    }
    g.k = p.in;
    g.relu = p.relu;
    panel_product(rows, columns, g, scratch);
  }
}

void stacked_linear_backward(const Problem& p, const GradientSource& source, const float* packed,
                             int64_t stream, int64_t begin, int64_t end, float* grad_x, float* sums,
                             float* scratch) {
  const int rows = static_cast<int>(end - begin);
  const int64_t out = padded(p.out), in = padded(p.in);
  float* grad = scratch;
  float* x_copy = grad + kGradientRows * out;
  float* tail = x_copy + kGradientRows * in;
  load_gradient(p, source, stream, begin, rows, grad, sums + p.out * in);
  add_weight_gradient(p, grad, stream, begin, rows, sums, x_copy);
  if (grad_x == nullptr) return;
  for (int first = 0; first < p.in; first += kPanel) {
    GemmTile dx = input_gradient_panel(p, grad, packed, first);
    dx.c = grad_x + (stream * p.rows + begin) * p.in + first;
    dx.ldc = p.in;
    panel_product(rows, p.in - first < kPanel ? p.in - first : kPanel, dx, tail);
  }
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
