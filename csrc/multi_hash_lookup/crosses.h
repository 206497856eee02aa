// Which fields are crossed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace mtlfast {
namespace multi_hash_lookup {

// The crosses in lexicographic order of their fields. Those that differ in the last field alone are
// neighbours and form a group.
struct Crosses {
  int64_t order = 2;
  int64_t num_fields = 0;
  std::vector<int32_t> prefix;    // [groups][order - 1]: all fields but the last
  std::vector<int32_t> begin{0};  // [groups + 1]: where the crosses of a group start
  std::vector<int32_t> last;      // [P]: the last field

  int64_t size() const { return static_cast<int64_t>(last.size()); }
  int64_t groups() const { return static_cast<int64_t>(begin.size()) - 1; }
};

// All combinations of `order` fields; with key fields, those with at least one of them. Throws
// std::runtime_error.
inline Crosses make_crosses(int64_t num_fields, int64_t order,
                            const std::optional<std::vector<int64_t>>& key_fields) {
  const auto require = [](bool condition, const std::string& text) {
    if (!condition) throw std::runtime_error("mtlfast: " + text);
  };
  require(order == 2 || order == 3, "order: expected 2 or 3, found " + std::to_string(order));
  require(num_fields >= order, "ids: expected at least " + std::to_string(order) +
                                   " fields, found " + std::to_string(num_fields));
  require(order == 2 || !key_fields.has_value(), "key_fields: expected None unless order is 2");
  require(!key_fields.has_value() || !key_fields->empty(),
          "key_fields: expected at least one field, found []");
  std::vector<bool> is_key(static_cast<size_t>(num_fields), !key_fields.has_value());
  for (const int64_t f : key_fields.value_or(std::vector<int64_t>{})) {
    require(f >= 0 && f < num_fields, "key_fields: expected distinct fields in [0, " +
                                          std::to_string(num_fields) + "), found " +
                                          std::to_string(f));
    is_key[static_cast<size_t>(f)] = true;
  }

  Crosses c;
  c.order = order;
  c.num_fields = num_fields;
  const auto add_group = [&](std::initializer_list<int64_t> prefix, bool any_last, int64_t first) {
    const size_t before = c.last.size();
    for (int64_t f = first; f < num_fields; ++f)
      if (any_last || is_key[static_cast<size_t>(f)]) c.last.push_back(static_cast<int32_t>(f));
    if (c.last.size() == before) return;
    for (const int64_t f : prefix) c.prefix.push_back(static_cast<int32_t>(f));
    require(c.last.size() < (size_t{1} << 30),
            "ids: expected fewer fields, found too many crosses");
    c.begin.push_back(static_cast<int32_t>(c.last.size()));
  };
  for (int64_t i = 0; i < num_fields; ++i) {
    if (order == 2) {
      add_group({i}, is_key[static_cast<size_t>(i)], i + 1);
    } else {
      for (int64_t j = i + 1; j < num_fields; ++j) add_group({i, j}, true, j + 1);
    }
  }
  return c;
}

}  // namespace multi_hash_lookup
}  // namespace mtlfast
