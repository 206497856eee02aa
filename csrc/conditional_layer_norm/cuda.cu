// The torch side of conditional_layer_norm on CUDA: shapes and strides to the loops of
// cuda_kernel.h, and the launches. Nothing is read back to the host.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/cuda.h"
#include "cuda_kernel.h"
#include "inputs.h"

namespace mtlfast {
namespace {

using namespace conditional_layer_norm;
using mtlfast::cuda::Stream;
namespace kernel = conditional_layer_norm::cuda;

constexpr int64_t kMaxWidth = 1024;
constexpr int64_t kBlocks = 1024;  // that sum gradients of the tables, about: the same on every GPU
constexpr int64_t kFewRows = 8;    // of one table row: not worth a block
constexpr int64_t kChunkRounds = 4;  // rows that a group of threads sums, at least

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- loops ----

enum Place {
  kX,
  kResidual,
  kScale,
  kShift,
  kStatistics,
  kGrad,
  kGradX,
  kGradResidual,
  kGradScale,
  kGradShift,
  kPlaces
};

struct Loop {
  int64_t size = 1;
  int64_t stride[kPlaces] = {};
};
using Loops = std::vector<Loop>;

Loops loops_over(const Shape& shape) {
  Loops loops(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) loops[i].size = shape[i];
  return loops;
}

// `sizes` and `strides` of leading dimensions, aligned on the right.
void add(Loops& loops, Place place, const Shape& sizes, const Shape& strides) {
  const size_t skip = loops.size() - sizes.size();
  for (size_t i = 0; i < sizes.size(); ++i)
    loops[skip + i].stride[place] = sizes[i] == 1 ? 0 : strides[i];
}

void add(Loops& loops, Place place, const Tensor& t) {
  const Shape sizes = leading(t);
  Shape strides(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) strides[i] = t.stride(static_cast<int64_t>(i));
  add(loops, place, sizes, strides);
}

void add_contiguous(Loops& loops, Place place, const Shape& sizes) {
  add(loops, place, sizes, contiguous_strides(sizes));
}

// Without loops of size 1; neighbours that are one for every operand are merged.
Loops merged(const Loops& loops) {
  Loops result;
  for (const Loop& loop : loops) {
    if (loop.size == 1) continue;
    bool joins = !result.empty();
    for (int place = 0; joins && place < kPlaces; ++place)
      joins = result.back().stride[place] == loop.stride[place] * loop.size;
    const int64_t outer = joins ? result.back().size : 1;
    if (joins) result.pop_back();
    result.push_back(loop);
    result.back().size *= outer;
  }
  return result;
}

// First those along which `place` varies, then the others; how many rows each kind makes.
struct Split {
  Loops loops;
  int64_t outer = 1, inner = 1;
};

Split split_by(const Loops& loops, Place place) {
  Loops outer, inner;
  for (const Loop& loop : loops) (loop.stride[place] != 0 ? outer : inner).push_back(loop);
  Split split;
  split.loops = merged(outer);
  for (const Loop& loop : split.loops) split.outer *= loop.size;
  for (const Loop& loop : merged(inner)) {
    split.loops.push_back(loop);
    split.inner *= loop.size;
  }
  return split;
}

// ---- operands ----

kernel::Operand operand(const Tensor& t) {
  kernel::Operand o;
  o.data = const_cast<void*>(t.const_data_ptr());
  o.kind = kind_of("input", t.scalar_type());
  return o;
}

bool takes_vectors(const kernel::Operand& o, int dims) {
  const uintptr_t bytes = o.kind == Kind::float32 ? 16 : 8;
  bool all = reinterpret_cast<uintptr_t>(o.data) % bytes == 0;
  for (int i = 0; i < dims; ++i) all = all && o.stride[i] % kernel::kVector == 0;
  return all;
}

kernel::Rows rows_of(const Inputs& in, const Loops& loops, const Tensor* grad) {
  if (loops.size() > kernel::kMaxDims)
    fail("x: expected leading dimensions that merge into at most 8 loops, found " +
         std::to_string(loops.size()));
  kernel::Rows p;
  p.d = static_cast<int>(in.d);
  p.dims = std::max<int>(1, static_cast<int>(loops.size()));
  p.size[0] = 1;
  p.count = 1;
  p.x = operand(in.x);
  p.scale = operand(in.scale);
  p.shift = operand(in.shift);
  if (in.residual) p.residual = operand(*in.residual);
  if (grad != nullptr) p.grad = operand(*grad);
  for (size_t i = 0; i < loops.size(); ++i) {
    p.size[i] = loops[i].size;
    p.count *= loops[i].size;
    p.x.stride[i] = loops[i].stride[kX];
    p.residual.stride[i] = loops[i].stride[kResidual];
    p.scale.stride[i] = loops[i].stride[kScale];
    p.shift.stride[i] = loops[i].stride[kShift];
    p.statistics.stride[i] = loops[i].stride[kStatistics];
    p.grad.stride[i] = loops[i].stride[kGrad];
  }
  p.narrow = p.count <= INT32_MAX;
  p.vectors = in.d % kernel::kVector == 0;
  for (const kernel::Operand* o : {&p.x, &p.residual, &p.scale, &p.shift, &p.grad})
    p.vectors = p.vectors && takes_vectors(*o, p.dims);
  return p;
}

// Contiguous results start at multiples of 16 bytes where d is a multiple of 4 elements of them.
kernel::Operand result(const Tensor& t) {
  return operand(t);
}

Inputs check(const Tensor& x, const Tensor& scale, const Tensor& shift,
             const std::optional<Tensor>& residual) {
  Inputs in = check_inputs(x, scale, shift, residual);
  if (in.d > kMaxWidth)
    fail("x: expected d <= " + std::to_string(kMaxWidth) + " on CUDA, found " +
         std::to_string(in.d));
  return in;
}

Loops loops_of(const Inputs& in) {
  Loops loops = loops_over(in.out);
  add(loops, kX, in.x);
  add(loops, kScale, in.scale);
  add(loops, kShift, in.shift);
  if (in.residual) add(loops, kResidual, *in.residual);
  add_contiguous(loops, kStatistics, in.u);
  return loops;
}

// ---- launches ----

// Calls f.template run<LANES, VECS>() with the narrowest group that holds d.
template <class F>
void for_width(int64_t d, const F& f) {
  if (d <= 16) return f.template run<4, 1>();
  if (d <= 32) return f.template run<8, 1>();
  if (d <= 64) return f.template run<16, 1>();
  if (d <= 128) return f.template run<32, 1>();
  if (d <= 256) return f.template run<32, 2>();
  f.template run<32, 8>();
}

struct LaunchForward {
  const Stream& stream;
  const kernel::Forward& f;
  template <int LANES, int VECS>
  void run() const {
    const int64_t blocks = divide_up(f.rows.count, kernel::kThreads / LANES);
    stream.launch(kernel::forward_kernel<LANES, VECS>, blocks, kernel::kThreads, f);
  }
};

struct LaunchBackwardRows {
  const Stream& stream;
  const kernel::BackwardRows& b;
  template <int LANES, int VECS>
  void run() const {
    const int64_t blocks = divide_up(b.outer, kernel::kThreads / LANES);
    stream.launch(kernel::backward_rows_kernel<LANES, VECS>, blocks, kernel::kThreads, b);
  }
};

struct LaunchBackwardTables {
  const Stream& stream;
  kernel::BackwardTables& b;
  const Tensor* grad_scale;  // null: not wanted
  const Tensor* grad_shift;
  const Tensor& like;

  template <int LANES, int VECS>
  void run() const {
    constexpr int64_t kGroups = kernel::kThreads / LANES;
    const bool each = b.inner <= kFewRows;
    const int64_t blocks = each ? divide_up(b.outer, kGroups) : b.outer;
    const int64_t step = each ? 1 : kGroups;
    const int64_t most = std::max<int64_t>(
        1, std::min(divide_up(b.inner, step * kChunkRounds), divide_up(kBlocks, blocks)));
    b.chunk = divide_up(divide_up(b.inner, most), step) * step;
    b.chunks = divide_up(b.inner, b.chunk);

    const int64_t elements = b.outer * b.rows.d;
    const auto target = [&](const Tensor* grad, std::optional<Tensor>& partial) {
      if (grad == nullptr) return kernel::Operand{};
      if (b.chunks == 1) return result(*grad);
      partial = torch::stable::new_empty(like, {b.chunks, elements}, ScalarType::Float);
      return result(*partial);
    };
    std::optional<Tensor> scales, shifts;
    b.grad_scale = target(grad_scale, scales);
    b.grad_shift = target(grad_shift, shifts);
    stream.launch(each ? kernel::backward_tables_kernel<LANES, VECS, true>
                       : kernel::backward_tables_kernel<LANES, VECS, false>,
                  blocks * b.chunks, kernel::kThreads, b);
    add_partials(scales, grad_scale, elements);
    add_partials(shifts, grad_shift, elements);
  }

  void add_partials(const std::optional<Tensor>& partial, const Tensor* grad,
                    int64_t elements) const {
    if (!partial) return;
    kernel::AddPartials a;
    a.from = partial->const_data_ptr<float>();
    a.to = result(*grad);
    a.chunks = b.chunks;
    a.elements = elements;
    stream.launch(kernel::add_partials_kernel<kernel::kPartialColumns>,
                  divide_up(elements, kernel::kPartialColumns), kernel::kThreads, a);
  }
};

// ---- the ops ----

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& scale,
                                           const Tensor& shift,
                                           const std::optional<Tensor>& residual, double eps,
                                           int64_t out_kind, bool save_for_backward) {
  const Inputs in = check(x, scale, shift, residual);
  const ScalarType dtype = dtype_of(out_kind);
  const Stream stream(x);
  Tensor out = torch::stable::new_empty(x, with_last(in.out, in.d), dtype);
  const Shape saved = save_for_backward ? in.u : Shape{0};
  Tensor mean = torch::stable::new_empty(x, saved, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, saved, ScalarType::Float);
  if (product(in.out) == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(rstd);
    return {out, mean, rstd};
  }
  kernel::Forward f;
  f.rows = rows_of(in, merged(loops_of(in)), nullptr);
  f.rows.eps = static_cast<float>(eps);
  if (save_for_backward) {
    f.rows.mean = mean.mutable_data_ptr<float>();
    f.rows.rstd = rstd.mutable_data_ptr<float>();
  }
  f.out = result(out);
  for_width(in.d, LaunchForward{stream, f});
  return {out, mean, rstd};
}

// One backward: its inputs, and where gradients go.
class Backward {
 public:
  Backward(const Tensor& grad_out, const Inputs& in, const Tensor& mean, const Tensor& rstd)
      : stream_(grad_out),
        in_(in),
        grad_(unit_last_stride(grad_out)),
        loops_(loops_of(in)),
        mean_(const_cast<float*>(mean.const_data_ptr<float>())),
        rstd_(const_cast<float*>(rstd.const_data_ptr<float>())) {
    add(loops_, kGrad, grad_);
    add_contiguous(loops_, kGradX, leading(in.x));
    add_contiguous(loops_, kGradScale, leading(in.scale));
    add_contiguous(loops_, kGradShift, leading(in.shift));
    if (in.residual) add_contiguous(loops_, kGradResidual, leading(*in.residual));
  }

  // Whether several rows of the result share one row of x + residual.
  bool shares_u() const {
    return std::any_of(loops_.begin(), loops_.end(), [](const Loop& loop) {
      return loop.size != 1 && loop.stride[kStatistics] == 0;
    });
  }

  bool same_table_shapes() const {
    return std::all_of(loops_.begin(), loops_.end(), [](const Loop& loop) {
      return loop.stride[kGradScale] == loop.stride[kGradShift];
    });
  }

  void rows(const Tensor& grad_u) const {
    const Split split = split_by(loops_, kStatistics);
    kernel::BackwardRows b;
    b.rows = saved(rows_of(in_, split.loops, &grad_));
    b.grad_u = result(grad_u);
    b.outer = split.outer;
    b.inner = split.inner;
    for_width(in_.d, LaunchBackwardRows{stream_, b});
  }

  // Gradients of one or both tables, which then have one shape; grad_u on the way where given.
  void tables(const Tensor* grad_scale, const Tensor* grad_shift, const Tensor* grad_u) const {
    const Split split = split_by(loops_, grad_scale != nullptr ? kGradScale : kGradShift);
    kernel::BackwardTables b;
    b.rows = saved(rows_of(in_, split.loops, &grad_));
    if (grad_u != nullptr) b.grad_u = result(*grad_u);
    b.outer = split.outer;
    b.inner = split.inner;
    for_width(in_.d, LaunchBackwardTables{stream_, b, grad_scale, grad_shift, grad_});
  }

  // to = the float32 gradient of x + residual, summed over what `to` is broadcast along.
  void sum_to(const Tensor& grad_u, const Tensor& to) const {
    Loops loops = loops_over(in_.u);
    add_contiguous(loops, kGrad, in_.u);
    for (Loop& loop : loops) loop.stride[kGrad] *= in_.d;
    add_contiguous(loops, kGradX, leading(to));
    const Split split = split_by(loops, kGradX);
    kernel::BackwardTables b;
    b.rows = rows_of(in_, split.loops, &grad_u);
    b.outer = split.outer;
    b.inner = split.inner;
    for_width(in_.d, LaunchBackwardTables{stream_, b, nullptr, &to, grad_u});
  }

 private:
  kernel::Rows saved(kernel::Rows rows) const {
    rows.mean = mean_;
    rows.rstd = rstd_;
    return rows;
  }

  Stream stream_;
  const Inputs& in_;
  Tensor grad_;
  Loops loops_;
  float *mean_, *rstd_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& x,
                                                    const Tensor& scale, const Tensor& shift,
                                                    const std::optional<Tensor>& residual,
                                                    const Tensor& mean, const Tensor& rstd,
                                                    bool need_x, bool need_scale, bool need_shift,
                                                    bool need_residual) {
  const Inputs in = check(x, scale, shift, residual);
  check_backward(in, grad_out, mean, rstd);
  const bool empty = product(in.out) == 0;
  const auto gradient = [&](bool needed, const Tensor& of) {
    if (!needed) return torch::stable::new_empty(of, {0});
    return empty ? torch::stable::new_zeros(of, shape_of(of))
                 : torch::stable::new_empty(of, shape_of(of));
  };
  need_residual = need_residual && residual.has_value();
  Tensor grad_x = gradient(need_x, x);
  Tensor grad_scale = gradient(need_scale, scale);
  Tensor grad_shift = gradient(need_shift, shift);
  Tensor grad_residual = gradient(need_residual, residual ? *residual : x);
  if (empty) return {grad_x, grad_scale, grad_shift, grad_residual};

  // The gradient of x + residual is written once, in place, where only one tensor of its shape
  // receives it; else in float32, to be summed and rounded afterwards.
  const Tensor* only = need_x && need_residual ? nullptr : need_x ? &grad_x : &grad_residual;
  const bool direct = only != nullptr && shape_of(*only) == with_last(in.u, in.d);
  std::optional<Tensor> buffer;
  if (!direct && (need_x || need_residual))
    buffer = torch::stable::new_empty(grad_out, with_last(in.u, in.d), ScalarType::Float);
  const Tensor* grad_u = direct && (need_x || need_residual) ? only : buffer ? &*buffer : nullptr;

  const Backward run(grad_out, in, mean, rstd);
  const Tensor* on_the_way = run.shares_u() ? nullptr : grad_u;
  bool written = false;
  const auto tables = [&](const Tensor* of_scale, const Tensor* of_shift) {
    run.tables(of_scale, of_shift, written ? nullptr : on_the_way);
    written = written || on_the_way != nullptr;
  };
  if (need_scale && need_shift && run.same_table_shapes()) {
    tables(&grad_scale, &grad_shift);
  } else {
    if (need_scale) tables(&grad_scale, nullptr);
    if (need_shift) tables(nullptr, &grad_shift);
  }
  if (grad_u != nullptr && !written) run.rows(*grad_u);
  if (buffer && need_x) run.sum_to(*buffer, grad_x);
  if (buffer && need_residual) run.sum_to(*buffer, grad_residual);
  return {grad_x, grad_scale, grad_shift, grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(MTLFAST_CUDA_LIBRARY, MTLFAST_CUDA_KEY, m) {
  m.impl("conditional_layer_norm_forward", TORCH_BOX(&forward));
  m.impl("conditional_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace mtlfast
