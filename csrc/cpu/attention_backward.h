// Attention backward, deterministic and without atomics. A task owns a chunk of the keys of one key head: it makes the
// probabilities of a tile again from the scores and the lse (Dao et al. 2022, section 3.1), once for all five products.
//
//   dv += p^T dout    dp = dout v^T    ds = p (dp - delta)    dk += ds^T q    dq += ds k
//
// dk and dv are the task's own. dq is summed over a chunk's keys in order, and over chunks in order afterwards. How
// many chunks there are depends on the shape alone, so the result is the same on any number of threads.
#pragma once

#include "attention_bias_gradient.h"
#include "attention_memory.h"
#include "attention_scores.h"
#include "attention_sums.h"
#include "dropout.h"
#include "pack.h"

namespace undivided::UNDIVIDED_VARIANT {

// Rows and columns of a tile. Measured on Zen 4 with 1 MiB of second-level cache, against 96 x 128: bfloat16 7 % faster
// (96 x 256: 5 %), float32 8 % (192 x 256: the same, and 12 % slower than that at 128 keys under a diagonal).
template <class Word>
constexpr int kQueriesOf = 96 * kPerWord<Word>;
constexpr int kKeys = 256;
static_assert(kQueriesOf<float> % kGroup == 0 && kKeys % kPanel == 0);

template <class T, class Word>
class BackwardTask {
  static constexpr int kQueries = kQueriesOf<Word>;
  static constexpr int kDiagonals = kQueries + kKeys + kLanes;

 public:
  BackwardTask(const AttentionBackward& job, int64_t chunk)
      : job_(job), call_(job.call), chunk_(chunk), group_(call_.nheads / call_.nheads_kv),
        depth_(words(call_.head_dim)), depth_v_(words(call_.head_dim_v)),
        q_row_(static_cast<int>(round_up(depth_, kLanes))), dout_row_(static_cast<int>(round_up(depth_v_, kLanes))),
        width_(static_cast<int>(round_up(call_.head_dim, kLanes))),
        width_v_(static_cast<int>(round_up(call_.head_dim_v, kLanes))),
        dq_row_(round_up(call_.head_dim, kGradientAlign)) {}

  void arrange(Arena& arena) {
    constexpr int64_t kWords = kPerWord<Word>, tile = kQueries * kKeys;
    const int64_t panels = round_up(width_, kPanel), panels_v = round_up(width_v_, kPanel);
    arena.take(keys_, kKeys * depth_);
    arena.take(values_, kKeys * depth_v_);
    arena.take(key_panels_, kKeys / kWords * panels);
    arena.take(dk_, kKeys * width_);
    arena.take(dv_, kKeys * width_v_);
    arena.take(q_, kQueries * q_row_);
    arena.take(dout_, kQueries * dout_row_);
    arena.take(q_panels_, kQueries / kWords * panels);
    arena.take(dout_panels_, kQueries / kWords * panels_v);
    arena.take(s_, tile);
    arena.take(dp_, tile);
    arena.take(slope_, call_.softcap != 0.0F ? tile : 0);
    arena.take(p_words_, kWords == 1 ? 0 : tile / kWords);
    arena.take(ds_words_, kWords == 1 ? 0 : tile / kWords);
    arena.take(ds_rows_, kWords == 1 ? 0 : tile / kWords);
    arena.take(distance_, kDiagonals);
    arena.take(bias_.diagonals, kWords * kDiagonals);
    arena.take(dq_scratch_, job_.dq_parts == nullptr ? group_ * call_.seqlen_q * dq_row_ : 0);
  }

  // Brings what the first block of keys will need, while others run.
  void announce(LinesAhead& ahead, int64_t b, int64_t head_kv) const {
    const Sequence sequence = sequence_of(call_, b);
    const int64_t first = chunk_ * keys_of_a_chunk(), keys = smaller(kKeys, sequence.lenk - first);
    const int64_t first_k = sequence.first_k + first;
    for (int64_t h = head_kv * group_; h < (head_kv + 1) * group_; ++h) {
      if (job_.chunks == 1) {
        ahead.add(row_of<T>(job_.out, b, h, sequence.first_q), job_.out.s, call_.head_dim_v, sequence.lenq);
      }
      ahead.add(row_of<T>(job_.dout, b, h, sequence.first_q), job_.dout.s, call_.head_dim_v, sequence.lenq);
      ahead.add(row_of<T>(call_.q, b, h, sequence.first_q), call_.q.s, call_.head_dim, sequence.lenq);
    }
    ahead.add(row_of<T>(call_.k, b, head_kv, first_k), call_.k.s, call_.head_dim, keys);
    ahead.add(row_of<T>(call_.v, b, head_kv, first_k), call_.v.s, call_.head_dim_v, keys);
    ahead.add(row_of<T>(job_.dk, b, head_kv, first_k), job_.dk.s, call_.head_dim, keys);
    ahead.add(row_of<T>(job_.dv, b, head_kv, first_k), job_.dv.s, call_.head_dim_v, keys);
  }

  // All keys of the chunk, for one sequence and one key head.
  void run(int64_t b, int64_t head_kv, LinesAhead& ahead) {
    ahead_ = &ahead;
    sequence_ = sequence_of(call_, b);
    head_kv_ = head_kv;
    for (int64_t member = 0; member < group_; ++member) {
      if (job_.chunks == 1) row_sums<T>(job_, b, head_kv * group_ + member);
      std::memset(query_sums(member), 0, sequence_.lenq * dq_row_ * sizeof(float));
    }
    const int64_t keys = keys_of_a_chunk();
    const int64_t end = smaller(sequence_.lenk, (chunk_ + 1) * keys);
    for (int64_t n = chunk_ * keys; n < end; n += kKeys) key_block(n, static_cast<int>(smaller(kKeys, end - n)));
    if (job_.dq_parts != nullptr) return;
    for (int64_t member = 0; member < group_; ++member) {
      for (int64_t i = 0; i < sequence_.lenq; ++i) {
        T* dq = row_of<T>(job_.dq, b, head_kv * group_ + member, sequence_.first_q + i);
        unpack_row(query_sums(member) + i * dq_row_, dq, static_cast<int>(call_.head_dim), call_.scale);
      }
    }
  }

 private:
  static int words(int64_t columns) { return static_cast<int>(round_up(columns, kPerWord<Word>) / kPerWord<Word>); }

  int64_t keys_of_a_chunk() const { return round_up((call_.seqlen_k + job_.chunks - 1) / job_.chunks, kKeys); }

  // (lenq, dq_row_) of one head of the group.
  float* query_sums(int64_t member) {
    if (job_.dq_parts == nullptr) return dq_scratch_ + member * call_.seqlen_q * dq_row_;
    const int64_t h = head_kv_ * group_ + member;
    const int64_t row = sequence_.b * job_.lse_b + h * job_.lse_h + sequence_.first_q;
    return job_.dq_parts + (chunk_ * job_.lse_size + row) * dq_row_;
  }

  Source<T> source(const Rows& rows, int64_t h, int64_t first, int count, int64_t columns) const {
    return {row_of<T>(rows, sequence_.b, h, first), rows.s, count, static_cast<int>(columns)};
  }

  void key_block(int64_t n, int keys) {
    const Source<T> k = source(call_.k, head_kv_, sequence_.first_k + n, keys, call_.head_dim);
    const Source<T> v = source(call_.v, head_kv_, sequence_.first_k + n, keys, call_.head_dim_v);
    pack_transposed(k, keys_, depth_);
    pack_transposed(v, values_, depth_v_);
    constexpr int64_t kDepth = kKeys / kPerWord<Word>;
    // A NaN that a query sees is in the gradient of its score already.
    if (pack_panels(k, key_panels_, kDepth)) clean_panels(key_panels_, kDepth * round_up(width_, kPanel));
    zero_below(key_panels_, kDepth, width_, keys, round_up(keys, kLanes));
    const Range seen = queries_seeing(call_, sequence_, n, n + keys - 1);
    if (seen.low >= seen.high) {  // otherwise the first tile starts the sums
      std::memset(dk_, 0, kKeys * width_ * sizeof(float));
      std::memset(dv_, 0, kKeys * width_v_ * sizeof(float));
    }
    bool first = true;
    for (int64_t member = 0; member < group_; ++member) {
      for (int64_t i = round_down(seen.low, kQueries); i < seen.high; i += kQueries) {
        const int rows = static_cast<int>(smaller(kQueries, sequence_.lenq - i));
        Tile tile{&call_, sequence_, head_kv_ * group_ + member, i, n, rows, keys,
                  s_, kKeys, nullptr, call_.softcap != 0.0F ? slope_ : nullptr, 1.0F, is_plain(call_), false};
        tile.whole = is_whole(tile);
        if (tile.plain) tile.factor = call_.scale * kLog2E;
        step(tile, query_sums(member) + i * dq_row_, first);
        first = false;
      }
    }
    for (int j = 0; j < keys; ++j) {
      T* dk = row_of<T>(job_.dk, sequence_.b, head_kv_, sequence_.first_k + n + j);
      T* dv = row_of<T>(job_.dv, sequence_.b, head_kv_, sequence_.first_k + n + j);
      unpack_row(dk_ + j * width_, dk, static_cast<int>(call_.head_dim), call_.scale);
      unpack_row(dv_ + j * width_v_, dv, static_cast<int>(call_.head_dim_v), 1.0F);
    }
  }

  void step(Tile& tile, float* dq, bool first) {
    if (call_.table != nullptr || call_.slopes != nullptr) {
      tile.distance = distance_;
      fill_distances(tile);
    }
    const int64_t row = sequence_.first_q + tile.i0;
    const Source<T> q = source(call_.q, tile.h, row, tile.rows, call_.head_dim);
    const Source<T> dout = source(job_.dout, tile.h, row, tile.rows, call_.head_dim_v);
    constexpr int64_t kDepth = kQueries / kPerWord<Word>;
    pack_rows(q, q_, q_row_);
    pack_rows(dout, dout_, dout_row_);
    pack_panels(q, q_panels_, kDepth);
    pack_panels(dout, dout_panels_, kDepth);
    Span groups[kQueries / kGroup], groups_v[kQueries / kGroup];
    groups_of(tile, depth_, groups);
    groups_of(tile, depth_v_, groups_v);
    product(tile.rows, Left<Word>{q_, q_row_, 1}, Right<Word>{keys_, depth_}, Sum{s_, kKeys}, groups, kKeys, nullptr,
            *ahead_);
    product(tile.rows, Left<Word>{dout_, dout_row_, 1}, Right<Word>{values_, depth_v_}, Sum{dp_, kKeys}, groups_v,
            kKeys, nullptr, *ahead_);
    bias_.start(job_, tile, chunk_);
    for (int r = 0; r < tile.rows; r += kPerWord<Word>) differentiate(tile, r, groups[r / kGroup]);
    bias_.finish(job_, tile, chunk_);
    sum_over_queries(tile, first ? nullptr : kNoShrink);
    for (int r = 0, g = 0; r < tile.rows; r += kGroup, ++g) {
      groups[g] = {0, width_, groups[g].column / kPerWord<Word>, groups[g].column_end / kPerWord<Word>};
    }
    const Right<Word> keys{key_panels_, kKeys / kPerWord<Word>};
    product(tile.rows, Left<Word>{ds_rows(), kKeys / kPerWord<Word>, 1}, keys, Sum{dq, dq_row_}, groups, width_,
            kNoShrink, *ahead_);
  }

  // dv += p^T dout, dk += ds^T q: each group of keys over the queries that see it.
  void sum_over_queries(const Tile& tile, const float* start) {
    constexpr int kWords = kPerWord<Word>;
    Span groups[(kKeys + kGroup - 1) / kGroup];
    for (int j = 0, g = 0; j < tile.keys; j += kGroup, ++g) {
      const int64_t last = smaller(j + kGroup, tile.keys) - 1;
      const Range seen = queries_seeing(call_, sequence_, tile.n0 + j, tile.n0 + last);
      const int64_t low = larger(seen.low - tile.i0, 0), high = smaller(seen.high - tile.i0, tile.rows);
      groups[g] = {0, width_v_, 0, 0};
      if (low >= high) continue;
      groups[g].word = static_cast<int>(low / kWords);
      groups[g].word_end = static_cast<int>((high + kWords - 1) / kWords);
    }
    const int64_t depth = kQueries / kWords;
    product(tile.keys, Left<Word>{p_by_query(), 1, kKeys}, Right<Word>{dout_panels_, depth}, Sum{dv_, width_v_}, groups,
            width_v_, start, *ahead_);
    for (Span& span : groups) span.column_end = width_;
    product(tile.keys, Left<Word>{ds_by_query(), 1, kKeys}, Right<Word>{q_panels_, depth}, Sum{dk_, width_}, groups,
            width_, start, *ahead_);
  }

  // p and ds of the rows r (and r + 1, if a word holds two) of a tile, as the words of the three products.
  void differentiate(const Tile& tile, int r, const Span& group) {
    constexpr int kRows = kPerWord<Word>;
    Statistics rows[kRows];
    for (int w = 0; w < kRows; ++w) rows[w] = statistics(tile, r + w, group);
    const Vec nothing[kRows] = {};
    // A group of keys may reach into the vector beside those that this group of queries works on.
    if (group.column > 0) store_words_of(r, group.column - kLanes, nothing, nothing);
    for (int c = group.column; c < group.column_end; c += kLanes) {
      Vec p[kRows] = {}, ds[kRows] = {};
      unrolled<kRows>([&](auto w) {
        if (r + w.value < tile.rows) element(tile, r + w.value, c, rows[w.value], &p[w.value], &ds[w.value]);
      });
      store_words_of(r, c, p, ds);
    }
    if (group.column_end < kKeys) store_words_of(r, group.column_end, nothing, nothing);
  }

  struct Statistics {
    Vec lse2, delta;
    uint32_t dropout;
    bool hidden;  // some of the columns are not seen
  };

  Statistics statistics(const Tile& tile, int r, const Span& group) {
    if (r >= tile.rows) return {zeros(), zeros(), 0, false};
    bool hidden = call_.mask.data != nullptr;
    if (!tile.plain || !tile.whole) {
      const Columns columns = columns_of_row(tile, r, group);
      finish_row(tile, r, columns);
      hidden = hidden || columns.low > columns.begin || columns.high < columns.end;
    }
    const int64_t i = tile.i0 + r;
    const int64_t at = sequence_.b * job_.lse_b + tile.h * job_.lse_h + sequence_.first_q + i;
    const uint32_t word = call_.dropout ? dropout_row(call_.state, sequence_.b * call_.nheads + tile.h, i) : 0;
    return {broadcast(job_.lse2[at]), broadcast(job_.delta[at]), word, hidden};
  }

  UNDIVIDED_INLINE void element(const Tile& tile, int r, int c, const Statistics& row, Vec* p, Vec* ds) {
    const Vec s = load(s_ + r * kKeys + c);
    Vec weight = exp2<kExp2Degree<Word>>(s * tile.factor - row.lse2);
    Vec dp = load(dp_ + r * kKeys + c);
    *p = weight;
    if (call_.dropout) {
      const IntVec keep = kept(row.dropout, call_.threshold, tile.n0 + c);
      *p = select(keep, weight * call_.keep_scale, zeros());
      dp = select(keep, dp * call_.keep_scale, zeros());
    }
    Vec gradient = weight * (dp - row.delta);
    if (row.hidden) {  // what stands in a hidden key or value may have made a NaN
      const IntVec hidden = s == -kInfinity;
      *p = select(hidden, zeros(), *p);
      gradient = select(hidden, zeros(), gradient);
    }
    bias_.add(tile, r, c, gradient);
    if (tile.slope != nullptr) {
      gradient = select(gradient == 0.0F, zeros(), gradient * load(tile.slope + r * kKeys + c));
    }
    *ds = gradient;
  }

  static constexpr int kRowsPerWord = kPerWord<Word>;
  // One vector of columns of the rows that share words.
  UNDIVIDED_INLINE void store_words_of(int r, int c, const Vec* p, const Vec* ds) {
    if constexpr (kRowsPerWord == 1) {
      store(s_ + r * kKeys + c, p[0]);
      store(dp_ + r * kKeys + c, ds[0]);
    } else {
      store_words(p_words_ + r / 2 * kKeys + c, words_of(Block{p[0], p[1]}));
      store_words(ds_words_ + r / 2 * kKeys + c, words_of(Block{ds[0], ds[1]}));
      for (int w = 0; w < 2; ++w) store(reinterpret_cast<bfloat16*>(ds_rows_) + (r + w) * kKeys + c, ds[w]);
    }
  }

  // Word (query, key) of p and ds, kKeys apart by query; of ds also by row.
  Word* p_by_query() {
    if constexpr (kRowsPerWord == 1) return s_;
    if constexpr (kRowsPerWord == 2) return p_words_;
  }
  Word* ds_by_query() {
    if constexpr (kRowsPerWord == 1) return dp_;
    if constexpr (kRowsPerWord == 2) return ds_words_;
  }
  Word* ds_rows() {
    if constexpr (kRowsPerWord == 1) return dp_;
    if constexpr (kRowsPerWord == 2) return ds_rows_;
  }

  const AttentionBackward& job_;
  const AttentionCall& call_;
  const int64_t chunk_, group_;
  const int depth_, depth_v_, q_row_, dout_row_, width_, width_v_;
  const int64_t dq_row_;
  Sequence sequence_{};
  int64_t head_kv_ = 0;
  LinesAhead* ahead_ = nullptr;
  BiasGradient<kPerWord<Word>, kDiagonals> bias_;
  Word *keys_, *values_, *key_panels_, *q_, *dout_, *q_panels_, *dout_panels_, *p_words_, *ds_words_, *ds_rows_;
  float *dk_, *dv_, *s_, *dp_, *slope_, *distance_, *dq_scratch_;
};

template <class T, class Word>
void backward_typed(const AttentionBackward& job) {
  const AttentionCall& call = job.call;
  if (job.chunks > 1) {  // otherwise the only task of a head makes its own
    parallel_for(call.batch * call.nheads, call.threads,
                 [&](int64_t task) { row_sums<T>(job, task / call.nheads, task % call.nheads); });
  }
  // Where the bias is shared by the batch or the heads, one task goes through all of them in order.
  const int64_t batches = job.sum_batch ? 1 : call.batch, batch_size = job.sum_batch ? call.batch : 1;
  const int64_t tasks = job.chunks * batches * call.nheads_kv;
  const int64_t head_count = job.sum_heads ? call.nheads_kv : heads_of_a_task(call.nheads_kv, tasks, call.threads);
  const int64_t heads = call.nheads_kv / head_count;
  // The first keys first: under a diagonal they are seen by the most queries.
  parallel_for(job.chunks * batches * heads, call.threads, [&](int64_t number) {
    const int64_t chunk = number / (batches * heads), b = number / heads % batches;
    const int64_t h = number % heads * head_count;
    BackwardTask<T, Word> task(job, chunk);
    arrange(task);
    for (int64_t i = 0; i < batch_size; ++i) {
      for (int64_t j = 0; j < head_count; ++j) {
        LinesAhead ahead;
        if (j + 1 < head_count) task.announce(ahead, b + i, h + j + 1);
        task.run(b + i, h + j, ahead);
      }
    }
  });
  if (job.dsinks != nullptr) add_sink_sums(job);
  if (job.dq_parts != nullptr) add_query_parts<T>(job);
  if (job.dtable != nullptr) add_distance_sums(job);
}

}  // namespace undivided::UNDIVIDED_VARIANT
