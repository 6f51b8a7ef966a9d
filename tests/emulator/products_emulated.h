// The tensor cores: each thread computes its own elements of a product, when it starts or when somebody waits for it.
#pragma once

#include <array>
#include <deque>
#include <unordered_map>

namespace undivided::cuda {

// A matrix in shared memory as a descriptor gives it, with the 128-byte swizzle.
struct Matrix {
  uint32_t start, leading, stride;
  explicit Matrix(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3FFF) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7) != 0) throw std::logic_error("a descriptor without the 128-byte swizzle");
  }
  // 16 numbers of a row, along which the sum goes ("K-major"): groups of 8 rows at `stride`, rows of 128 bytes.
  template <class Element>
  void along_row(int row, float* to) const {
    const uint32_t begin = start + row / 8 * stride + row % 8 * 128;
    for (int k = 0; k < 16; k += 8) {
      uint16_t chunk[8];
      std::memcpy(chunk, shared_pointer(swizzle_128(begin + k * 2)), 16);
      for (int n = 0; n < 8; ++n) to[k + n] = widened<Element>(chunk[n]);
    }
  }
  // 16 numbers of two columns ("MN-major"): columns in parts of 64 at `leading`, the sum's groups of 8 at `stride`,
  // 128 bytes from one to the next.
  template <class Element>
  void along_columns(int column, float (*to)[16]) const {
    const uint32_t begin = start + column / 64 * leading + column % 64 * 2;
    for (int k = 0; k < 16; ++k) {
      uint16_t pair[2];
      std::memcpy(pair, shared_pointer(swizzle_128(begin + k / 8 * stride + k % 8 * 128)), 4);
      for (int e = 0; e < 2; ++e) to[e][k] = widened<Element>(pair[e]);
    }
  }
};

// Products of one thread that were started. What their results will be is not to be seen before the wait.
struct Products {
  struct Sums {
    std::vector<float> values;
    int unfinished = 0;
  };
  using Group = std::vector<std::function<void()>>;
  std::unordered_map<float*, Sums> sums;
  Group open;
  std::deque<Group> groups;
};
inline std::vector<Products> products;  // by thread

// Starts sums[i] += sum over k of a(row, k) b(column, k) for this thread's elements. left(to) gives its two rows of a,
// right(column, to) two columns of b.
template <class Left, class Right>
void start_product(float* sums, int count, bool add, Left left, Right right) {
  Products& own = products[block->current];
  Products::Sums& hidden = own.sums[sums];
  if (hidden.unfinished++ == 0) hidden.values.assign(sums, sums + count);
  std::fill(sums, sums + count, NAN);
  const int lane = block->current % 4;
  own.open.push_back([=, &hidden] {
    float rows[2][16], columns[2][16];
    left(rows);
    for (int i = 0; i < count; i += 4) {
      right(2 * i + 2 * lane, columns);
      for (int half = 0; half < 2; ++half) {
        for (int e = 0; e < 2; ++e) {
          float total = 0;
          for (int k = 0; k < 16; ++k) total += rows[half][k] * columns[e][k];
          float& sum = hidden.values[i + 2 * half + e];
          sum = (add ? sum : 0.0F) + total;
        }
      }
    }
    if (--hidden.unfinished == 0) std::copy(hidden.values.begin(), hidden.values.end(), sums);
  });
}

inline int first_row(int thread) { return thread % 128 / 32 * 16 + thread % 32 / 4; }

template <class Element, int COUNT>
void multiply_turned(float (&sums)[COUNT], uint64_t a, uint64_t b, bool add) {
  const Matrix left(a), right(b);
  const int row = first_row(block->current), even = row / 2 * 2;  // columns of a come in pairs
  start_product(
      sums, COUNT, add,
      [=](float (*to)[16]) {
        for (int half = 0; half < 2; ++half) {
          float pair[2][16];
          left.along_columns<Element>(even + 8 * half, pair);
          std::copy_n(pair[row - even], 16, to[half]);
        }
      },
      [=](int column, float (*to)[16]) { right.along_columns<Element>(column, to); });
}

template <class Element, int COUNT>
void multiply_rows(float (&sums)[COUNT], uint64_t a, uint64_t b, bool add) {
  const Matrix left(a), right(b);
  const int row = first_row(block->current);
  start_product(
      sums, COUNT, add,
      [=](float (*to)[16]) {
        for (int half = 0; half < 2; ++half) left.along_row<Element>(row + 8 * half, to[half]);
      },
      [=](int column, float (*to)[16]) {
        for (int e = 0; e < 2; ++e) right.along_row<Element>(column + e, to[e]);
      });
}

template <class Element, int COUNT>
void multiply_plain(float (&sums)[COUNT], uint64_t a, uint64_t b, bool add) {
  const Matrix left(a), right(b);
  const int row = first_row(block->current);
  start_product(
      sums, COUNT, add,
      [=](float (*to)[16]) {
        for (int half = 0; half < 2; ++half) left.along_row<Element>(row + 8 * half, to[half]);
      },
      [=](int column, float (*to)[16]) { right.along_columns<Element>(column, to); });
}

template <class Element, int COUNT>
void multiply_columns(float (&sums)[COUNT], const uint32_t* a, uint64_t b) {
  const Matrix matrix(b);
  // The registers of the quad: of both rows, columns 0 to 7, then 8 to 15; a thread has two next to each other.
  std::array<emulator::Block::Four, 4> quad;
  std::copy_n(block->exchange({a[0], a[1], a[2], a[3]}) + block->current % 32 / 4 * 4, 4, quad.begin());
  start_product(
      sums, COUNT, true,
      [=](float (*to)[16]) {
        for (int k = 0; k < 16; ++k) {
          for (int half = 0; half < 2; ++half) {
            const uint32_t both = quad[k % 8 / 2][half + k / 8 * 2];
            to[half][k] = widened<Element>(static_cast<uint16_t>(k % 2 == 0 ? both & 0xFFFF : both >> 16));
          }
        }
      },
      [=](int column, float (*to)[16]) { matrix.along_columns<Element>(column, to); });
}

DEVICE void products_begin() {}
inline void finish_group(Products& own) {
  for (auto& act : own.groups.front()) act();
  own.groups.pop_front();
}
DEVICE void products_commit() {
  Products& own = products[block->current];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
  // In order, so an early end is an early end of all before.
  if (!block->late || block->random() % 2 == 0) {
    while (!own.groups.empty()) finish_group(own);
  }
}
template <int PENDING>
DEVICE void products_wait() {
  Products& own = products[block->current];
  while (own.groups.size() > PENDING) finish_group(own);
}
template <class T, int COUNT>
void keep(T (&)[COUNT]) {}

}  // namespace undivided::cuda
