// Attention, over keys or over caches of them, straight from the op's arguments: what is returned says whether it ran;
// where it did not, a check in Python must look.
#include <algorithm>
#include <cmath>

#include "../cpu/attention.h"
#include "../cpu/dtype.h"

#include "exchange.h"
#include "registry.h"

namespace {

using namespace undivided;
using pybind11::handle;

// (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim), anywhere but for the last.
bool rows_of(handle object, int dtype, int dims, TensorView& view) {
  return view_of(object, view) && view.dims == dims && view.kernel_dtype() == dtype && view.strides[dims - 1] == 1;
}

Rows rows(const TensorView& view) {
  const int64_t* last = view.strides + view.dims;
  return {view.data, view.dims == 4 ? view.strides[0] : 0, last[-3], last[-2]};
}

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

// q (batch, seqlen_q, nheads, head_dim); k and v with the same head_dim; all without the batch where dims is 3.
bool read(handle q, handle k, handle v, handle table, handle buckets, const Words& words, int dims,
          AttentionCall& call) {
  TensorView queries, keys, values;
  if (!view_of(q, queries)) return false;
  call.dtype = queries.kernel_dtype();
  if (call.dtype < 0 || !rows_of(q, call.dtype, dims, queries) || !rows_of(k, call.dtype, dims, keys)) return false;
  if (!rows_of(v, call.dtype, dims, values) || !values.same_shape(keys)) return false;
  const int64_t *of_q = queries.shape + dims, *of_k = keys.shape + dims;
  if (dims == 4 && of_k[-4] != of_q[-4]) return false;
  call.batch = dims == 4 ? of_q[-4] : 1;
  call.seqlen_q = of_q[-3];
  call.nheads = of_q[-2];
  call.head_dim = call.head_dim_v = of_q[-1];
  call.seqlen_k = of_k[-3];
  call.nheads_kv = of_k[-2];
  if (call.head_dim < 8 || call.head_dim > 256 || call.nheads % call.nheads_kv != 0) return false;
  if (of_k[-1] != call.head_dim) return false;
  call.q = rows(queries);
  call.k = rows(keys);
  call.v = rows(values);
  return read_bias(table, buckets, call) && read_words(words, call);
}

// cu_seqlens int32 (batch + 1,), from 0 to total, or to less where `rest` may be nobody's; given: the longest sequence,
// or more, or None. Then `length` is the longest.
bool offsets_of(handle object, handle given, int64_t total, bool rest, const int32_t*& offsets, int64_t& batch,
                int64_t& length) {
  TensorView view;
  if (!view_of(object, view) || !view.is_int32() || view.dims != 1 || !view.contiguous()) return false;
  offsets = static_cast<const int32_t*>(view.data);
  batch = view.shape[0] - 1;
  if (batch == 0 || offsets[0] != 0 || offsets[batch] > total || (!rest && offsets[batch] != total)) return false;
  length = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (offsets[b + 1] < offsets[b]) return false;
    length = std::max<int64_t>(length, offsets[b + 1] - offsets[b]);
  }
  bool there = false;
  int64_t longest = 0;
  return whole_of(given, length, INT64_MAX, there, longest);
}

// (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
bool read_packed(handle packed, AttentionCall& call) {
  PyObject* tuple = packed.ptr();
  int64_t batch_of_keys = 0;
  const auto at = [&](int i) { return handle(PyTuple_GET_ITEM(tuple, i)); };
  if (!offsets_of(at(0), at(2), call.seqlen_q, false, call.cu_q, call.batch, call.seqlen_q)) return false;
  if (!offsets_of(at(1), at(3), call.seqlen_k, true, call.cu_k, batch_of_keys, call.seqlen_k)) return false;
  return call.batch == batch_of_keys;
}

// What the caller knows to be (state, threshold, keep_scale), as in AttentionCall.
void read_dropout(handle dropout, AttentionCall& call) {
  if (dropout.is_none()) return;
  const auto words = pybind11::reinterpret_borrow<pybind11::tuple>(dropout);
  call.dropout = true;
  call.state = words[0].cast<uint32_t>();
  call.threshold = words[1].cast<uint32_t>();
  call.keep_scale = words[2].cast<float>();
}

// All that stands between the tensors and what is made, in the order of the bindings' arguments.
struct Options {
  handle key_lengths, query_offset, packed, table, buckets;
  Words words;
  handle dropout;
};

// The rows of an lse, (batch, nheads, seqlen_q) or (nheads, total).
struct Sums {
  int64_t b, h, size;
};

bool read_all(handle q, handle k, handle v, const Options& options, AttentionCall& call, Sums& sums) {
  const bool packed = !options.packed.is_none();
  if (!read(q, k, v, options.table, options.buckets, options.words, packed ? 3 : 4, call)) return false;
  sums.h = call.seqlen_q;
  sums.b = packed ? 0 : call.nheads * call.seqlen_q;
  sums.size = call.batch * call.nheads * call.seqlen_q;
  read_dropout(options.dropout, call);
  if (packed) {
    if (!options.key_lengths.is_none() || !options.query_offset.is_none() || !read_packed(options.packed, call)) {
      return false;
    }
    call.shift = call.seqlen_k - call.seqlen_q;
    return true;
  }
  if (!lengths_of(options.key_lengths, call.batch, call.seqlen_k, call.key_lengths)) return false;
  call.shift = call.seqlen_k - call.seqlen_q;
  return whole_of(options.query_offset, -kFar, kFar, call.own_shift, call.shift);
}

// With the dtype and the shape of `original`, as an output or a gradient.
bool like(handle object, handle original, int dtype, Rows& found) {
  TensorView view, shape;
  if (!view_of(original, shape) || !rows_of(object, dtype, shape.dims, view) || !view.same_shape(shape)) return false;
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

// The lengths (seqlen_q, seqlen_k), in a packed batch the longest; None where it did not run. out like q; lse float32
// (batch, nheads, seqlen_q), packed (nheads, total), or None.
pybind11::object attention_direct(handle q, handle k, handle v, handle key_lengths, handle query_offset, handle packed,
                                  handle table, handle buckets, handle causal, handle window, handle scale,
                                  handle dropout, handle out, handle lse, int threads) {
  AttentionForward job{};
  Sums sums{};
  const Options options{key_lengths, query_offset, packed, table, buckets, {causal, window, scale}, dropout};
  if (!read_all(q, k, v, options, job.call, sums)) return pybind11::none();
  if (!like(out, q, job.call.dtype, job.out) || !floats_of(lse, sums.size, job.lse)) return pybind11::none();
  job.lse_b = sums.b;
  job.lse_h = sums.h;
  job.call.threads = threads;
  without_lock(UNDIVIDED_PICK(attention_forward), job);
  return pybind11::make_tuple(job.call.seqlen_q, job.call.seqlen_k);
}

// Gradients of what attention_direct took. lse2, delta, dq_parts, dtable and distance_sums are as `AttentionBackward` has
// them, the last three may be None.
bool attention_backward_direct(handle dout, handle q, handle k, handle v, handle out, handle lse, handle key_lengths,
                               handle query_offset, handle packed, handle table, handle buckets, handle causal,
                               handle window, handle scale, handle dropout, handle dq, handle dk, handle dv,
                               handle lse2, handle delta, handle dq_parts, handle dtable, handle distance_sums,
                               int64_t chunks, int threads) {
  AttentionBackward job{};
  AttentionCall& call = job.call;
  Sums sums{};
  const Options options{key_lengths, query_offset, packed, table, buckets, {causal, window, scale}, dropout};
  if (!read_all(q, k, v, options, call, sums)) return false;
  if (!like(out, q, call.dtype, job.out) || !like(dout, q, call.dtype, job.dout)) return false;
  if (!like(dq, q, call.dtype, job.dq) || !like(dk, k, call.dtype, job.dk) || !like(dv, v, call.dtype, job.dv)) {
    return false;
  }
  job.lse_b = sums.b;
  job.lse_h = sums.h;
  job.lse_size = sums.size;
  job.chunks = chunks;
  const int64_t row = (call.head_dim + kGradientAlign - 1) / kGradientAlign * kGradientAlign;
  if (!floats_of(lse, sums.size, job.lse) || job.lse == nullptr) return false;
  if (!floats_of(lse2, sums.size, job.lse2) || job.lse2 == nullptr) return false;
  if (!floats_of(delta, sums.size, job.delta) || job.delta == nullptr) return false;
  if (!floats_of(dq_parts, chunks * sums.size * row, job.dq_parts)) return false;
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
  if (!read(q, k_cache, v_cache, table, buckets, {causal, window, scale}, 4, call)) return false;
  if (!like(out, q, call.dtype, job.attention.out)) return false;
  call.threads = threads;
  if (k.is_none() != v.is_none()) return false;
  if (!k.is_none()) {
    TensorView keys, values, cache;
    if (!rows_of(k, call.dtype, 4, keys) || !rows_of(v, call.dtype, 4, values) || !values.same_shape(keys)) return false;
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
