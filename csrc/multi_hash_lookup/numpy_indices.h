// The indices of one sample after another, for pipelines outside torch.
#pragma once

#include <cstdint>
#include <vector>

#include "common/hash.h"
#include "multi_hash_lookup/crosses.h"

namespace mtlfast {
namespace multi_hash_lookup {

// out[p * num_hashes + s] of one sample; `id(f)` is the id of field f, not negative.
template <class Id>
void sample_indices(const Crosses& crosses, Id id, std::uint64_t num_codewords,
                    std::int64_t num_hashes, std::int64_t first_hash, bool siphash,
                    std::int64_t* out) {
  std::vector<std::uint64_t> keys;
  std::vector<std::vector<unsigned char>> texts;
  for (std::int64_t f = 0; f < crosses.num_fields; ++f) {
    const auto field = static_cast<std::uint64_t>(f), value = static_cast<std::uint64_t>(id(f));
    if (siphash) {
      unsigned char text[hash::kKeyTextLength];
      texts.emplace_back(text, text + hash::write_key_text(field, value, text));
    } else {
      keys.push_back(hash::key(field, value));
    }
  }
  std::vector<std::int32_t> fields(static_cast<std::size_t>(crosses.order));
  std::vector<unsigned char> message;
  for (std::int64_t g = 0; g < crosses.groups(); ++g) {
    for (std::int64_t k = 0; k + 1 < crosses.order; ++k)
      fields[static_cast<std::size_t>(k)] =
          crosses.prefix[static_cast<std::size_t>(g * (crosses.order - 1) + k)];
    for (std::int32_t p = crosses.begin[static_cast<std::size_t>(g)];
         p < crosses.begin[static_cast<std::size_t>(g) + 1]; ++p) {
      fields.back() = crosses.last[static_cast<std::size_t>(p)];
      message.clear();
      for (const std::int32_t f : fields) {
        if (!siphash) break;
        const auto& text = texts[static_cast<std::size_t>(f)];
        if (!message.empty()) message.push_back('_');
        message.insert(message.end(), text.begin(), text.end());
      }
      for (std::int64_t s = 0; s < num_hashes; ++s) {
        const std::int64_t number = first_hash + s;
        std::int64_t& index = out[p * num_hashes + s];
        if (siphash) {
          index = static_cast<std::int64_t>(
              hash::siphash(message.data(), static_cast<std::int64_t>(message.size()),
                            hash::siphash_key(static_cast<int>(number))) %
              num_codewords);
          continue;
        }
        std::uint64_t hashed = hash::seed(static_cast<std::uint64_t>(number));
        for (const std::int32_t f : fields)
          hashed = hash::cross(hashed, keys[static_cast<std::size_t>(f)]);
        index = static_cast<std::int64_t>(hash::index(hashed, num_codewords));
      }
    }
  }
}

}  // namespace multi_hash_lookup
}  // namespace mtlfast
