#include "common/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#endif

namespace mtlfast {

#if defined(__linux__)
namespace {

constexpr uintptr_t kPage = uintptr_t{2} << 20;
constexpr int64_t kLeastBytes = 16 << 20;  // page tables of less stay in near caches
constexpr uintptr_t kPiece = 32 * kPage;   // moved in one call: 0.01 to 0.2 seconds
// A table may have been freed, and another one be in its place.
constexpr int64_t kCallsBetweenPasses = 1024;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, since Linux 6.1; older headers lack it

bool permitted() {
  const char* const choice = std::getenv("MTLFAST_HUGE_PAGES");
  if (choice != nullptr && std::strcmp(choice, "off") == 0) return false;
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

struct Table {
  const void* data = nullptr;
  int64_t bytes = 0;
  uintptr_t begin = 0, end = 0;  // of its whole huge pages
  uintptr_t moved_to = 0;        // of this pass
  int64_t calls = 0;             // since the pass ended
  int64_t last_used = 0;
  bool on_huge_pages = false;

  void start(const void* data_, int64_t bytes_) {
    *this = Table{};
    data = data_;
    bytes = bytes_;
    const auto address = reinterpret_cast<uintptr_t>(data);
    begin = (address + kPage - 1) / kPage * kPage;
    end = std::max(begin, (address + static_cast<uintptr_t>(bytes)) / kPage * kPage);
    moved_to = begin;
  }
  void advance() {
    if (moved_to == end) {
      if (++calls < kCallsBetweenPasses) return;
      calls = 0;
      moved_to = begin;
    }
    const uintptr_t piece = std::min(kPiece, end - moved_to);
    if (madvise(reinterpret_cast<void*>(moved_to), piece, kCollapse) != 0) {
      moved_to = end;  // until the next pass
      on_huge_pages = false;
      return;
    }
    moved_to += piece;
    if (2 * (moved_to - begin) >= end - begin) on_huge_pages = true;
  }
};

}  // namespace

bool move_to_huge_pages(const void* data, int64_t bytes) {
  static const bool kPermitted = permitted();
  if (bytes < kLeastBytes || !kPermitted) return false;
  static std::mutex mutex;
  static std::array<Table, 64> tables;
  static int64_t now = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  auto table = std::find_if(tables.begin(), tables.end(),
                            [&](const Table& t) { return t.data == data && t.bytes == bytes; });
  if (table == tables.end()) {
    table = std::min_element(tables.begin(), tables.end(), [](const Table& a, const Table& b) {
      return a.last_used < b.last_used;
    });
    table->start(data, bytes);
  }
  table->last_used = ++now;
  table->advance();
  return table->on_huge_pages;
}
#else
bool move_to_huge_pages(const void*, int64_t) {
  return false;
}
#endif

}  // namespace mtlfast
