// A product with few rows reads far more than it computes, so what counts is to read the weight as fast as memory gives
// it. Measured on two threads of Zen 4, one row and 768 x 3072 weights: 74 GB/s in float32, where MKL reads 36.
#include "linear.h"

#include "row_products.h"
#include "threads.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int64_t kOutputs = 64;                // of a task
constexpr int64_t kScores = kOutputs + kLanes;  // floats of a row: whole vectors are written
// A call with fewer products than this for each thread (a microsecond) is over before another has woken up.
constexpr int64_t kProductsPerThread = 64 << 10;

template <class T>
void write_row(const float* s, const T* bias, T* y, int count) {
  for (int c = 0; c < count; c += kLanes) {
    const int n = count - c < kLanes ? count - c : kLanes;
    Vec value = load(s + c);
    if (n == kLanes) {
      if (bias != nullptr) value += load(bias + c);
      store(y + c, value);
    } else {
      if (bias != nullptr) value += load_part(bias + c, n);
      store_part(y + c, value, n);
    }
  }
}

template <class T, class Word>
void linear_typed(const Linear& call) {
  const int columns = static_cast<int>(call.columns), rows = static_cast<int>(call.rows);
  const int stride = (columns + kStep<T, Word> - 1) / kStep<T, Word> * kStepWords<T, Word>;  // words of a row
  Word* left = static_cast<Word*>(scratch(rows * stride * sizeof(Word), 0));
  pack_steps(Source<T>{static_cast<const T*>(call.x), columns, rows, columns}, left, stride);
  const int64_t tasks = (call.outputs + kOutputs - 1) / kOutputs;
  const int64_t useful = call.rows * call.columns * call.outputs / kProductsPerThread;
  const int threads = useful < 1 ? 1 : useful < call.threads ? static_cast<int>(useful) : call.threads;
  parallel_for(tasks, threads, [&](int64_t task) {
    alignas(64) float s[kMostLinearRows * kScores];
    const int64_t first = task * kOutputs;
    const int count = static_cast<int>(call.outputs - first < kOutputs ? call.outputs - first : kOutputs);
    const T* w = static_cast<const T*>(call.w) + first * call.w_row;
    row_scores<T, Word, true>({left, stride, w, call.w_row, columns}, rows, count, s, kScores, Ahead());
    const T* bias = call.bias == nullptr ? nullptr : static_cast<const T*>(call.bias) + first;
    for (int r = 0; r < rows; ++r) {
      write_row(s + r * kScores, bias, static_cast<T*>(call.y) + r * call.outputs + first, count);
    }
  });
}

// T is the type of the tensors, Word what is multiplied at a time.
template <class T, class Word>
void linear_in_blocks(Linear call) {
  const int64_t end = call.rows;
  for (int64_t row = 0; row < end; row += kMostLinearRows) {
    call.rows = end - row < kMostLinearRows ? end - row : kMostLinearRows;
    linear_typed<T, Word>(call);
    call.x = static_cast<const T*>(call.x) + call.rows * call.columns;
    call.y = static_cast<T*>(call.y) + call.rows * call.outputs;
  }
}

void linear(const Linear& call) {
  if (call.dtype == kFloat32) return linear_in_blocks<float, float>(call);
  if (call.dtype == kFloat16) return linear_in_blocks<float16, float>(call);
#if defined(__AVX512BF16__)
  if (multiplies_pairs()) return linear_in_blocks<bfloat16, Pair>(call);
#endif
  linear_in_blocks<bfloat16, float>(call);
}

}  // namespace undivided::UNDIVIDED_VARIANT
