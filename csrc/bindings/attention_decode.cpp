// Attention over caches, a call of a few microseconds: everything by position. Addresses of absent tensors are 0.
#include "../cpu/attention.h"

#include "registry.h"

namespace {

using namespace undivided;

// Address and strides of (batch, seqlen, nheads, head_dim), the last of which is 1.
Rows rows(uintptr_t data, int64_t b, int64_t s, int64_t h) { return Rows{pointer<void>(data), b, s, h}; }

Rows packed_rows(uintptr_t data, int64_t seqlen, int64_t nheads, int64_t head_dim) {
  return rows(data, seqlen * nheads * head_dim, nheads * head_dim, head_dim);
}

}  // namespace

UNDIVIDED_BINDINGS(attention_decode, module) {
  // A bound of the window below 0 is none, a softcap of 0 is off. seqlen_k is what a row of the caches can hold.
  module.def("attention_decode", [](uintptr_t q, int64_t q_b, int64_t q_s, int64_t q_h, int64_t,                //
                                    uintptr_t k_cache, int64_t kc_b, int64_t kc_s, int64_t kc_h, int64_t,       //
                                    uintptr_t v_cache, int64_t vc_b, int64_t vc_s, int64_t vc_h, int64_t,       //
                                    uintptr_t k, int64_t k_b, int64_t k_s, int64_t k_h, int64_t,                //
                                    uintptr_t v, int64_t v_b, int64_t v_s, int64_t v_h, int64_t,                //
                                    uintptr_t out, uintptr_t lse, uintptr_t cache_lengths, int dtype,           //
                                    int64_t batch, int64_t seqlen_q, int64_t seqlen_new, int64_t seqlen_k,      //
                                    int64_t nheads, int64_t nheads_kv, int64_t head_dim, int64_t head_dim_v,    //
                                    uintptr_t blocks, int64_t blocks_b, int64_t block_size, float scale,        //
                                    int64_t left, int64_t right, float softcap, uintptr_t sinks,                //
                                    uintptr_t table, int64_t table_row, int64_t table_column,                   //
                                    uintptr_t buckets, int64_t span, uintptr_t slopes, int64_t slopes_b,        //
                                    int64_t slopes_h, int threads) {
    AttentionDecode job{};
    AttentionCall& call = job.attention.call;
    call.q = rows(q, q_b, q_s, q_h);
    call.k = rows(k_cache, kc_b, kc_s, kc_h);
    call.v = rows(v_cache, vc_b, vc_s, vc_h);
    job.k = rows(k, k_b, k_s, k_h);
    job.v = rows(v, v_b, v_s, v_h);
    job.attention.out = packed_rows(out, seqlen_q, nheads, head_dim_v);
    job.attention.lse = pointer<float>(lse);
    job.attention.lse_b = nheads * seqlen_q;
    job.attention.lse_h = seqlen_q;
    job.cache_lengths = pointer<int32_t>(cache_lengths);
    job.seqlen_new = seqlen_new;
    job.blocks = pointer<int32_t>(blocks);
    job.blocks_b = blocks_b;
    job.block_size = block_size;
    call.dtype = dtype;
    call.batch = batch;
    call.seqlen_q = seqlen_q;
    call.seqlen_k = seqlen_k;
    call.nheads = nheads;
    call.nheads_kv = nheads_kv;
    call.head_dim = head_dim;
    call.head_dim_v = head_dim_v;
    call.scale = scale;
    call.has_left = left >= 0;
    call.left = left;
    call.has_right = right >= 0;
    call.right = right;
    call.softcap = softcap;
    call.sinks = pointer<float>(sinks);
    call.table = pointer<float>(table);
    call.table_row = table_row;
    call.table_column = table_column;
    call.buckets = pointer<int32_t>(buckets);
    call.span = span;
    call.slopes = pointer<float>(slopes);
    call.slopes_b = slopes_b;
    call.slopes_h = slopes_h;
    call.threads = threads;
    without_lock(UNDIVIDED_PICK(attention_decode), job);
  });
}
