// Attention forward: a running softmax over blocks of keys (Dao et al. 2022, section 3.1; Dao 2023, section 3.1).
// The heads that share one key head are worked on together, so that keys and values are packed once for all of them. A
// task is a chunk of the queries of one or some key heads; chunks are whole tiles, so what a row meets does not depend
// on how queries were dealt out.
#pragma once

#include "attention_finish.h"
#include "attention_memory.h"
#include "attention_poison.h"
#include "attention_softmax.h"

namespace undivided::UNDIVIDED_VARIANT {

// Rows and columns of a tile. Measured on Zen 4 with 1 MiB of second-level cache: 24 to 96 rows are equal; 256 columns
// beat 128 by 3 % at 2048 keys, since sums over keys are loaded and stored half as often.
constexpr int kQueries = 48;
constexpr int kKeys = 256;
static_assert(kQueries % kGroup == 0 && kKeys % kPanel == 0);
constexpr int64_t kPackedBytes = 256 << 10;  // packed keys and values at a time: they stay in the second-level cache
constexpr int64_t kSumBytes = 256 << 10;     // unfinished outputs of a task, likewise

// A chunk of the queries that share one key head.
template <class T, class Word>
class ForwardTask {
 public:
  ForwardTask(const AttentionForward& job, const Sequence& sequence, int64_t head_kv, int64_t begin, int64_t end)
      : job_(job), call_(job.call), sequence_(sequence), head_kv_(head_kv), begin_(begin),
        end_(smaller(end, sequence.lenq)), group_(call_.nheads / call_.nheads_kv),
        depth_(static_cast<int>(round_up(call_.head_dim, kPerWord<Word>) / kPerWord<Word>)),
        q_row_(static_cast<int>(round_up(depth_, kLanes))),
        width_(static_cast<int>(round_up(call_.head_dim_v, kLanes))) {
    const int64_t bytes = (depth_ * kPerWord<Word> + width_) * static_cast<int64_t>(sizeof(Word)) / kPerWord<Word>;
    packed_keys_ = larger(kKeys, round_down(kPackedBytes / bytes, kKeys));
    rows_ = round_up(larger(end_ - begin_, 0), kQueries);
  }

  void arrange(Arena& arena) {
    arena.take(keys_, packed_keys_ * depth_);
    arena.take(values_, packed_keys_ / kPerWord<Word> * round_up(width_, kPanel));
    arena.take(s_, kQueries * kKeys);
    arena.take(p_, kQueries * kKeys / kPerWord<Word>);
    arena.take(distance_, kQueries + kKeys + kLanes);
    arena.take(poison_, kQueries * width_);
    arena.take(shrink_, kQueries);
    arena.take(q_, group_ * rows_ * q_row_);
    arena.take(acc_, group_ * rows_ * width_);
    arena.take(total_, group_ * rows_ * kLanes);
    arena.take(top_, group_ * rows_);
  }

  // Brings what the task will read, and where it will write, while others run.
  void announce(LinesAhead& ahead) const {
    if (end_ <= begin_) return;
    const int64_t b = sequence_.b, first_q = sequence_.first_q + begin_, queries = end_ - begin_;
    const Range keys = keys_seen(call_, sequence_, begin_, end_ - 1);
    const int64_t first_k = sequence_.first_k + keys.low, count = keys.high - keys.low;
    ahead.add(row_of<T>(call_.k, b, head_kv_, first_k), call_.k.s, call_.head_dim, count);
    ahead.add(row_of<T>(call_.v, b, head_kv_, first_k), call_.v.s, call_.head_dim_v, count);
    for (int64_t h = head_kv_ * group_; h < (head_kv_ + 1) * group_; ++h) {
      ahead.add(row_of<T>(call_.q, b, h, first_q), call_.q.s, call_.head_dim, queries);
      ahead.add(row_of<T>(job_.out, b, h, first_q), job_.out.s, call_.head_dim_v, queries);
    }
  }

  void run(LinesAhead& ahead) {
    ahead_ = &ahead;
    if (end_ <= begin_) return;
    start();
    const Range keys = keys_seen(call_, sequence_, begin_, end_ - 1);
    for (int64_t n = round_down(keys.low, kKeys); n < keys.high; n += packed_keys_) {
      const int64_t end = smaller(n + packed_keys_, keys.high);
      pack_keys(n, end);
      for (int64_t member = 0; member < group_; ++member) {
        for (int64_t i = begin_; i < end_; i += kQueries) visit(member, i, n, end);
      }
    }
    for (int64_t member = 0; member < group_; ++member) finish(member);
  }

 private:
  void start() {
    std::memset(total_, 0, group_ * rows_ * kLanes * sizeof(float));
    for (int64_t r = 0; r < group_ * rows_; ++r) top_[r] = -kInfinity;
    for (int64_t member = 0; member < group_; ++member) {
      const T* q = row_of<T>(call_.q, sequence_.b, head_kv_ * group_ + member, sequence_.first_q + begin_);
      const Source<T> source{q, call_.q.s, static_cast<int>(end_ - begin_), static_cast<int>(call_.head_dim)};
      pack_rows(source, q_ + member * rows_ * q_row_, q_row_);
    }
  }

  void pack_keys(int64_t n, int64_t end) {
    const int count = static_cast<int>(end - n);
    const T* k = row_of<T>(call_.k, sequence_.b, head_kv_, sequence_.first_k + n);
    const T* v = row_of<T>(call_.v, sequence_.b, head_kv_, sequence_.first_k + n);
    pack_transposed(Source<T>{k, call_.k.s, count, static_cast<int>(call_.head_dim)}, keys_, depth_);
    const Source<T> values{v, call_.v.s, count, static_cast<int>(call_.head_dim_v)};
    const int64_t depth = packed_keys_ / kPerWord<Word>;
    poisoned_ = pack_panels(values, values_, depth);
    if (poisoned_) clean_panels(values_, depth * round_up(width_, kPanel));
    // Products run over whole steps of keys; those beyond the last have probability 0.
    zero_below(values_, depth, width_, count, smaller(round_up(count, kLanes), packed_keys_));
  }

  // The tiles of one block of queries with the packed keys n to end.
  void visit(int64_t member, int64_t i, int64_t n, int64_t end) {
    const int rows = static_cast<int>(smaller(kQueries, end_ - i));
    const Range seen = keys_seen(call_, sequence_, i, i + rows - 1);
    const int64_t high = smaller(end, seen.high);
    const int64_t first = round_down(seen.low, kKeys);
    for (int64_t at = larger(n, first); at < high; at += kKeys) {
      Tile tile{&call_, sequence_, head_kv_ * group_ + member, i, at, rows, static_cast<int>(smaller(kKeys, end - at)),
                s_, kKeys, nullptr, nullptr, 1.0F, is_plain(call_), false};
      tile.whole = is_whole(tile);
      if (tile.plain) tile.factor = call_.scale * kLog2E;
      if (call_.table != nullptr || call_.slopes != nullptr) {
        tile.distance = distance_;
        fill_distances(tile);
      }
      step(tile, member * rows_ + i - begin_, at - n, at == first);
    }
  }

  // One step of the running softmax; `state` is the tile's first row in the task's arrays, `packed` its first key,
  // `first` whether it starts the sums.
  void step(const Tile& tile, int64_t state, int64_t packed, bool first) {
    Span spans[kQueries / kGroup];
    groups_of(tile, depth_, spans);
    const Left<Word> q{q_ + state * q_row_, q_row_, 1};
    product(tile.rows, q, Right<Word>{keys_ + packed * depth_, depth_}, Sum{s_, kKeys}, spans, kKeys, nullptr,
            *ahead_);
    for (int r = 0; r < tile.rows; ++r) {
      if (!tile.plain || !tile.whole) finish_row(tile, r, columns_of_row(tile, r, spans[r / kGroup]));
    }
    if (poisoned_) gather_poison<T>(tile, poison_, width_);
    for (int r = 0; r < tile.rows; ++r) {
      Word* p = p_ + r * kKeys / kPerWord<Word>;
      shrink_[r] = softmax_row(tile, r, spans[r / kGroup], p, top_ + state + r, total_ + (state + r) * kLanes);
    }
    const Sum acc{acc_ + state * width_, width_};
    const float* shrink = first ? nullptr : shrink_;
    for (int r = 0, g = 0; r < tile.rows; r += kGroup, ++g) {
      spans[g] = {0, width_, spans[g].column / kPerWord<Word>, spans[g].column_end / kPerWord<Word>};
    }
    const Left<Word> p{p_, kKeys / kPerWord<Word>, 1};
    const Right<Word> v{values_ + packed / kPerWord<Word> * kPanel, packed_keys_ / kPerWord<Word>};
    product(tile.rows, p, v, acc, spans, width_, shrink, *ahead_);
    if (poisoned_) add_poison(tile.rows, poison_, acc, width_);
  }

  // One head's rows, kLanes at a time.
  void finish(int64_t member) {
    const int64_t h = head_kv_ * group_ + member;
    for (int64_t i = begin_; i < end_; i += kLanes) {
      const int64_t state = member * rows_ + i - begin_;
      const int rows = static_cast<int>(smaller(kLanes, end_ - i));
      Vec total = zeros();
      for (int r = 0; r < rows; ++r) total[r] = sum(load(total_ + (state + r) * kLanes));
      finish_rows<T>(job_, sequence_, h, i, rows, load(top_ + state), total, acc_ + state * width_, width_);
    }
  }

  const AttentionForward& job_;
  const AttentionCall& call_;
  const Sequence sequence_;
  const int64_t head_kv_, begin_, end_, group_;
  const int depth_, q_row_, width_;  // words of a head_dim, a row of q_, a row of acc_
  int64_t packed_keys_, rows_;
  bool poisoned_ = false;
  LinesAhead* ahead_ = nullptr;
  Word *keys_, *values_, *p_, *q_;
  float *s_, *distance_, *poison_, *shrink_, *acc_, *total_, *top_;
};

// Rows past the last query: out 0, lse -inf.
template <class T>
void empty_rows(const AttentionForward& job, const Sequence& sequence, int64_t h, int64_t begin, int64_t end) {
  const int64_t lse = sequence.b * job.lse_b + h * job.lse_h + sequence.first_q;
  for (int64_t i = larger(begin, sequence.lenq); i < smaller(end, sequence.rows_q); ++i) {
    if (job.lse != nullptr) job.lse[lse + i] = -kInfinity;
    T* out = row_of<T>(job.out, sequence.b, h, sequence.first_q + i);
    std::memset(out, 0, job.call.head_dim_v * sizeof(T));
  }
}

template <class T, class Word>
void forward_typed(const AttentionForward& job) {
  const AttentionCall& call = job.call;
  const int64_t group = call.nheads / call.nheads_kv, heads = call.batch * call.nheads_kv;
  // Four tasks a thread, if there is so much to do: they are not equally long.
  const int64_t most = larger(kSumBytes / static_cast<int64_t>(sizeof(float)) / (group * call.head_dim_v), kQueries);
  const int64_t for_all = call.threads == 1 ? 1 : quotient(4 * call.threads, larger(heads, 1));
  const int64_t wanted = larger(quotient(call.seqlen_q, most), for_all);
  const int64_t rows = round_up(quotient(larger(call.seqlen_q, 1), wanted), kQueries);
  const int64_t chunks = quotient(call.seqlen_q, rows);
  const int64_t team = heads_of_a_task(call.nheads_kv, chunks * heads, call.threads);
  parallel_for(chunks * heads / team, call.threads, [&](int64_t task) {
    // The last queries first: under a diagonal they see the most keys.
    const int64_t at = task * team, chunk = chunks - 1 - at / heads, b = at % heads / call.nheads_kv;
    const Sequence sequence = sequence_of(call, b);
    const int64_t begin = chunk * rows, end = begin + rows;
    for (int64_t h = at % call.nheads_kv, last = h + team - 1; h <= last; ++h) {
      LinesAhead ahead;
      if (h < last) ForwardTask<T, Word>(job, sequence, h + 1, begin, end).announce(ahead);
      ForwardTask<T, Word> work(job, sequence, h, begin, end);
      arrange(work);
      work.run(ahead);
      for (int64_t member = 0; member < group; ++member) empty_rows<T>(job, sequence, h * group + member, begin, end);
    }
  });
}

}  // namespace undivided::UNDIVIDED_VARIANT
