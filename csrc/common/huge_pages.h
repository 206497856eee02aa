// Huge pages for tables that are read at random. A random row of a table on pages of 4 KiB costs a
// walk through the page tables too, which keeps the memory from having as many rows on their way.
#pragma once

#include <cstdint>

namespace mtlfast {

// Moves the table [data, data + bytes) to huge pages if it is too large for near caches, 64 MiB per
// call, so that one call pays for a table of usual size and none takes long for a very large one.
// Contents and addresses stay as they are. Nothing is moved where the system has no huge pages, or
// an administrator or MTLFAST_HUGE_PAGES=off forbids them. Returns whether most of the table is
// there, as far as this function has seen to it.
bool move_to_huge_pages(const void* data, int64_t bytes);

}  // namespace mtlfast
