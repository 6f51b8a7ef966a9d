// Where the elements of a tile lie: in shared memory, in the registers of a warpgroup, and for the tensor cores.
// Plain arithmetic, for host and device. All elements have 16 bits.
//
// A tile in shared memory is one panel for each 64 columns: rows of 128 bytes, one after the other, in which the
// 16-byte chunks of row r are exchanged by chunk ^ (r % 8), as the copy engine writes and the tensor cores read them
// with the 128-byte swizzle. Then neither rows nor columns meet in one bank. A panel starts at a multiple of 1024.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace undivided::cuda {

constexpr int kPanel = 64;        // columns
constexpr int kRowBytes = 128;    // of a panel
constexpr int kGroupBytes = 1024;  // of the 8 rows after which the swizzle repeats

HOST_DEVICE constexpr uint32_t panel_bytes(int rows) { return static_cast<uint32_t>(rows) * kRowBytes; }

struct alignas(16) Chunk {
  uint32_t words[4];
};
struct alignas(16) Four {
  float values[4];
};
struct alignas(8) Two {
  float values[2];
};

// Byte offset of (row, column) in a tile of `rows` rows.
HOST_DEVICE uint32_t swizzled(int rows, int row, int column) {
  const uint32_t chunk = static_cast<uint32_t>(column % kPanel / 8 ^ row % 8);
  return static_cast<uint32_t>(column / kPanel) * panel_bytes(rows) + static_cast<uint32_t>(row) * kRowBytes +
         chunk * 16 + static_cast<uint32_t>(column % 8) * 2;
}

// An accumulator of a warpgroup, 64 rows by 8 * groups columns: each thread has elements of two rows, 8 apart. In the
// array of a thread, element 4 * group + 2 * half + e is at (row(thread) + 8 * half, column(thread) + 8 * group + e).
HOST_DEVICE int fragment_row(int thread) { return thread / 32 * 16 + thread % 32 / 4; }
HOST_DEVICE int fragment_column(int thread) { return thread % 4 * 2; }

// A matrix in shared memory for wgmma: start address, two distances, all in units of 16 bytes, and the swizzle
// (1 in bits 62 and 63 is that of 128 bytes). "PTX ISA", section "Matrix descriptor".
HOST_DEVICE uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}

// Rows are what the product sums over columns of (q, k): 16 columns from `column` on. `address`: the panel 0 of the
// first row, a multiple of 8 rows. Within a panel the swizzle ignores the leading distance.
HOST_DEVICE uint64_t summed_along_rows(uint32_t address, int rows, int column) {
  const uint32_t start = address + static_cast<uint32_t>(column / kPanel) * panel_bytes(rows) +
                         static_cast<uint32_t>(column % kPanel) * 2;
  return descriptor(start, 16, kGroupBytes);
}

// Columns are what the product keeps (v): 16 rows from `row`, a multiple of 8, on, and every column. The leading
// distance is that of two panels, the other one that of two groups of 8 rows.
HOST_DEVICE uint64_t summed_along_columns(uint32_t address, int rows, int row) {
  return descriptor(address + static_cast<uint32_t>(row) * kRowBytes, panel_bytes(rows), kGroupBytes);
}

}  // namespace undivided::cuda
