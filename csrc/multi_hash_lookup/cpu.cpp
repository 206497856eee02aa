// The torch side of the multi-hash ops: arguments, the split of the work over threads, and the
// codebook's gradient from sorted entries.
//
// Samples are independent; the gradient of a row is summed in the order of the samples, in parts
// that depend on the data alone. Results have the same bits for any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/hash.h"
#include "../common/huge_pages.h"
#include "../common/isa.h"
#include "../common/work.h"
#include "crosses.h"
#include "problem.h"
#include "sorted_entries.h"

namespace mtlfast {

MTLFAST_FOR_EACH_ISA(MTLFAST_DECLARE_MULTI_HASH_LOOKUP)

namespace {

using namespace multi_hash_lookup;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Fields = std::optional<std::vector<int64_t>>;
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kGrainBlocks = 4;
constexpr int64_t kGrainParts = 8;
constexpr int64_t kNearCache = 512 << 10;  // of a codebook that needs no prefetching

void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("mtlfast: " + message);
}

std::string shape_text(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i == 0 ? "" : ", ") + std::to_string(t.size(i));
  return s + "]";
}

bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  return std::equal(t.sizes().begin(), t.sizes().end(), shape.begin(), shape.end());
}

void require_shape(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  std::string wanted = "[";
  for (const int64_t size : shape)
    wanted += (wanted.size() == 1 ? "" : ", ") + std::to_string(size);
  require(has_shape(t, shape),
          std::string(name) + ": expected shape " + wanted + "], found shape " + shape_text(t));
}

Kind kind_of(const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type == ScalarType::Float) return Kind::float32;
  if (type == ScalarType::BFloat16) return Kind::bfloat16;
  require(type == ScalarType::Half, std::string(name) + ": expected float32, bfloat16 or float16");
  return Kind::float16;
}

Tensor float32_contiguous(const char* name, const Tensor& t) {
  kind_of(name, t);
  const Tensor dense = torch::stable::contiguous(t);
  return t.scalar_type() == ScalarType::Float ? dense : torch::stable::to(dense, ScalarType::Float);
}

const auto kParallel = [](int64_t n, int64_t grain, const auto& body) {
  for_each_range(n, grain, body);
};

// ---- arguments ----

// The crosses and everything that names indices.
struct HashArguments {
  Crosses crosses;
  Hashing hashing;

  HashArguments(const Tensor& ids, int64_t num_codewords, int64_t num_hashes, int64_t order,
                const Fields& key_fields, bool siphash, int64_t first_hash)
      : crosses(make_crosses(check_ids(ids), order, key_fields)) {
    require(num_codewords >= 1 && num_codewords < int64_t{1} << 32,
            "num_codewords: expected from 1 to 2**32 - 1 codewords, found " +
                std::to_string(num_codewords));
    require(num_hashes >= 1 && first_hash >= 0 && num_hashes < 1 << 20 && first_hash < 1 << 30,
            "num_hashes, first_hash: expected at least 1 and at least 0");
    require(!siphash || first_hash + num_hashes <= hash::kSipHashFunctions,
            "num_hashes: expected at most 11 hash functions with siphash, found " +
                std::to_string(first_hash + num_hashes));
    Hashing& h = hashing;
    h.order = order;
    h.num_fields = crosses.num_fields;
    h.num_crosses = crosses.size();
    h.num_groups = crosses.groups();
    h.prefix = crosses.prefix.data();
    h.begin = crosses.begin.data();
    h.last = crosses.last.data();
    h.ids = static_cast<const int64_t*>(ids.const_data_ptr());
    h.batch = ids.size(0);
    h.stride_sample = ids.stride(0);
    h.stride_field = ids.stride(1);
    h.num_hashes = num_hashes;
    h.first_hash = first_hash;
    h.num_codewords = static_cast<uint64_t>(num_codewords);
    h.siphash = siphash;
    check_values(h);
  }
  HashArguments(const HashArguments&) = delete;

  // The text is made only where it is needed: making it costs more than the lookup.
  static void check_values(const Hashing& h) {
    int64_t signs = 0;
    for (int64_t b = 0; b < h.batch; ++b)
      for (int64_t f = 0; f < h.num_fields; ++f)
        signs |= h.ids[b * h.stride_sample + f * h.stride_field];
    if (signs >= 0) return;
    for (int64_t b = 0; b < h.batch; ++b)
      for (int64_t f = 0; f < h.num_fields; ++f) {
        const int64_t id = h.ids[b * h.stride_sample + f * h.stride_field];
        if (id < 0)
          require(false, "ids: expected no negative id, found ids[" + std::to_string(b) + ", " +
                             std::to_string(f) + "] = " + std::to_string(id));
      }
  }

  static int64_t check_ids(const Tensor& ids) {
    require(ids.scalar_type() == ScalarType::Long, "ids: expected dtype int64");
    require(ids.dim() == 2, "ids: expected shape [B, F], found shape " + shape_text(ids));
    return ids.size(1);
  }
};

// The arguments that forward and backward share.
struct LookupArguments {
  HashArguments hash;
  Lookup lookup;

  LookupArguments(const Tensor& ids, const Tensor& codebook, const MaybeTensor& pair_weights,
                  const MaybeTensor& codeword_weights, int64_t num_hashes, int64_t order,
                  const Fields& key_fields, bool siphash, int64_t first_hash, bool pool)
      : hash(ids, codewords_of(codebook), num_hashes, order, key_fields, siphash, first_hash) {
    Lookup& l = lookup;
    l.hashing = hash.hashing;
    const int64_t batch = l.hashing.batch, pairs = l.hashing.num_crosses;
    require(l.hashing.num_fields * num_hashes * codebook.size(2) < int64_t{1} << 31,
            "codebook: expected a smaller output for each sample");
    require(codebook.size(0) == 1 || codebook.size(0) == num_hashes,
            "codebook: expected shape [K = 1 or " + std::to_string(num_hashes) +
                ", n, c], found shape " + shape_text(codebook));
    l.kind = kind_of("codebook", codebook);
    l.width = codebook.size(2);
    l.pool = pool;
    for (const int32_t f : hash.crosses.last)
      last_places_.push_back(f * static_cast<int32_t>(l.columns()));
    l.last_place = last_places_.data();
    codebook_ =
        codebook.stride(2) == 1 || l.width == 1 ? codebook : torch::stable::contiguous(codebook);
    l.codebook = codebook_->const_data_ptr();
    l.row_stride = codebook_->stride(1);
    l.private_books = codebook.size(0) > 1;
    l.book_stride = l.private_books ? codebook_->stride(0) : 0;
    const int64_t bytes = codebook.numel() * static_cast<int64_t>(codebook.element_size());
    l.fetch_ahead = bytes > kNearCache;
    if (codebook_->is_contiguous()) move_to_huge_pages(l.codebook, bytes);
    if (pair_weights.has_value()) {
      l.per_member = pool && pair_weights->dim() == 3;
      if (l.per_member)
        require_shape("pair_weights", *pair_weights, {batch, pairs, order});
      else
        require_shape("pair_weights", *pair_weights, {batch, pairs});
      pair_weights_ = float32_contiguous("pair_weights", *pair_weights);
      l.pair_weights = static_cast<const float*>(pair_weights_->const_data_ptr());
      l.pair_stride = pairs * (l.per_member ? order : 1);
    } else {
      ones_.assign(static_cast<size_t>(pairs), 1.0f);
      l.pair_weights = ones_.data();
    }
    if (codeword_weights.has_value()) {
      require_shape("codeword_weights", *codeword_weights, {batch, pairs, l.columns()});
      codeword_weights_ = float32_contiguous("codeword_weights", *codeword_weights);
      l.codeword_weights = static_cast<const float*>(codeword_weights_->const_data_ptr());
    }
  }

 private:
  static int64_t codewords_of(const Tensor& codebook) {
    require(codebook.dim() == 3 && codebook.size(2) >= 1,
            "codebook: expected shape [K, n, c], found shape " + shape_text(codebook));
    return codebook.size(1);
  }

  MaybeTensor codebook_, pair_weights_, codeword_weights_;  // keep alive what `lookup` points to
  std::vector<float> ones_;
  std::vector<int32_t> last_places_;
};

int64_t blocks_of(const Hashing& h) {
  return (h.batch + kBlock - 1) / kBlock;
}

// ---- indices and forward ----

Tensor indices(const Tensor& ids, int64_t num_codewords, int64_t num_hashes, int64_t order,
               Fields key_fields, bool siphash, int64_t first_hash) {
  const HashArguments arguments(ids, num_codewords, num_hashes, order, key_fields, siphash,
                                first_hash);
  const Hashing& h = arguments.hashing;
  Tensor out = torch::stable::new_empty(ids, {h.batch, h.num_crosses, num_hashes});
  auto* const to = static_cast<int64_t*>(out.mutable_data_ptr());
  const auto kernel = MTLFAST_SELECT_ISA(multi_hash_block);
  for_each_range(blocks_of(h), kGrainBlocks, [&](int64_t begin, int64_t end) {
    const BorrowedScratch scratch(index_bytes(h) + hash_scratch(h));
    char* const found = reinterpret_cast<char*>(scratch.get());
    const auto* const index = reinterpret_cast<const uint32_t*>(found);
    for (int64_t block = begin; block < end; ++block) {
      kernel(h, block, reinterpret_cast<uint32_t*>(found), found + index_bytes(h));
      for (int64_t lane = 0; lane < std::min(kBlock, h.batch - block * kBlock); ++lane) {
        int64_t* const row = to + (block * kBlock + lane) * h.elements();
        for (int64_t s = 0; s < num_hashes; ++s)
          for (int64_t p = 0; p < h.num_crosses; ++p)
            row[p * num_hashes + s] = index[(s * h.num_crosses + p) * kBlock + lane];
      }
    }
  });
  return out;
}

Tensor forward(const Tensor& ids, const Tensor& codebook, const MaybeTensor& pair_weights,
               const MaybeTensor& codeword_weights, int64_t num_hashes, int64_t order,
               Fields key_fields, bool siphash, int64_t first_hash, bool pool) {
  const LookupArguments arguments(ids, codebook, pair_weights, codeword_weights, num_hashes, order,
                                  key_fields, siphash, first_hash, pool);
  const Lookup& l = arguments.lookup;
  Tensor out = torch::stable::new_empty(codebook, {l.hashing.batch, l.slots(), l.columns()},
                                        ScalarType::Float);
  auto* const to = static_cast<float*>(out.mutable_data_ptr());
  const auto kernel = MTLFAST_SELECT_ISA(multi_hash_forward);
  for_each_range(blocks_of(l.hashing), kGrainBlocks, [&](int64_t begin, int64_t end) {
    const BorrowedScratch scratch(forward_scratch(l));
    kernel(l, begin, end, to, scratch.get());
  });
  return out;
}

// ---- backward ----

// What every kind of backward starts with.
struct BackwardArguments : LookupArguments {
  Tensor grad;
  const float* grad_data;

  template <class... Args>
  explicit BackwardArguments(const Tensor& grad_out, const Args&... args)
      : LookupArguments(args...), grad(float32_contiguous("grad_out", grad_out)) {
    require_shape("grad_out", grad_out, {lookup.hashing.batch, lookup.slots(), lookup.columns()});
    grad_data = static_cast<const float*>(grad.const_data_ptr());
  }
};

// The gradients of the weights; size 0 where not needed.
class WeightGradients {
 public:
  WeightGradients(const BackwardArguments& arguments, const MaybeTensor& pair_weights,
                  bool need_pair, const MaybeTensor& codeword_weights, bool need_codeword)
      : arguments_(arguments),
        pair_(arguments.grad, pair_weights, need_pair),
        codeword_(arguments.grad, codeword_weights, need_codeword) {}

  // What can also be had from the entries of the codebook's gradient: [B, P].
  float* from_entries() const {
    const Lookup& l = arguments_.lookup;
    const bool plain = l.members() == 2 && !l.per_member && l.codeword_weights == nullptr;
    return plain ? pair_.data : nullptr;
  }
  void compute() const {
    if (pair_.data == nullptr && codeword_.data == nullptr) return;
    const Lookup& l = arguments_.lookup;
    const auto kernel = MTLFAST_SELECT_ISA(multi_hash_weight_gradients);
    for_each_range(blocks_of(l.hashing), kGrainBlocks, [&](int64_t begin, int64_t end) {
      const BorrowedScratch scratch(weight_gradients_scratch(l));
      kernel(l, arguments_.grad_data, begin, end, pair_.data, codeword_.data, scratch.get());
    });
  }
  // In the weights' own dtypes.
  Tensor pair() const { return pair_.get(); }
  Tensor codeword() const { return codeword_.get(); }

 private:
  struct Gradient {
    ScalarType type = ScalarType::Float;
    Tensor tensor;
    float* data = nullptr;

    Gradient(const Tensor& like, const MaybeTensor& of, bool needed)
        : tensor(torch::stable::new_empty(like, shape(of, needed), ScalarType::Float)) {
      if (!needed || !of.has_value()) return;
      type = of->scalar_type();
      data = static_cast<float*>(tensor.mutable_data_ptr());
    }
    Tensor get() const {
      return type == ScalarType::Float ? tensor : torch::stable::to(tensor, type);
    }
    static std::vector<int64_t> shape(const MaybeTensor& of, bool needed) {
      if (!needed || !of.has_value()) return {0};
      return {of->sizes().begin(), of->sizes().end()};
    }
  };

  const BackwardArguments& arguments_;
  Gradient pair_, codeword_;
};

// The gradient of the codebook from its sorted entries. The weights' gradients are made too: before
// anything is updated, or from the entries, whose codewords are near at hand while they are summed.
class CodebookGradient {
 public:
  CodebookGradient(const BackwardArguments& arguments, Finish finish,
                   const WeightGradients& weights)
      : sorted_((check(arguments.lookup), arguments.lookup), finish == Finish::dense,
                HashBlock(arguments.lookup.hashing), kParallel) {
    const Lookup& l = arguments.lookup;
    reduction.lookup = l;
    reduction.grad = arguments.grad_data;
    reduction.element_bits = sorted_.element_bits();
    reduction.finish = finish;
    make_elements(l);
    // Where few entries are in tables they are few altogether, or the codebook is: near at hand
    // without this.
    const bool one_behind_other =
        !l.private_books ||
        l.book_stride == l.row_stride * static_cast<int64_t>(l.hashing.num_codewords);
    if (one_behind_other && l.fetch_ahead && 2 * sorted_.in_tables() > sorted_.size())
      pair_weights_ = weights.from_entries();
    if (pair_weights_ == nullptr) weights.compute();
  }

  // Where the rows of every part go, for Finish::compact. Returns their number.
  int64_t count_rows() {
    std::vector<Part>& parts = sorted_.parts();
    for_each_range(static_cast<int64_t>(parts.size()), kGrainParts,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       Part& part = parts[static_cast<size_t>(i)];
                       part.position = SortedEntries::count_rows(part);
                     }
                   });
    int64_t total = 0;
    for (Part& part : parts) {
      const int64_t count = part.position;
      part.position = total;
      total += count;
    }
    return total;
  }

  void run() {
    std::vector<Part>& parts = sorted_.parts();
    const int64_t floats = round_up_floats(reduction.lookup.width);
    const bool any_open = std::any_of(parts.begin(), parts.end(),
                                      [](const Part& p) { return p.open_head || p.open_tail; });
    const auto open =
        uninitialized<float>(any_open ? 2 * floats * static_cast<int64_t>(parts.size()) : 0);
    for (size_t i = 0; any_open && i < parts.size(); ++i) {
      parts[i].head = open.get() + 2 * floats * static_cast<int64_t>(i);
      parts[i].tail = parts[i].head + floats;
    }
    if (pair_weights_ != nullptr) want_dots();
    const auto kernel = MTLFAST_SELECT_ISA(multi_hash_reduce);
    for_each_range(static_cast<int64_t>(parts.size()), kGrainParts,
                   [&](int64_t begin, int64_t end) {
                     const BorrowedScratch scratch(reduce_scratch(reduction.lookup));
                     for (int64_t i = begin; i < end; ++i)
                       kernel(reduction, parts[static_cast<size_t>(i)], scratch.get());
                   });
    if (any_open) close_rows();
    if (pair_weights_ != nullptr) sum_dots();
  }

  Reduction reduction;

 private:
  struct HashBlock {
    const Hashing& h;
    explicit HashBlock(const Hashing& hashing) : h(hashing) {}
    void operator()(int64_t block, uint32_t* to) const {
      thread_local std::vector<uint64_t> scratch;
      scratch.resize(static_cast<size_t>(hash_scratch(h) / 8 + 1));
      MTLFAST_SELECT_ISA(multi_hash_block)(h, block, to, scratch.data());
    }
  };

  static void check(const Lookup& l) {
    const int bits = bits_of(static_cast<uint64_t>(l.hashing.elements() - 1));
    require(bits < 32 && l.hashing.batch <= int64_t{1} << (32 - bits),
            "ids: expected at most " + std::to_string(int64_t{1} << (32 - std::min(bits, 32))) +
                " samples in one backward with so many crosses, found " +
                std::to_string(l.hashing.batch));
    require(l.slots() * l.columns() < int64_t{1} << 31,
            "codebook: expected a smaller output for each sample");
  }

  void make_elements(const Lookup& l) {
    const Hashing& h = l.hashing;
    const int64_t order = h.order;
    elements_.reserve(static_cast<size_t>(h.elements()));
    for (int64_t s = 0; s < h.num_hashes; ++s)
      for (int64_t g = 0; g < h.num_groups; ++g)
        for (int32_t p = h.begin[g]; p < h.begin[g + 1]; ++p) {
          Element element{{0, 0, 0}, p};
          for (int64_t k = 0; k < l.members(); ++k) {
            const int32_t slot = !l.pool          ? p
                                 : k == order - 1 ? h.last[p]
                                                  : h.prefix[g * (order - 1) + k];
            element.place[k] = static_cast<int32_t>(slot * l.columns() + s * l.width);
          }
          elements_.push_back(element);
          if (l.codeword_weights != nullptr)
            factor_places_.push_back(p * l.columns() + s * l.width);
        }
    elements_.resize(size_t{1} << reduction.element_bits, Element{});
    reduction.elements = elements_.data();
    if (l.codeword_weights == nullptr) return;
    factor_places_.resize(elements_.size(), 0);
    reduction.factor_places = factor_places_.data();
  }

  void want_dots() {
    reduction.wants_dots = true;
    const bool all_in_tables = sorted_.in_tables() == sorted_.size();
    dots_ = uninitialized<float>(sorted_.size());
    other_dots_ = uninitialized<float>(all_in_tables ? 0 : sorted_.size());
    for (Part& part : sorted_.parts())
      part.dots = part.table_rows != 0 ? dots_.get() + sorted_.place(part) : other_dots_.get();
  }
  // Over the hash functions, with the places the entries had before they came into buckets.
  void sum_dots() const {
    const Hashing& h = reduction.lookup.hashing;
    const float *const dots = dots_.get(), *const other_dots = other_dots_.get();
    sorted_.each_place(kParallel, [&](int64_t place, int64_t sample, int64_t element) {
      // Within a bucket one behind the other, but no cache notices so many at once.
      __builtin_prefetch(dots + place + kFloats, 0, 2);
      const float dot = place >= 0 ? dots[place] : other_dots[sample * h.elements() + element];
      float& sum = pair_weights_[sample * h.num_crosses + element % h.num_crosses];
      sum = element < h.num_crosses ? dot : sum + dot;
    });
  }

  // Rows whose entries lie in several parts: their sums, in the order of the parts.
  void close_rows() {
    const std::vector<Part>& parts = sorted_.parts();
    const auto finish = MTLFAST_SELECT_ISA(multi_hash_finish_row);
    const int64_t floats = round_up_floats(reduction.lookup.width);
    std::vector<float> sum(static_cast<size_t>(floats));
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].open_tail || SortedEntries::only_continues(parts[i])) continue;
      std::copy(parts[i].tail, parts[i].tail + floats, sum.begin());
      for (size_t k = i + 1;; ++k) {
        for (int64_t c = 0; c < reduction.lookup.width; ++c)
          sum[static_cast<size_t>(c)] += parts[k].head[c];
        if (!parts[k].open_tail || !SortedEntries::only_continues(parts[k])) break;
      }
      const Part& part = parts[i];
      const uint64_t low = SortedEntries::low(part.entries[part.count - 1]);
      const int64_t position = part.position + SortedEntries::count_rows(part) - 1;
      finish(reduction, part.first_row + static_cast<int64_t>(low), position, sum.data());
    }
  }

  SortedEntries sorted_;
  std::vector<Element> elements_;
  std::vector<int64_t> factor_places_;
  float* pair_weights_ = nullptr;               // the gradient, where it is made from the entries
  std::unique_ptr<float[]> dots_, other_dots_;  // of parts with a table, and of the others
};

bool aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 64 == 0;
}

// Whether `out` would sweep the caches, and can be written past them.
bool streams(const Reduction& r, const Tensor& out) {
  return r.out_kind == Kind::float32 && r.out_stride % kFloats == 0 && aligned(r.out) &&
         out.numel() * 4 >= kStreamedBytes;
}

Tensor dense_gradient(const BackwardArguments& arguments, const Tensor& codebook,
                      const WeightGradients& weights) {
  const std::vector<int64_t> shape(codebook.sizes().begin(), codebook.sizes().end());
  if (arguments.lookup.hashing.batch == 0) return torch::stable::new_zeros(codebook, shape);
  Tensor out = torch::stable::new_empty(codebook, shape);
  CodebookGradient gradient(arguments, Finish::dense, weights);
  Reduction& r = gradient.reduction;
  r.out = out.mutable_data_ptr();
  r.out_kind = arguments.lookup.kind;
  r.out_stride = arguments.lookup.width;
  r.stream = streams(r, out);
  gradient.run();
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& ids,
                                            const Tensor& codebook, const MaybeTensor& pair_weights,
                                            const MaybeTensor& codeword_weights, int64_t num_hashes,
                                            int64_t order, Fields key_fields, bool siphash,
                                            int64_t first_hash, bool pool, bool need_codebook,
                                            bool need_pair, bool need_codeword) {
  const BackwardArguments arguments(grad_out, ids, codebook, pair_weights, codeword_weights,
                                    num_hashes, order, key_fields, siphash, first_hash, pool);
  const WeightGradients weights(arguments, pair_weights, need_pair, codeword_weights,
                                need_codeword);
  Tensor gradient = torch::stable::new_empty(codebook, {0});
  if (need_codebook)
    gradient = dense_gradient(arguments, codebook, weights);
  else
    weights.compute();
  return {gradient, weights.pair(), weights.codeword()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_sparse(
    const Tensor& grad_out, const Tensor& ids, const Tensor& codebook,
    const MaybeTensor& pair_weights, const MaybeTensor& codeword_weights, int64_t num_hashes,
    int64_t order, Fields key_fields, bool siphash, int64_t first_hash, bool pool, bool need_pair,
    bool need_codeword) {
  const BackwardArguments arguments(grad_out, ids, codebook, pair_weights, codeword_weights,
                                    num_hashes, order, key_fields, siphash, first_hash, pool);
  const WeightGradients weights(arguments, pair_weights, need_pair, codeword_weights,
                                need_codeword);
  const Lookup& l = arguments.lookup;
  const bool any = l.hashing.batch > 0;
  std::unique_ptr<CodebookGradient> gradient;
  if (any) gradient = std::make_unique<CodebookGradient>(arguments, Finish::compact, weights);
  const int64_t rows = any ? gradient->count_rows() : 0;
  Tensor where = torch::stable::new_empty(ids, {2, rows});
  Tensor values = torch::stable::new_empty(codebook, {rows, l.width});
  if (!any) return {where, values, weights.pair(), weights.codeword()};
  auto* const books = static_cast<int64_t*>(where.mutable_data_ptr());
  int64_t* const numbers = books + rows;
  Reduction& r = gradient->reduction;
  r.rows = numbers;
  r.out = values.mutable_data_ptr();
  r.out_kind = l.kind;
  r.out_stride = l.width;
  r.stream = streams(r, values);
  gradient->run();
  const auto n = static_cast<int64_t>(l.hashing.num_codewords);
  std::fill(books, numbers, 0);
  for (int64_t i = 0, book = 0; l.private_books && i < rows; ++i) {
    while (numbers[i] >= (book + 1) * n) ++book;
    books[i] = book;
    numbers[i] -= book * n;
  }
  return {where, values, weights.pair(), weights.codeword()};
}

std::tuple<Tensor, Tensor> backward_step(const Tensor& grad_out, const Tensor& ids, Tensor codebook,
                                         const MaybeTensor& pair_weights,
                                         const MaybeTensor& codeword_weights, int64_t num_hashes,
                                         int64_t order, Fields key_fields, bool siphash,
                                         int64_t first_hash, bool pool, bool need_pair,
                                         bool need_codeword, Tensor first, Tensor second, bool adam,
                                         bool per_row, double lr, double eps, double beta1,
                                         double beta2, int64_t step_number) {
  const BackwardArguments arguments(grad_out, ids, codebook, pair_weights, codeword_weights,
                                    num_hashes, order, key_fields, siphash, first_hash, pool);
  const WeightGradients weights(arguments, pair_weights, need_pair, codeword_weights,
                                need_codeword);
  const Lookup& l = arguments.lookup;
  const int64_t books = codebook.size(0), n = codebook.size(1), c = l.width;
  require(codebook.is_contiguous(), "codebook: expected a contiguous one for a fused step");
  const auto check_state = [&](const char* name, const Tensor& t, bool rows_only) {
    require(t.scalar_type() == ScalarType::Float && t.is_contiguous(),
            std::string(name) + ": expected contiguous float32");
    if (rows_only)
      require_shape(name, t, {books, n});
    else
      require_shape(name, t, {books, n, c});
  };
  check_state("first", first, !adam && per_row);
  if (adam) check_state("second", second, per_row);
  require(!adam || step_number >= 1, "step: expected at least 1");
  if (l.hashing.batch == 0) return {weights.pair(), weights.codeword()};

  CodebookGradient gradient(arguments, adam ? Finish::adam : Finish::adagrad, weights);
  Reduction& r = gradient.reduction;
  r.out = codebook.mutable_data_ptr();
  r.out_kind = l.kind;
  r.out_stride = c;
  Step& step = r.step;
  step.first = static_cast<float*>(first.mutable_data_ptr());
  if (adam) step.second = static_cast<float*>(second.mutable_data_ptr());
  step.per_row = per_row;
  step.lr = static_cast<float>(lr);
  step.eps = static_cast<float>(eps);
  step.beta1 = static_cast<float>(beta1);
  step.beta2 = static_cast<float>(beta2);
  if (adam) {
    const auto t = static_cast<double>(step_number);
    step.step_size =
        static_cast<float>(lr * std::sqrt(1.0 - std::pow(beta2, t)) / (1.0 - std::pow(beta1, t)));
  }
  gradient.run();
  return {weights.pair(), weights.codeword()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlfast, CPU, m) {
  m.impl("multi_hash_indices", TORCH_BOX(&indices));
  m.impl("multi_hash_lookup_forward", TORCH_BOX(&forward));
  m.impl("multi_hash_lookup_backward", TORCH_BOX(&backward));
  m.impl("multi_hash_lookup_backward_sparse", TORCH_BOX(&backward_sparse));
  m.impl("multi_hash_lookup_backward_step", TORCH_BOX(&backward_step));
}

}  // namespace mtlfast
