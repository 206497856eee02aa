// The torch side of the multi-hash ops on CUDA: the indices and the forward. Nothing is read back
// to the host; ids are not looked at, and any id names a codeword that exists. Gradients are
// Triton's (mtlfast/ops/multi_hash_lookup.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../common/cuda.h"
#include "crosses.h"
#include "cuda_kernel.h"

namespace mtlfast {
namespace {

using namespace multi_hash_lookup;
using mtlfast::cuda::Stream;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using KeyFields = std::optional<std::vector<int64_t>>;
using MaybeTensor = std::optional<Tensor>;
namespace kernel = multi_hash_lookup::cuda;

constexpr int64_t kMaxWidth = 1024;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("mtlfast: " + message);
}

std::string text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return s + "]";
}

void require_shape(const char* name, const Tensor& t, const std::vector<int64_t>& shape) {
  const std::vector<int64_t> found(t.sizes().begin(), t.sizes().end());
  require(found == shape,
          std::string(name) + ": expected shape " + text(shape) + ", found shape " + text(found));
}

Kind kind_of(const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type == ScalarType::Float) return Kind::float32;
  if (type == ScalarType::BFloat16) return Kind::bfloat16;
  require(type == ScalarType::Half, std::string(name) + ": expected float32, bfloat16 or float16");
  return Kind::float16;
}

Tensor unit_last_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t);
}

// Whether rows that start at `data` and at multiples of the strides may be read four by four.
bool takes_vectors(const void* data, Kind kind, std::initializer_list<int64_t> strides) {
  const uintptr_t bytes = kind == Kind::float32 ? 16 : 8;
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 &&
         std::all_of(strides.begin(), strides.end(), [](int64_t step) { return step % 4 == 0; });
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

kernel::Hashed hashed_of(const Tensor& ids, int64_t num_codewords, int64_t num_hashes,
                         int64_t order, const KeyFields& key_fields, bool siphash,
                         int64_t first_hash) {
  require(!siphash, "hash: expected 'mix64' on CUDA, found 'siphash'");
  require(ids.scalar_type() == ScalarType::Long, "ids: expected dtype int64");
  require(ids.dim() == 2, "ids: expected two dimensions");
  require(ids.size(1) <= kMostFields, "ids: expected at most " + std::to_string(kMostFields) +
                                          " fields on CUDA, found " + std::to_string(ids.size(1)));
  require(num_codewords >= 1 && num_codewords < int64_t{1} << 32,
          "num_codewords: expected from 1 to 2**32 - 1 codewords, found " +
              std::to_string(num_codewords));
  require(num_hashes >= 1 && first_hash >= 0,
          "num_hashes, first_hash: expected at least 1 and at least 0");
  kernel::Hashed h;
  h.crosses = make_crosses(ids.size(1), order, key_fields).size();  // checks the fields
  h.fields.order = static_cast<int>(order);
  h.fields.count = static_cast<int>(ids.size(1));
  h.fields.all = !key_fields.has_value();
  for (const int64_t key : key_fields.value_or(std::vector<int64_t>{}))
    h.fields.keys[key / 32] |= 1u << (key % 32);
  for (int word = 0; word < kMostFields / 32; ++word) {
    h.fields.below[word] = static_cast<int16_t>(h.fields.num_keys);
    h.fields.num_keys += __builtin_popcount(h.fields.keys[word]);
  }
  h.ids = ids.const_data_ptr<int64_t>();
  h.stride_sample = ids.stride(0);
  h.stride_field = ids.stride(1);
  h.num_hashes = num_hashes;
  h.first_hash = first_hash;
  h.num_codewords = static_cast<uint64_t>(num_codewords);
  return h;
}

// ---- the ops ----

Tensor indices(const Tensor& ids, int64_t num_codewords, int64_t num_hashes, int64_t order,
               KeyFields key_fields, bool siphash, int64_t first_hash) {
  kernel::Indices p;
  p.hashed = hashed_of(ids, num_codewords, num_hashes, order, key_fields, siphash, first_hash);
  const Stream stream(ids);
  Tensor out = torch::stable::new_empty(ids, {ids.size(0), p.hashed.crosses, num_hashes});
  p.rows = ids.size(0) * p.hashed.crosses;
  p.out = out.mutable_data_ptr<int64_t>();
  stream.launch(kernel::indices_kernel, divide_up(p.rows, kernel::kThreads), kernel::kThreads, p);
  return out;
}

struct Launch {
  const Stream& stream;
  const kernel::Forward& f;
  bool pool;

  template <int LANES, int VECS>
  void run() const {
    stream.launch(pool ? kernel::pooled_kernel<LANES, VECS> : kernel::crosses_kernel<LANES, VECS>,
                  divide_up(f.rows, kernel::kThreads / LANES), kernel::kThreads, f);
  }

  // With the narrowest group that holds a codeword.
  void operator()() const {
    if (f.width <= 16) return run<4, 1>();
    if (f.width <= 32) return run<8, 1>();
    if (f.width <= 64) return run<16, 1>();
    if (f.width <= 128) return run<32, 1>();
    if (f.width <= 256) return run<32, 2>();
    run<32, 8>();
  }
};

Tensor forward(const Tensor& ids, const Tensor& codebook, const MaybeTensor& pair_weights,
               const MaybeTensor& codeword_weights, int64_t num_hashes, int64_t order,
               KeyFields key_fields, bool siphash, int64_t first_hash, bool pool) {
  require(codebook.dim() == 3 && codebook.size(2) >= 1,
          "codebook: expected three dimensions, codewords of at least one column");
  require(codebook.size(0) == 1 || codebook.size(0) == num_hashes,
          "codebook: expected 1 book or as many as hash functions, found " +
              std::to_string(codebook.size(0)));
  const int64_t width = codebook.size(2), batch = ids.size(0);
  require(width <= kMaxWidth, "codebook: expected at most " + std::to_string(kMaxWidth) +
                                  " columns on CUDA, found " + std::to_string(width));
  kernel::Forward f;
  f.hashed = hashed_of(ids, codebook.size(1), num_hashes, order, key_fields, siphash, first_hash);
  const int64_t pairs = f.hashed.crosses;
  const int64_t slots = pool ? f.hashed.fields.count : pairs;
  f.kind = kind_of("codebook", codebook);
  const Tensor table = unit_last_stride(codebook);
  f.codebook = table.const_data_ptr();
  f.book_stride = table.size(0) > 1 ? table.stride(0) : 0;
  f.row_stride = table.stride(1);
  f.width = static_cast<int>(width);
  f.vectors = takes_vectors(f.codebook, f.kind, {width, f.book_stride, f.row_stride});
  if (pair_weights.has_value()) {
    const bool per_member = pool && pair_weights->dim() == 3;
    if (per_member)
      require_shape("pair_weights", *pair_weights, {batch, pairs, order});
    else
      require_shape("pair_weights", *pair_weights, {batch, pairs});
    f.pair_weights = {pair_weights->const_data_ptr(), kind_of("pair_weights", *pair_weights),
                      pair_weights->stride(0), pair_weights->stride(1),
                      per_member ? pair_weights->stride(2) : 0};
  }
  MaybeTensor scales;
  if (codeword_weights.has_value()) {
    require_shape("codeword_weights", *codeword_weights, {batch, pairs, num_hashes * width});
    scales = unit_last_stride(*codeword_weights);
    f.codeword_weights = {scales->const_data_ptr(), kind_of("codeword_weights", *scales),
                          scales->stride(0), scales->stride(1), 0};
    const kernel::Weights& w = f.codeword_weights;
    f.vectors = f.vectors && takes_vectors(w.data, w.kind, {w.sample, w.cross});
  }
  const Stream stream(ids);
  Tensor out =
      torch::stable::new_empty(codebook, {batch, slots, num_hashes * width}, ScalarType::Float);
  f.rows = batch * slots * num_hashes;
  f.out = out.mutable_data_ptr<float>();
  Launch{stream, f, pool}();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(MTLFAST_CUDA_LIBRARY, MTLFAST_CUDA_KEY, m) {
  m.impl("multi_hash_indices", TORCH_BOX(&indices));
  m.impl("multi_hash_lookup_forward", TORCH_BOX(&forward));
}

}  // namespace mtlfast
