#include "common/huge_pages.h"

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "tests/check.h"

using namespace mtlfast;

TEST(huge_pages_keep_contents) {
  std::vector<uint32_t> table(40 << 18);  // 40 MiB
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint32_t>(i * 2654435761u);
  const auto bytes = static_cast<int64_t>(table.size() * sizeof(uint32_t));
  bool before = false;
  for (int call = 0; call < 20; ++call) {
    const bool now = move_to_huge_pages(table.data(), bytes);
    CHECK(now || !before);  // nothing takes it back
    before = now;
    for (size_t i = 0; i < table.size(); i += 997)
      CHECK(table[i] == static_cast<uint32_t>(i * 2654435761u));
  }
}

TEST(huge_pages_are_for_large_tables) {
  const std::vector<char> table(1 << 20);
  for (int call = 0; call < 5; ++call)
    CHECK(!move_to_huge_pages(table.data(), static_cast<int64_t>(table.size())));
}

TEST(huge_pages_of_many_tables) {
  std::vector<char> memory(64 << 20);
  for (int round = 0; round < 3; ++round)
    for (int64_t i = 0; i < 100; ++i) move_to_huge_pages(memory.data() + i * 4096, 32 << 20);
}
