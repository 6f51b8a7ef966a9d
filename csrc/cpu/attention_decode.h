// Attention of few queries over long keys: one pass over the keys and values, which are read where they lie and once
// for all rows (queries of the heads that share a key head). A task is a part of the keys of some heads of a row of the
// batch, with a running softmax; whoever finishes the last part of a row merges them.
#pragma once

#include "attention_cache.h"
#include "attention_softmax.h"
#include "decode_sums.h"
#include "processor.h"

namespace undivided::UNDIVIDED_VARIANT {

constexpr int kMostKeys = 256;  // keys of a block: rows of them are worked on at a time
constexpr int kMostRows = 16;   // rows at a time

// How the work of a call is cut: by shapes alone, since results must not depend on the number of threads.
constexpr int64_t kTasks = 32;       // are enough
constexpr int64_t kLeastKeys = 256;  // of a part

// More bytes than this are read in memory's own order: what the last cache holds. Intel's is shared by a whole socket
// and hardly faster than memory: there it pays from 6 MB on where a head's key is two lines, 1.1 to 1.5 times, and
// from 24 MB on where it is longer, up to 1.2 times; below it costs up to a tenth.
inline int64_t bytes_that_are_near(int64_t bytes_of_a_key) {
  static const bool shared = made_by_intel();
  if (!shared) return cache_bytes();
  return bytes_of_a_key <= 128 ? int64_t{6} << 20 : int64_t{24} << 20;
}

template <class T, class Word>
struct DecodePlan {
  int64_t group, rows;    // query heads of a key head, and rows of a key head
  int64_t width, bytes;   // of a row of sums, in floats; of all sums of a key head and part
  int64_t parts;          // at most, of the keys of a row
  int64_t heads, groups;  // key heads of a task; tasks for all heads
  int64_t keys;           // of a block
  // Values are brought into the second-level cache while the scores of the same keys are made, the keys of the next
  // block while values are summed up: 1.1 to 1.5 times as fast where they lie in memory or the third-level cache, as
  // they do once a model's other layers have run, 0.93 to 1.08 where they lie in the second. What lies far away is read
  // in its own order: where heads lie side by side, all heads of a key, then the next key; a block is small then, so that
  // all of its heads find room. Caches that lie head by head are read so: on Zen 5, from 32 MB on, 1.05 to 1.9 times as
  // fast as in the order of their keys.
  // Zen 5, which multiplies whole vectors, fetches ahead by itself: float32 of one row is read 1.05 to 1.25 times as fast
  // without, from wherever; bfloat16 and several rows from the last cache 1.1 to 1.2 times, from memory 0.8 to 0.9 times.
  bool bring, in_order;

  explicit DecodePlan(const AttentionCall& call)
      : group(call.nheads / call.nheads_kv), rows(group * call.seqlen_q), width(round_up(call.head_dim_v, kStep<T, Word>)),
        bytes(Sums::bytes(rows, width)) {
    const int64_t batch = larger(call.batch, 1), most_parts = larger(call.seqlen_k / kLeastKeys, 1);
    const int64_t of_a_key = call.nheads_kv * (call.head_dim + call.head_dim_v) * size_of(call.dtype);
    const int64_t all = batch * call.seqlen_k * of_a_key;
    const int64_t of_a_head = call.head_dim * size_of(call.dtype);
    const bool far = all > bytes_that_are_near(of_a_head), head_by_head = call.k.h >= call.k.s;
    in_order = far && !head_by_head;
    static const bool fetches_by_itself = is_wide_and_not_intels();
    bring = all > (512 << 10) && !(rows == 1 && call.dtype == kFloat32 && fetches_by_itself);
    keys = !bring ? kMostKeys : in_order || (far && of_a_head > 128) ? kMostKeys / 4 : kMostKeys / 2;
    heads = in_order ? larger(call.nheads_kv * batch * most_parts / kTasks, 1) : 1;
    heads = smaller(heads, call.nheads_kv);
    groups = quotient(call.nheads_kv, heads);
    parts = smaller(quotient(kTasks, batch * groups), most_parts);
  }

  int64_t keys_of_a_part(Range keys) const {
    return round_up(larger(quotient(larger(keys.high - keys.low, 0), parts), kLeastKeys), kMostKeys / 4);
  }
};

// What a task reads: a part of the keys that a row of the batch sees, of some heads that follow one another.
struct DecodePart {
  Sequence sequence;
  int64_t team, head, heads;  // the heads of a row that are worked on together: which of all such, the first, how many
  int64_t index, parts;       // which part it is, and of how many: a row with few keys has fewer than the plan
  Range keys;

  template <class T, class Word>
  DecodePart(const AttentionDecode& job, const DecodePlan<T, Word>& plan, int64_t task)
      : sequence(sequence_of(job, task / plan.parts / plan.groups)), team(task / plan.parts),
        head(team % plan.groups * plan.heads), heads(smaller(plan.heads, job.attention.call.nheads_kv - head)),
        index(task % plan.parts) {
    const Range seen = keys_seen(job.attention.call, sequence, 0, job.attention.call.seqlen_q - 1);
    const int64_t size = plan.keys_of_a_part(seen);
    parts = larger(quotient(seen.high - seen.low, size), 1);
    keys = {seen.low + index * size, smaller(seen.low + (index + 1) * size, seen.high)};
  }
};

template <class T, class Word>
class DecodeTask {
  using Element = typename Weights<Word>::Element;

 public:
  // Head number i of the task keeps its sums at sums + i * stride. `next` is the thread's next task, -1 for none.
  DecodeTask(const AttentionDecode& job, const DecodePlan<T, Word>& plan, const DecodePart& part, int64_t next, char* sums,
             int64_t stride)
      : job_(job), call_(job.attention.call), plan_(plan), sequence_(part.sequence), head_kv_(part.head),
        heads_(part.heads), keys_(part.keys), next_(next), sums_(sums), stride_(stride),
        q_row_(round_up(call_.head_dim, kStep<T, Word>) / kPerWord<Word>),
        plain_(is_plain(call_)), by_distance_(call_.table != nullptr || call_.slopes != nullptr) {}

  void arrange(Arena& arena) {
    arena.take(q_, heads_ * plan_.rows * q_row_);
    arena.take(s_, kMostRows * kScoreRow);
    arena.take(p_, kMostRows * kMostKeys / kPerWord<Word>);
    arena.take(distance_, 1 + kMostKeys + kLanes);
  }

  void run() {
    for (int64_t i = 0; i < heads_; ++i) start(head(i));
    for (int64_t n = keys_.low; n < keys_.high; n += plan_.keys) {
      for (int64_t i = 0; i < heads_; ++i) visit(head(i), n, smaller(n + plan_.keys, keys_.high));
    }
  }

 private:
  static constexpr int64_t kScoreRow = kMostKeys + kLanes;  // whole vectors are written, from anywhere on

  struct Head {
    int64_t kv;
    Word* q;  // (rows, q_row_)
    Sums sums;
  };

  Head head(int64_t i) const {
    Word* q = q_ + i * plan_.rows * q_row_;
    return {head_kv_ + i, q, Sums::at(sums_ + i * stride_, plan_.rows, plan_.width)};
  }

  void start(const Head& head) const {
    head.sums.start(plan_.rows, plan_.width);
    for (int64_t row = 0; row < plan_.rows; ++row) {
      const T* q = row_of<T>(call_.q, sequence_.b, head.kv * plan_.group + row % plan_.group, row / plan_.group);
      const Source<T> source{q, call_.q.s, 1, static_cast<int>(call_.head_dim)};
      pack_steps(source, head.q + row * q_row_, static_cast<int>(q_row_));
    }
  }

  // Every row meets those of the keys [n, end) that it sees. Rows that see the same ones share them.
  void visit(const Head& head, int64_t n, int64_t end) {
    const int64_t last = call_.seqlen_q - 1;
    const Range first_sees = keys_seen(call_, sequence_, 0, 0), last_sees = keys_seen(call_, sequence_, last, last);
    const bool mask = call_.mask.data != nullptr;
    if (!mask && last_sees.low <= n && end <= first_sees.high) return step(head, 0, plan_.rows, n, end);
    for (int64_t i = 0; i < call_.seqlen_q; ++i) {
      const Range seen = keys_seen(call_, sequence_, i, i);
      const Range keys{larger(n, seen.low), smaller(end, seen.high)};
      const int64_t together = mask && call_.mask.h != 0 ? 1 : plan_.group;
      for (int64_t row = i * plan_.group; row < (i + 1) * plan_.group; row += together) {
        if (mask) {
          step_unmasked(head, row, together, keys);
        } else if (keys.low < keys.high) {
          step(head, row, together, keys.low, keys.high);
        }
      }
    }
  }

  // The same for what the mask leaves of the keys: what it hides is not read, so nothing in it can reach a sum.
  void step_unmasked(const Head& head, int64_t row, int64_t rows, Range keys) {
    const Plane& mask = call_.mask;
    const int64_t h = head.kv * plan_.group + row % plan_.group;
    const uint8_t* seen = static_cast<const uint8_t*>(mask.data) + sequence_.b * mask.b + h * mask.h +
                          row / plan_.group * mask.m;
    for (int64_t n = keys.low, end; n < keys.high; n = end) {
      while (n < keys.high && seen[n * mask.n] == 0) ++n;
      for (end = n; end < keys.high && seen[end * mask.n] != 0;) ++end;
      if (n < end) step(head, row, rows, n, end);
    }
  }

  // The keys [n, end), at most kMostKeys, with rows that see them all.
  void step(const Head& head, int64_t row, int64_t rows, int64_t n, int64_t end) {
    for (int64_t r = row; r < row + rows; r += kMostRows) {
      const int count = static_cast<int>(smaller(kMostRows, row + rows - r));
      score(head, r, count, n, end);
      for (int i = 0; i < count; ++i) soften(head, r + i, i, n, end);
      sum_up(head, r, count, n, end);
    }
  }

  void score(const Head& head, int64_t row, int rows, int64_t n, int64_t end) {
    for (int64_t at = n; at < end;) {
      const Stretch<const T> on = stretch_of<const T>(job_, sequence_.b, head.kv, at, end);
      const Keys<T, Word> keys{head.q + row * q_row_, q_row_, on.k, call_.k.s, static_cast<int>(call_.head_dim)};
      row_scores(keys, rows, static_cast<int>(on.count), s_ + (at - n), kScoreRow,
                 Ahead(plan_.bring ? on.v : nullptr, call_.v.s, call_.head_dim_v));
      at += on.count;
    }
  }

  // Scores of row `row`, at s_'s row r, to probabilities.
  void soften(const Head& head, int64_t row, int r, int64_t n, int64_t end) {
    const int keys = static_cast<int>(end - n), whole = static_cast<int>(round_up(keys, kLanes));
    Tile tile{&call_, sequence_, head.kv * plan_.group + row % plan_.group, row / plan_.group, n, 1, keys,
              s_ + r * kScoreRow, kScoreRow, nullptr, nullptr, plain_ ? call_.scale * kLog2E : 1.0F, plain_,
              keys == whole};
    if (by_distance_) {
      tile.distance = distance_;
      fill_distances(tile);
    }
    if (!tile.plain || !tile.whole) finish_row(tile, 0, Columns{0, keys, 0, whole});
    Word* p = p_ + r * kMostKeys / kPerWord<Word>;
    const Sums& sums = head.sums;
    const float shrink = softmax_row(tile, 0, Span{0, whole, 0, 0}, p, sums.top + row, sums.total + row * kLanes);
    if (shrink == 1.0F) return;
    float* acc = sums.acc + row * plan_.width;
    for (int64_t c = 0; c < plan_.width; c += kLanes) store(acc + c, load(acc + c) * shrink);
  }

  void sum_up(const Head& head, int64_t row, int rows, int64_t n, int64_t end) {
    const Element* p = reinterpret_cast<const Element*>(p_);
    float* acc = head.sums.acc + row * plan_.width;
    for (int64_t at = n; at < end;) {
      const Stretch<const T> on = stretch_of<const T>(job_, sequence_.b, head.kv, at, end);
      const Values<T> values{on.v, call_.v.s, static_cast<int>(on.count), static_cast<int>(call_.head_dim_v)};
      add_values<T, Word>(rows, p + (at - n), kMostKeys, values, acc, plan_.width,
                          Ahead(ahead(head, at).k, call_.k.s, call_.head_dim));
      at += on.count;
    }
  }

  // The keys that are read after the block at `at`, where they are brought: the same head's, or the next task's first.
  Stretch<const T> ahead(const Head& head, int64_t at) const {
    if (!plan_.bring) return {nullptr, nullptr, 0};
    at += plan_.keys;
    if (at < keys_.high) return stretch_of<const T>(job_, sequence_.b, head.kv, at, keys_.high);
    if (next_ < 0) return {nullptr, nullptr, 0};
    const DecodePart next(job_, plan_, next_);
    if (next.keys.low >= next.keys.high) return {nullptr, nullptr, 0};
    const int64_t kv = next.head + smaller(head.kv - head_kv_, next.heads - 1);
    return stretch_of<const T>(job_, next.sequence.b, kv, next.keys.low, next.keys.high);
  }

  const AttentionDecode& job_;
  const AttentionCall& call_;
  const DecodePlan<T, Word>& plan_;
  const Sequence& sequence_;
  const int64_t head_kv_, heads_;
  const Range keys_;
  const int64_t next_;
  char* const sums_;
  const int64_t stride_, q_row_;  // bytes; words
  const bool plain_, by_distance_;
  Word *q_, *p_;
  float *s_, *distance_;
};

// A call with fewer products than this for each thread (some 2 microseconds) is over before another has woken up.
constexpr int64_t kProductsPerThread = 128 << 10;

inline int useful_threads(const AttentionDecode& job) {
  const AttentionCall& call = job.attention.call;
  int64_t keys = 0;
  for (int64_t b = 0; b < call.batch; ++b) keys += sequence_of(job, b).lenk;
  const int64_t products = keys * call.seqlen_q * call.nheads * (call.head_dim + call.head_dim_v);
  return static_cast<int>(larger(1, smaller(call.threads, products / kProductsPerThread)));
}

template <class T, class Word>
void decode_typed(const AttentionDecode& job) {
  const AttentionCall& call = job.attention.call;
  const DecodePlan<T, Word> plan(call);
  // What tasks leave to one another: the sums of every head and part, and how many parts of a team of heads are done.
  const int64_t heads = call.batch * call.nheads_kv, teams = call.batch * plan.groups;
  char* shared = nullptr;
  int32_t* done = nullptr;
  if (plan.parts > 1) {
    const int64_t bytes = heads * plan.parts * plan.bytes;
    shared = static_cast<char*>(scratch(bytes + teams * sizeof(int32_t), 1));
    done = reinterpret_cast<int32_t*>(shared + bytes);
    std::memset(done, 0, teams * sizeof(int32_t));
  }
  const int64_t tasks = teams * plan.parts;
  const int threads = useful_threads(job);
  parallel_for(tasks, threads, [&](int64_t task) {
    const DecodePart part(job, plan, task);
    if (part.index >= part.parts) return;
    const int64_t b = part.sequence.b, first = part.head, end = part.head + part.heads;
    if (job.seqlen_new > 0) {  // the first part also writes what no query sees
      const int64_t old = part.sequence.lenk - job.seqlen_new;
      const Range fresh{part.index == 0 ? old : larger(old, part.keys.low), part.keys.high};
      for (int64_t h = first; h < end; ++h) append<T>(job, part.sequence, h, fresh);
    }
    const int64_t stride = plan.bytes * plan.parts;
    char* own = shared == nullptr ? static_cast<char*>(scratch(plan.heads * plan.bytes, 1))
                                  : shared + (b * call.nheads_kv + first) * stride;
    const int64_t next = task + threads < tasks ? task + threads : -1;  // of the thread's share (threads.cpp)
    DecodeTask<T, Word> work(job, plan, part, next, own + part.index * plan.bytes, stride);
    arrange(work);
    work.run();
    if (part.parts > 1 && __atomic_add_fetch(done + part.team, 1, __ATOMIC_ACQ_REL) < part.parts) return;
    for (int64_t h = first; h < end; ++h, own += stride) {
      const Sums sums = Sums::at(own, plan.rows, plan.width);
      for (int64_t other = 1; other < part.parts; ++other) {
        merge(sums, Sums::at(own + other * plan.bytes, plan.rows, plan.width), plan.rows, plan.width);
      }
      finish<T, Word>(job.attention, part.sequence, h, sums, plan.width);
    }
  });
}

}  // namespace undivided::UNDIVIDED_VARIANT
