// multi_hash_lookup on fuzzed shapes: what the sanitizers should see. Results are only compared
// among instruction sets and among kinds of gradients here; the Python tests hold them to the
// reference.
#include <optional>

#include "common/isa.h"
#include "tests/torch/op.h"

using namespace mtlfast::test;

namespace {

using Shape = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;
using Fields = std::optional<Shape>;

struct Options {
  int64_t batch = 9, num_fields = 5, n = 50, width = 16, num_hashes = 2, order = 2;
  Fields key_fields;
  bool siphash = false, pool = true, is_private = false, per_member = false, weighted = false;
  ScalarType dtype = ScalarType::Float;
  int64_t vocabulary = 20;
};

Tensor random_ids(Random& r, const Options& o) {
  Tensor ids = empty({o.batch, o.num_fields}, ScalarType::Long);
  auto* p = static_cast<int64_t*>(ids.mutable_data_ptr());
  for (int64_t i = 0; i < ids.numel(); ++i) p[i] = r.integer(0, o.vocabulary);
  return ids;
}

int64_t crosses(const Options& o) {
  const int64_t f = o.num_fields;
  if (o.order == 3) return f * (f - 1) * (f - 2) / 6;
  if (!o.key_fields.has_value()) return f * (f - 1) / 2;
  const auto k = static_cast<int64_t>(o.key_fields->size());
  return (2 * f - k - 1) * k / 2;
}

void check(Random& r, const Options& o) {
  const int64_t pairs = crosses(o), columns = o.num_hashes * o.width;
  const Tensor ids = random_ids(r, o);
  const Tensor codebook = random(r, {o.is_private ? o.num_hashes : 1, o.n, o.width}, o.dtype);
  const Shape weights = o.per_member ? Shape{o.batch, pairs, o.order} : Shape{o.batch, pairs};
  const MaybeTensor pair_weights = random(r, weights);
  MaybeTensor codeword_weights;
  if (o.weighted) codeword_weights = random(r, {o.batch, pairs, columns});
  const Tensor grad = random(r, {o.batch, o.pool ? o.num_fields : pairs, columns});

  const auto run = [&](const char* name, size_t outputs, const auto&... more) {
    return call(name, outputs, grad, ids, codebook, pair_weights, codeword_weights, o.num_hashes,
                o.order, o.key_fields, o.siphash, int64_t{1}, o.pool, more...);
  };
  const auto results = [&] {
    std::vector<Tensor> all =
        call("mtlfast::multi_hash_lookup_forward", 1, ids, codebook, pair_weights, codeword_weights,
             o.num_hashes, o.order, o.key_fields, o.siphash, int64_t{1}, o.pool);
    for (const Tensor& t : run("mtlfast::multi_hash_lookup_backward", 3, true, true, o.weighted))
      all.push_back(t);
    return all;
  };
  const std::vector<Tensor> found = results();
  for (const Tensor& t : found) CHECK(finite(t));
  with_isa("portable", [&] {
    const std::vector<Tensor> expected = results();
    for (size_t i = 0; i < found.size(); ++i)
      CHECK_CLOSE(difference(found[i], expected[i]), 0.0,
                  o.dtype == ScalarType::Float ? 1e-4 : 0.05);
  });

  const std::vector<Tensor> sparse =
      run("mtlfast::multi_hash_lookup_backward_sparse", 4, true, o.weighted);
  const auto* books = static_cast<const int64_t*>(sparse[0].const_data_ptr());
  const int64_t rows = sparse[0].size(1);
  const std::vector<float> values = floats(sparse[1]), dense = floats(found[1]);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < o.width; ++c)
      CHECK(values[static_cast<size_t>(i * o.width + c)] ==
            dense[static_cast<size_t>((books[i] * o.n + books[rows + i]) * o.width + c)]);

  for (const bool adam : {false, true})
    for (const bool per_row : {false, true}) {
      const int64_t k = codebook.size(0);
      const auto state = [&](bool rows_only) {
        return torch::stable::new_zeros(grad, rows_only ? Shape{k, o.n} : Shape{k, o.n, o.width});
      };
      const Tensor first = state(!adam && per_row);
      const Tensor second = adam ? state(per_row) : empty({0}, ScalarType::Float);
      run("mtlfast::multi_hash_lookup_backward_step", 2, true, o.weighted, first, second, adam,
          per_row, 0.01, 1e-8, 0.9, 0.999, int64_t{1});
      CHECK(finite(codebook));
      CHECK(finite(first));
    }
}

}  // namespace

TEST(multi_hash_fuzz) {
  Random r(21);
  for (int round = 0; round < 40; ++round) {
    Options o;
    o.order = r.integer(2, 3);
    o.batch = r.integer(0, 30);
    o.num_fields = r.integer(o.order, 7);
    o.n = r.integer(1, 3) == 1 ? 1 : r.integer(2, 3000);
    o.width = r.integer(1, 3) == 1 ? 32 : r.integer(1, 70);
    o.num_hashes = r.integer(1, 4);
    if (o.order == 2 && r.integer(0, 2) == 0) o.key_fields = Shape{o.num_fields - 1};
    o.siphash = r.integer(0, 3) == 0;
    o.pool = r.integer(0, 3) != 0;
    o.is_private = r.integer(0, 1) == 0;
    o.per_member = o.pool && r.integer(0, 1) == 0;
    o.weighted = r.integer(0, 1) == 0;
    if (r.integer(0, 2) == 0) o.dtype = r.integer(0, 1) ? ScalarType::BFloat16 : ScalarType::Half;
    check(r, o);
  }
}

TEST(multi_hash_hot_rows) {
  Random r(22);
  for (const int64_t n : {1, 3, 5000}) {
    Options o;
    o.batch = 800;
    o.n = n;
    o.width = 4;
    o.vocabulary = n == 5000 ? 1 : 30;
    check(r, o);
  }
}

// Beyond the near caches: the pairs' weights get their gradient from the codebook's entries.
TEST(multi_hash_large_codebook) {
  Random r(24);
  for (const int64_t vocabulary : {60, 1}) {
    Options o;
    o.batch = 700;
    o.num_fields = 7;
    o.n = 20000;
    o.vocabulary = vocabulary;
    check(r, o);
  }
}

// A row for every codeword used, written past the caches.
TEST(multi_hash_large_results) {
  Random r(25);
  for (const bool pool : {true, false}) {
    Options o;
    o.batch = 1700;
    o.width = 64;
    o.num_hashes = 4;
    o.pool = pool;
    o.weighted = true;
    check(r, o);
  }
}

TEST(multi_hash_wrong_data_are_refused) {
  Random r(23);
  const Options o;
  const Tensor codebook = random(r, {1, 9, 4});
  const MaybeTensor none, wrong = random(r, {9, 3});
  const Fields all;
  const auto forward = [&](const Tensor& ids, const MaybeTensor& weights, int64_t order) {
    return call("mtlfast::multi_hash_lookup_forward", 1, ids, codebook, weights, none, int64_t{2},
                order, all, false, int64_t{0}, true);
  };
  Tensor ids = random_ids(r, o);
  forward(ids, none, 2);
  CHECK_THROWS(forward(ids, wrong, 2));
  CHECK_THROWS(forward(ids, none, 4));
  static_cast<int64_t*>(ids.mutable_data_ptr())[7] = -1;
  CHECK_THROWS(forward(ids, none, 2));
}
