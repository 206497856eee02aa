// conditional_interest on the CPU, compiled once per instruction set (-DMTLFAST_ISA=...).
#include "backward.h"

namespace mtlfast {
namespace MTLFAST_ISA {
namespace {

template <int D>
struct Stride {
  static constexpr int value = D;
};

// Runs `use` with the smallest compile-time row stride that holds p.d columns.
template <typename Use>
auto with_stride(const Problem& p, Use use) {
  if (p.d <= 16) return use(Stride<16>{});
  if (p.d <= 32) return use(Stride<32>{});
  if (p.d <= 64) return use(Stride<64>{});
  if (p.d <= 128) return use(Stride<128>{});
  return use(Stride<256>{});
}

template <int D>
Packed<D> unpacked_view(const Problem& p, const float* packed) {
  Packed<D> view;
  view.layout(const_cast<float*>(packed), p);
  return view;
}

int64_t packed_size(const Problem& p) {
  return with_stride(p, [&](auto stride) {
    Packed<decltype(stride)::value> packed;
    return packed.layout(nullptr, p);
  });
}

void pack(const Problem& p, bool for_backward, float* to) {
  with_stride(p, [&](auto stride) {
    Packed<decltype(stride)::value> packed;
    packed.layout(to, p);
    packed.fill(p, for_backward);
  });
}

int64_t query_size(const Problem& p) {
  return with_stride(
      p, [&](auto stride) { return p.candidates * p.heads * int64_t{decltype(stride)::value}; });
}

void queries(const Problem& p, const float* packed, int64_t begin, int64_t end, float* to,
             float* scratch) {
  with_stride(p, [&](auto stride) {
    constexpr int D = decltype(stride)::value;
    const Packed<D> view = unpacked_view<D>(p, packed);
    const Shape s(p);
    float* item = scratch;
    float* q = scratch + int64_t{kTailRows} * D;
    for (int64_t at = begin; at < end; at += kTailRows) {
      const int rows = end - at < kTailRows ? static_cast<int>(end - at) : kTailRows;
      load_items<D>(p, at, rows, s.width, item);
      absorbed_queries<D>(view, s, item, rows, q, to + at * s.heads * D);
    }
  });
}

int64_t forward_scratch(const Problem& p) {
  return with_stride(p, [&](auto stride) {
    constexpr int D = decltype(stride)::value;
    ForwardScratch<D> scratch;
    const int64_t size = scratch.layout(nullptr, p);
    const int64_t for_queries = int64_t{2} * kTailRows * D;
    return size > for_queries ? size : for_queries;
  });
}

void forward(const Problem& p, const float* packed, const float* queries, int behavior,
             int64_t user_begin, int64_t user_end, int64_t first, int64_t last,
             const ForwardOutputs& out, float* memory) {
  with_stride(p, [&](auto stride) {
    constexpr int D = decltype(stride)::value;
    ForwardScratch<D> scratch;
    scratch.layout(memory, p);
    forward_range<D>(p, unpacked_view<D>(p, packed), queries, behavior, user_begin, user_end, first,
                     last, out, scratch);
  });
}

GradLayout grad_layout(const Problem& p) {
  return with_stride(p, [&](auto stride) { return gradient_layout<decltype(stride)::value>(p); });
}

int64_t backward_scratch(const Problem& p, int64_t batch_candidates, int64_t range_candidates) {
  return with_stride(p, [&](auto stride) {
    BackwardScratch<decltype(stride)::value> scratch;
    return scratch.layout(nullptr, p, batch_candidates, range_candidates);
  });
}

void backward(const Problem& p, const float* packed, const float* queries, int64_t user_begin,
              int64_t user_end, int64_t first, int64_t last, int64_t batch_candidates,
              int64_t range_candidates, const BackwardIO& io, float* gradients, float* memory) {
  with_stride(p, [&](auto stride) {
    constexpr int D = decltype(stride)::value;
    BackwardScratch<D> scratch;
    scratch.layout(memory, p, batch_candidates, range_candidates);
    backward_range<D>(p, unpacked_view<D>(p, packed), queries, user_begin, user_end, first, last,
                      io, Gradients(gradient_layout<D>(p), gradients), scratch);
  });
}

}  // namespace

const conditional_interest::Kernel& conditional_interest_kernel() {
  static const conditional_interest::Kernel table{
      packed_size, pack,        query_size,       queries, forward_scratch,
      forward,     grad_layout, backward_scratch, backward};
  return table;
}

}  // namespace MTLFAST_ISA
}  // namespace mtlfast
