// The torch side of conditional_layer_norm: shapes and strides to the three loop indices of
// problem.h, and the split of the work over threads.
//
// Work is cut into chunks whose number depends on the shapes alone, and every sum has a fixed
// order; threads only choose who computes a chunk. Results have the same bits for any number of
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/isa.h"
#include "inputs.h"
#include "problem.h"

namespace mtlfast {

MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_CONDITIONAL_LAYER_NORM)

namespace {

using namespace conditional_layer_norm;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChunkElements = 65536;  // of the output per chunk, at least, ...
constexpr int64_t kFewestRows = 32;        // ... in no fewer rows than this,
constexpr int64_t kEnoughRows = 512;       // and no more than this; more, ...
constexpr int64_t kMostRows = 4096;        // ... up to this, where there are ...
constexpr int64_t kEnoughChunks = 64;      // ... chunks for every thread
constexpr int64_t kRowsPerPartial = 8;     // rows of output per row of partial sums, at least
constexpr int64_t kMaxChunks = 1024;       // bounds the memory of the partial sums
constexpr int64_t kGrainElements = 16384;  // elements that are worth waking a thread
constexpr int64_t kManyRows = 32;          // rows that make up for converting one
constexpr int64_t kEnoughMajor = 64;       // a dimension this long gives every thread work

constexpr int64_t kCacheLine = 64;
constexpr int64_t kFarBytes = 2 << 20;  // what does not stay in a second-level cache

int64_t last_cache_bytes() {
  static const int64_t found = [] {
    int64_t bytes = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return bytes > 0 ? bytes : int64_t{32} << 20;
  }();
  return found;
}

int64_t row_bytes(const Tensor& t) {
  return t.size(t.dim() - 1) * static_cast<int64_t>(t.element_size());
}
int64_t bytes(const Tensor& t) {
  return t.numel() * static_cast<int64_t>(t.element_size());
}

// ---- the three indices ----

// What the loops run over: one entry per operand, in elements per step of one dimension.
enum Operand {
  kX,
  kResidual,
  kScale,
  kShift,
  kStatistics,
  kOut,
  kGradX,
  kGradResidual,
  kGradScale,
  kGradShift,
  kOperands
};

struct Dimension {
  int64_t size = 1;
  int64_t stride[kOperands] = {};
  bool varies_u() const { return stride[kStatistics] != 0; }
};

class Loops {
 public:
  explicit Loops(const Shape& shape) : shape_(shape), dims_(shape.size()) {
    for (size_t i = 0; i < shape.size(); ++i) dims_[i].size = shape[i];
  }

  // `sizes` and `strides` of the leading dimensions, aligned on the right.
  void add(Operand operand, const Shape& sizes, const Shape& strides) {
    const size_t skip = dims_.size() - sizes.size();
    for (size_t i = 0; i < sizes.size(); ++i)
      dims_[skip + i].stride[operand] = sizes[i] == 1 ? 0 : strides[i];
  }

  void add(Operand operand, const Tensor& t) {
    Shape sizes = leading(t), strides(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) strides[i] = t.stride(static_cast<int64_t>(i));
    add(operand, sizes, strides);
  }

  void add_contiguous(Operand operand, const Shape& leading_sizes, int64_t row) {
    Shape strides = contiguous_strides(leading_sizes);
    for (int64_t& s : strides) s *= row;
    add(operand, leading_sizes, strides);
  }

  // Drops dimensions of size 1, merges neighbours that are one for every operand, and sorts the
  // rest into major, minor and shared.
  void finish() {
    merge();
    choose_major();
    for (const Dimension& dim : minor_) minor_size *= dim.size;
    for (const Dimension& dim : shared_) shared_size *= dim.size;
    for (int o = 0; o < kOperands; ++o) {
      by_minor[o] = table(minor_, minor_size, [o](const Dimension& x) { return x.stride[o]; });
      by_shared[o] = table(shared_, shared_size, [o](const Dimension& x) { return x.stride[o]; });
    }
  }

  // An input.
  Rows rows(Operand operand, const Tensor& t) const {
    Rows r = rows(operand, t.const_data_ptr(), kind_of("input", t.scalar_type()));
    r.far = bytes(t) > kFarBytes && row_bytes(t) >= kCacheLine;
    return r;
  }

  // A contiguous result.
  Rows result(Operand operand, const Tensor& t) const {
    Rows r = rows(operand, t.mutable_data_ptr(), kind_of("result", t.scalar_type()));
    // Where the result and as much input are larger than the last cache, its first rows are evicted
    // before anybody can read them.
    r.stream = bytes(t) > last_cache_bytes() / 2 && row_bytes(t) % kCacheLine == 0 &&
               reinterpret_cast<uintptr_t>(r.data) % kCacheLine == 0;
    return r;
  }

  Rows rows(Operand operand, const void* data, Kind kind) const {
    Rows r;
    r.data = const_cast<void*>(data);
    r.kind = kind;
    r.step = major.stride[operand];
    r.by_minor = by_minor[operand].data();
    r.by_shared = by_shared[operand].data();
    return r;
  }

  // How the gradient `operand` is summed. `over_shared`: it gets one row for every k, else one for
  // every (i, j).
  Gradient gradient(Operand operand, const Tensor& to, bool over_shared, int64_t width) {
    Gradient g;
    g.rows = result(operand, to);
    bool everywhere = major.size == 1 || major.stride[operand] != 0;
    int64_t present = 1;
    for (const Dimension& dim : dims_) {
      if (is_major(dim) || (!over_shared && !dim.varies_u())) continue;
      if (dim.stride[operand] == 0)
        everywhere = false;
      else
        present *= dim.size;
    }
    if (everywhere) {
      g.sum = Sum::direct;
      return g;
    }
    g.count = present;
    g.sum = major.size > 1 && major.stride[operand] == 0 ? Sum::per_chunk : Sum::per_major;
    g.fold_every = kFirstLevel * g.count;

    // Accumulator rows in the order of the tensor itself, without the major dimension.
    std::vector<Dimension> compact = dims_;
    std::vector<Dimension> kept;
    int64_t stride = 1;
    for (size_t i = compact.size(); i-- > 0;) {
      Dimension& dim = compact[i];
      if (is_major(dims_[i]) || dim.stride[operand] == 0) continue;
      kept.insert(kept.begin(), dim);
      dim.stride[operand] = stride * width;
      stride *= dim.size;
    }
    std::vector<Dimension> minor, shared;
    for (size_t i = 0; i < compact.size(); ++i) {
      if (is_major(dims_[i])) continue;
      (dims_[i].varies_u() ? minor : shared).push_back(compact[i]);
    }
    const auto of = [operand](const Dimension& x) { return x.stride[operand]; };
    g.rows.by_minor = keep(table(minor, minor_size, of));
    g.rows.by_shared = keep(table(shared, shared_size, of));
    g.flush = keep(table(kept, g.count, of));
    return g;
  }

  Dimension major;
  int64_t minor_size = 1;
  int64_t shared_size = 1;
  int64_t total() const { return product(shape_); }

 private:
  bool is_major(const Dimension& dim) const {
    return has_major_ && &dim - dims_.data() == major_at_;
  }

  void merge() {
    std::vector<Dimension> merged;
    for (const Dimension& dim : dims_) {
      if (dim.size == 1) continue;
      bool joins = !merged.empty();
      for (int o = 0; joins && o < kOperands; ++o)
        joins = merged.back().stride[o] == dim.stride[o] * dim.size;
      if (joins) {
        const int64_t outer = merged.back().size;
        merged.back() = dim;
        merged.back().size = outer * dim.size;
      } else {
        merged.push_back(dim);
      }
    }
    dims_ = merged;
  }

  // The outermost dimension that is long enough, for the sake of locality; else the longest.
  void choose_major() {
    for (size_t i = 0; i < dims_.size(); ++i) {
      if (!dims_[i].varies_u()) continue;
      if (has_major_ && dims_[i].size <= major.size) continue;
      has_major_ = true;
      major_at_ = static_cast<int64_t>(i);
      major = dims_[i];
      if (major.size >= kEnoughMajor) break;
    }
    for (const Dimension& dim : dims_)
      if (!is_major(dim)) (dim.varies_u() ? minor_ : shared_).push_back(dim);
  }

  // The offset of every index of the flattened `dims`, the last one fastest.
  template <class Stride>
  static Shape table(const std::vector<Dimension>& dims, int64_t count, Stride stride) {
    Shape offsets(1, 0);
    offsets.reserve(static_cast<size_t>(count));
    for (const Dimension& dim : dims) {
      Shape next;
      next.reserve(static_cast<size_t>(count));
      for (const int64_t offset : offsets)
        for (int64_t i = 0; i < dim.size; ++i) next.push_back(offset + i * stride(dim));
      offsets.swap(next);
    }
    return offsets;
  }

  const int64_t* keep(Shape&& values) {
    kept_.push_back(std::make_unique<Shape>(std::move(values)));
    return kept_.back()->data();
  }

  Shape shape_;
  std::vector<Dimension> dims_, minor_, shared_;
  bool has_major_ = false;
  int64_t major_at_ = 0;
  Shape by_minor[kOperands], by_shared[kOperands];
  std::vector<std::unique_ptr<Shape>> kept_;
};

// ---- inputs ----

// Scale or shift. A table that serves many rows is converted once instead of for every row.
Tensor parameter(const Tensor& t, const Inputs& in) {
  const bool serves_many = product(leading(t)) * kManyRows <= product(in.out);
  if (t.scalar_type() == ScalarType::Float || !serves_many) return t;
  return torch::stable::to(t, ScalarType::Float);
}

Inputs check(const Tensor& x, const Tensor& scale, const Tensor& shift,
             const std::optional<Tensor>& residual) {
  Inputs in = check_inputs(x, scale, shift, residual);
  in.scale = parameter(in.scale, in);
  in.shift = parameter(in.shift, in);
  return in;
}

void add_inputs(Loops& loops, const Inputs& in) {
  loops.add(kX, in.x);
  loops.add(kScale, in.scale);
  loops.add(kShift, in.shift);
  if (in.residual) loops.add(kResidual, *in.residual);
  loops.add_contiguous(kStatistics, in.u, 1);
}

Problem problem(const Loops& loops, const Inputs& in, double eps) {
  Problem p;
  p.minor = loops.minor_size;
  p.shared = loops.shared_size;
  p.d = in.d;
  p.width = (in.d + kWidth - 1) / kWidth * kWidth;
  p.eps = static_cast<float>(eps);
  p.x = loops.rows(kX, in.x);
  p.scale = loops.rows(kScale, in.scale);
  p.shift = loops.rows(kShift, in.shift);
  if (in.residual) p.residual = loops.rows(kResidual, *in.residual);
  p.statistics = loops.rows(kStatistics, nullptr, Kind::float32);
  return p;
}

// Whether all rows but those of scale and shift have x's dtype.
bool uniform(const Problem& p, std::initializer_list<const Rows*> written) {
  const auto fits = [&](const Rows& r) { return r.kind == p.x.kind; };
  bool all = p.residual.data == nullptr || fits(p.residual);
  for (const Rows* rows : written) all = all && fits(*rows);
  return all;
}

bool one_per_major(const Problem& p, const Rows& table) {
  return std::all_of(table.by_minor, table.by_minor + p.minor, [](int64_t at) { return at == 0; });
}

// The order of the forward. Not strides decide but sizes, and zero strides of expanded tables.
Order order(const Problem& p) {
  if (p.shared > 1) return Order::flat;
  if (p.scale.step == 0 && p.shift.step == 0 && p.statistics.step == 1) return Order::along_major;
  if (p.minor >= kWidth && one_per_major(p, p.scale) && one_per_major(p, p.shift))
    return Order::along_minor;
  return Order::flat;
}

// The order of the backward. An expanded table has one row in memory, but its gradient has them
// all.
Order order(const Backward& b) {
  const Order wanted = order(b.problem);
  const auto any = [&](Sum sum) {
    return b.x.sum == sum || b.residual.sum == sum || b.scale.sum == sum || b.shift.sum == sum;
  };
  for (const Gradient* table : {&b.scale, &b.shift}) {
    if (table->sum == Sum::none) continue;
    if (table->sum == Sum::direct) return Order::flat;
    if (wanted == Order::along_minor && !one_per_major(b.problem, table->rows)) return Order::flat;
  }
  if (wanted == Order::along_major && any(Sum::per_major)) return Order::flat;
  return wanted;
}

class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : memory_(new float[static_cast<size_t>(std::max<int64_t>(floats, 1)) + 16]) {}
  float* get() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<float[]> memory_;
};

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- the ops ----

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& scale,
                                           const Tensor& shift,
                                           const std::optional<Tensor>& residual, double eps,
                                           int64_t out_kind, bool save_for_backward) {
  const Inputs in = check(x, scale, shift, residual);
  const ScalarType dtype = dtype_of(out_kind);
  Tensor out = torch::stable::new_empty(x, with_last(in.out, in.d), dtype);
  const Shape saved = save_for_backward ? in.u : Shape{0};
  Tensor mean = torch::stable::new_empty(x, saved, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, saved, ScalarType::Float);
  // With an empty batch of an operand that broadcasts against a real u, the statistics still exist.
  const bool empty = product(in.out) == 0;
  if (empty && (!save_for_backward || product(in.u) == 0)) return {out, mean, rstd};
  if (empty) {
    torch::stable::zero_(mean);
    torch::stable::zero_(rstd);
    return {out, mean, rstd};
  }

  Loops loops(in.out);
  add_inputs(loops, in);
  loops.add_contiguous(kOut, in.out, in.d);
  loops.finish();
  Problem p = problem(loops, in, eps);
  if (save_for_backward) {
    p.mean = mean.mutable_data_ptr<float>();
    p.rstd = rstd.mutable_data_ptr<float>();
  }
  const Rows rows = loops.result(kOut, out);
  p.uniform = uniform(p, {&rows});
  p.order = order(p);
  const auto kernel = MTLFAST_SELECT_ISA(conditional_layer_norm_forward);
  const int64_t grain = divide_up(kGrainElements, p.minor * p.shared * p.d);
  torch::stable::parallel_for(0, loops.major.size, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(forward_scratch(p));
    kernel(p, rows, begin, end, scratch.get());
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& x,
                                                    const Tensor& scale, const Tensor& shift,
                                                    const std::optional<Tensor>& residual,
                                                    const Tensor& mean, const Tensor& rstd,
                                                    bool need_x, bool need_scale, bool need_shift,
                                                    bool need_residual) {
  const Inputs in = check(x, scale, shift, residual);
  check_backward(in, grad_out, mean, rstd);
  const bool empty = product(in.out) == 0;
  const auto result = [&](bool needed, const Tensor& of) {
    if (!needed) return torch::stable::new_empty(of, {0});
    return empty ? torch::stable::new_zeros(of, shape_of(of))
                 : torch::stable::new_empty(of, shape_of(of));
  };
  need_residual = need_residual && residual.has_value();
  Tensor grad_x = result(need_x, x);
  Tensor grad_scale = result(need_scale, scale);
  Tensor grad_shift = result(need_shift, shift);
  Tensor grad_residual = result(need_residual, residual ? *residual : x);
  if (empty || !(need_x || need_scale || need_shift || need_residual))
    return {grad_x, grad_scale, grad_shift, grad_residual};

  const Tensor grad = unit_last_stride(grad_out);
  Loops loops(in.out);
  add_inputs(loops, in);
  loops.add(kOut, grad);
  if (need_x) loops.add_contiguous(kGradX, leading(x), in.d);
  if (need_scale) loops.add_contiguous(kGradScale, leading(scale), in.d);
  if (need_shift) loops.add_contiguous(kGradShift, leading(shift), in.d);
  if (need_residual) loops.add_contiguous(kGradResidual, leading(*residual), in.d);
  loops.finish();

  Backward b;
  b.problem = problem(loops, in, 0.0);
  b.problem.mean = const_cast<float*>(mean.const_data_ptr<float>());
  b.problem.rstd = const_cast<float*>(rstd.const_data_ptr<float>());
  b.grad_out = loops.rows(kOut, grad);
  b.problem.uniform = uniform(b.problem, {&b.grad_out});
  const int64_t width = b.problem.width;

  int64_t partials_per_chunk = 0, most_sums = 0;
  const auto gradient = [&](bool needed, Operand operand, Tensor& to, bool over_shared) {
    Gradient g;
    if (!needed) return g;
    g = loops.gradient(operand, to, over_shared, width);
    if (g.sum != Sum::per_chunk)
      b.problem.uniform = b.problem.uniform && uniform(b.problem, {&g.rows});
    if (g.sum == Sum::per_chunk) {
      g.partial = partials_per_chunk;
      partials_per_chunk += g.count * width;
      most_sums = std::max(most_sums, g.count);
    }
    return g;
  };
  b.x = gradient(need_x, kGradX, grad_x, false);
  b.scale = gradient(need_scale, kGradScale, grad_scale, true);
  b.shift = gradient(need_shift, kGradShift, grad_shift, true);
  b.residual = gradient(need_residual, kGradResidual, grad_residual, false);

  const int64_t major = loops.major.size, rows_each = b.problem.minor * b.problem.shared;
  const int64_t least_rows = std::clamp(kChunkElements / in.d, kFewestRows, kEnoughRows);
  const int64_t chunk_rows = std::clamp(product(in.out) / kEnoughChunks, least_rows, kMostRows);
  b.problem.order = order(b);
  // Of narrow rows there are few bytes per instruction, and along the major index rows follow each
  // other for long enough: the hardware's own prefetching suffices.
  b.grad_out.far =
      b.grad_out.far && b.problem.order != Order::along_major && row_bytes(grad) >= 2 * kCacheLine;
  const int64_t chunk_size =
      std::max({divide_up(chunk_rows, rows_each), divide_up(major, kMaxChunks),
                divide_up(kRowsPerPartial * most_sums, rows_each)});
  const int64_t chunks = divide_up(major, chunk_size);
  const Scratch partials(chunks * partials_per_chunk);
  const auto kernel = MTLFAST_SELECT_ISA(conditional_layer_norm_backward);
  const int64_t grain = divide_up(kGrainElements, chunk_size * rows_each * in.d);
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t first, int64_t last) {
    const Scratch scratch(backward_scratch(b));
    for (int64_t chunk = first; chunk < last; ++chunk)
      kernel(b, chunk * chunk_size, std::min(major, (chunk + 1) * chunk_size),
             partials.get() + chunk * partials_per_chunk, scratch.get());
  });

  const auto add_partials = MTLFAST_SELECT_ISA(conditional_layer_norm_add_partials);
  for (const Gradient* g : {&b.x, &b.scale, &b.shift, &b.residual}) {
    if (g->sum != Sum::per_chunk) continue;
    const int64_t rows_at_once = divide_up(kGrainElements, chunks * width);
    torch::stable::parallel_for(0, g->count, rows_at_once, [&](int64_t begin, int64_t end) {
      add_partials(partials.get() + g->partial, chunks, partials_per_chunk, width, in.d,
                   g->rows.kind, begin, end, g->rows.data);
    });
  }
  return {grad_x, grad_scale, grad_shift, grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlfast, CPU, m) {
  m.impl("conditional_layer_norm_forward", TORCH_BOX(&forward));
  m.impl("conditional_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace mtlfast
