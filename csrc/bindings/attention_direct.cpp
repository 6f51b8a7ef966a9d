// Attention, over keys or over caches of them, straight from the op's arguments: true where it ran, false where a check
// in Python must look.
#include <algorithm>
#include <cmath>

#include "../cpu/attention.h"
#include "../cpu/dtype.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;
using pybind11::handle;

// (batch, seqlen, nheads, head_dim), anywhere but for the last.
bool rows_of(handle object, int dtype, TensorView& view) {
  return view_of(object, view) && view.dims == 4 && view.kernel_dtype() == dtype && view.strides[3] == 1;
}

Rows rows(const TensorView& view) { return {view.data, view.strides[0], view.strides[1], view.strides[2]}; }

// int32 (batch,), from 0 to most, or null for None.
bool lengths_of(handle object, int64_t batch, int64_t most, const int32_t*& lengths) {
  TensorView view;
  if (object.is_none()) return true;
  if (!view_of(object, view) || !view.is_int32() || view.dims != 1 || view.shape[0] != batch) return false;
  if (!view.contiguous()) return false;
  lengths = static_cast<const int32_t*>(view.data);
  for (int64_t b = 0; b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > most) return false;
  }
  return true;
}

// A relative bias: table float32 (num_buckets, nheads), buckets int32 (2 * span + 1,), both or neither.
bool read_bias(handle table, handle buckets, AttentionCall& call) {
  if (table.is_none()) return true;
  TensorView by_bucket, by_distance;
  if (!view_of(table, by_bucket) || by_bucket.kernel_dtype() != kFloat32 || by_bucket.dims != 2) return false;
  if (!view_of(buckets, by_distance) || by_bucket.shape[1] != call.nheads) return false;
  call.table = static_cast<const float*>(by_bucket.data);
  call.table_row = by_bucket.strides[0];
  call.table_column = by_bucket.strides[1];
  call.buckets = static_cast<const int32_t*>(by_distance.data);
  call.span = by_distance.shape[0] / 2;
  return true;
}

// None, or an int from low to high.
bool whole_of(handle object, int64_t low, int64_t high, bool& given, int64_t& value) {
  if (object.is_none()) return true;
  if (PyLong_CheckExact(object.ptr()) == 0) return false;
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  given = true;
  return overflow == 0 && low <= value && value <= high;
}

// The op's words of these names.
struct Words {
  handle causal, window, scale;
};

constexpr int64_t kFar = int64_t{1} << 29;  // FAR of ops/attention_checks.py

bool read_words(const Words& words, AttentionCall& call) {
  if (PyBool_Check(words.causal.ptr()) == 0) return false;
  if (!words.window.is_none()) {
    PyObject* window = words.window.ptr();
    if (PyTuple_CheckExact(window) == 0 || PyTuple_GET_SIZE(window) != 2) return false;
    if (!whole_of(PyTuple_GET_ITEM(window, 0), 0, kFar, call.has_left, call.left)) return false;
    if (!whole_of(PyTuple_GET_ITEM(window, 1), 0, kFar, call.has_right, call.right)) return false;
  }
  if (words.causal.ptr() == Py_True) {
    call.has_right = true;
    call.right = 0;
  }
  double factor = 1 / std::sqrt(call.head_dim);
  if (!words.scale.is_none() && !number_of(words.scale, factor)) return false;
  call.scale = static_cast<float>(factor);
  return true;
}

// q (batch, seqlen_q, nheads, head_dim); k and v with the same head_dim.
bool read(handle q, handle k, handle v, handle table, handle buckets, const Words& words, AttentionCall& call) {
  TensorView queries, keys, values;
  if (!view_of(q, queries)) return false;
  call.dtype = queries.kernel_dtype();
  if (call.dtype < 0 || !rows_of(q, call.dtype, queries) || !rows_of(k, call.dtype, keys)) return false;
  if (!rows_of(v, call.dtype, values)) return false;
  call.batch = queries.shape[0];
  call.seqlen_q = queries.shape[1];
  call.nheads = queries.shape[2];
  call.head_dim = call.head_dim_v = queries.shape[3];
  call.seqlen_k = keys.shape[1];
  call.nheads_kv = keys.shape[2];
  if (call.head_dim < 8 || call.head_dim > 256 || call.nheads % call.nheads_kv != 0) return false;
  if (keys.shape[0] != call.batch || keys.shape[3] != call.head_dim || !values.same_shape(keys)) return false;
  call.q = rows(queries);
  call.k = rows(keys);
  call.v = rows(values);
  return read_bias(table, buckets, call) && read_words(words, call);
}

// out like q, lse float32 (batch, nheads, seqlen_q) or None, both contiguous.
bool outputs_of(handle out, handle lse, AttentionForward& job) {
  const AttentionCall& call = job.call;
  TensorView result, sums;
  if (!rows_of(out, call.dtype, result) || !result.contiguous()) return false;
  const int64_t shape[] = {call.batch, call.seqlen_q, call.nheads, call.head_dim};
  if (!std::equal(shape, shape + 4, result.shape)) return false;
  job.out = rows(result);
  if (lse.is_none()) return true;
  const int64_t rows_of_lse[] = {call.batch, call.nheads, call.seqlen_q};
  if (!view_of(lse, sums) || sums.kernel_dtype() != kFloat32 || sums.dims != 3 || !sums.contiguous()) return false;
  if (!std::equal(rows_of_lse, rows_of_lse + 3, sums.shape)) return false;
  job.lse = static_cast<float*>(sums.data);
  job.lse_b = call.nheads * call.seqlen_q;
  job.lse_h = call.seqlen_q;
  return true;
}

bool read_all(handle q, handle k, handle v, handle key_lengths, handle query_offset, handle table, handle buckets,
              const Words& words, AttentionCall& call) {
  if (!read(q, k, v, table, buckets, words, call)) return false;
  if (!lengths_of(key_lengths, call.batch, call.seqlen_k, call.key_lengths)) return false;
  call.shift = call.seqlen_k - call.seqlen_q;
  return whole_of(query_offset, -kFar, kFar, call.own_shift, call.shift);
}

bool attention_direct(handle q, handle k, handle v, handle key_lengths, handle query_offset, handle table,
                      handle buckets, handle causal, handle window, handle scale, handle out, handle lse, int threads) {
  AttentionForward job{};
  if (!read_all(q, k, v, key_lengths, query_offset, table, buckets, {causal, window, scale}, job.call)) return false;
  if (!outputs_of(out, lse, job)) return false;
  job.call.threads = threads;
  without_lock(UNDIVIDED_PICK(attention_forward), job);
  return true;
}

// A gradient, with the shape of what it is the gradient of.
bool like(handle object, handle original, int dtype, Rows& found) {
  TensorView view, shape;
  if (!rows_of(object, dtype, view) || !view_of(original, shape) || !view.same_shape(shape)) return false;
  found = rows(view);
  return true;
}

// `count` floats, one after the other; null for None.
template <class Float>
bool floats_of(handle object, int64_t count, Float*& data) {
  TensorView view;
  if (object.is_none()) return true;
  if (!view_of(object, view) || view.kernel_dtype() != kFloat32 || !view.contiguous()) return false;
  int64_t there = 1;
  for (int i = 0; i < view.dims; ++i) there *= view.shape[i];
  data = static_cast<Float*>(view.data);
  return there == count;
}

// Gradients of what attention_direct took. lse2, delta, dq_parts, dtable and distance_sums are as `AttentionBackward` has
// them, the last three may be None.
bool attention_backward_direct(handle dout, handle q, handle k, handle v, handle out, handle lse, handle key_lengths,
                               handle query_offset, handle table, handle buckets, handle causal, handle window,
                               handle scale, handle dq, handle dk, handle dv, handle lse2, handle delta,
                               handle dq_parts, handle dtable, handle distance_sums, int64_t chunks, int threads) {
  AttentionBackward job{};
  AttentionCall& call = job.call;
  if (!read_all(q, k, v, key_lengths, query_offset, table, buckets, {causal, window, scale}, call)) return false;
  if (!like(out, q, call.dtype, job.out) || !like(dout, q, call.dtype, job.dout)) return false;
  if (!like(dq, q, call.dtype, job.dq) || !like(dk, k, call.dtype, job.dk) || !like(dv, v, call.dtype, job.dv)) {
    return false;
  }
  job.lse_h = call.seqlen_q;
  job.lse_b = call.nheads * call.seqlen_q;
  job.lse_size = call.batch * job.lse_b;
  job.chunks = chunks;
  const int64_t row = (call.head_dim + kGradientAlign - 1) / kGradientAlign * kGradientAlign;
  if (!floats_of(lse, job.lse_size, job.lse) || job.lse == nullptr) return false;
  if (!floats_of(lse2, job.lse_size, job.lse2) || job.lse2 == nullptr) return false;
  if (!floats_of(delta, job.lse_size, job.delta) || job.delta == nullptr) return false;
  if (!floats_of(dq_parts, chunks * job.lse_size * row, job.dq_parts)) return false;
  if (!dtable.is_none()) {
    TensorView by_bucket;
    if (call.table == nullptr || !view_of(table, by_bucket)) return false;
    if (!floats_of(dtable, by_bucket.shape[0] * call.nheads, job.dtable)) return false;
    const int64_t distances = 2 * call.span + 1;
    if (!floats_of(distance_sums, chunks * call.batch * call.nheads * distances, job.distance_sums)) return false;
    if (job.distance_sums == nullptr) return false;
  }
  call.threads = threads;
  without_lock(UNDIVIDED_PICK(attention_backward), job);
  return true;
}

// k and v, both or neither: (batch, seqlen_new, nheads_kv, head_dim).
bool attention_decode_direct(handle q, handle k_cache, handle v_cache, handle cache_lengths, handle k, handle v,
                             handle table, handle buckets, handle causal, handle window, handle scale, handle out,
                             int threads) {
  AttentionDecode job{};
  AttentionCall& call = job.attention.call;
  if (!read(q, k_cache, v_cache, table, buckets, {causal, window, scale}, call)) return false;
  if (!outputs_of(out, pybind11::none(), job.attention)) return false;
  call.threads = threads;
  if (k.is_none() != v.is_none()) return false;
  if (!k.is_none()) {
    TensorView keys, values, cache;
    if (!rows_of(k, call.dtype, keys) || !rows_of(v, call.dtype, values) || !values.same_shape(keys)) return false;
    if (keys.shape[0] != call.batch || keys.shape[2] != call.nheads_kv || keys.shape[3] != call.head_dim) return false;
    if (!view_of(k_cache, cache) || cache.expanded() || !view_of(v_cache, cache) || cache.expanded()) return false;
    job.k = rows(keys);
    job.v = rows(values);
    job.seqlen_new = keys.shape[1];
  }
  if (!lengths_of(cache_lengths, call.batch, call.seqlen_k - job.seqlen_new, job.cache_lengths)) return false;
  if (job.cache_lengths == nullptr) return false;
  job.block_size = call.seqlen_k;
  without_lock(UNDIVIDED_PICK(attention_decode), job);
  return true;
}

}  // namespace

UNDIVIDED_BINDINGS(attention_direct, module) {
  module.def("attention_direct", &attention_direct);
  module.def("attention_backward_direct", &attention_backward_direct);
  module.def("attention_decode_direct", &attention_decode_direct);
}
