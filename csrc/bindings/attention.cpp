// Attention. A call has some sixty words, most of them absent: they come by name, and what is not given is off.
#include "../cpu/attention.h"

#include <string>
#include <unordered_map>

#include "registry.h"

namespace {

using namespace undivided;

// Reads keyword arguments by name; in the end none may be left over.
class Words {
 public:
  explicit Words(const pybind11::kwargs& words) : words_(words) {}

  template <class T>
  T get(const char* name, T otherwise) {
    PyObject* value = find(name);
    return value == nullptr ? otherwise : pybind11::handle(value).cast<T>();
  }
  template <class T>
  T* address(const char* name) {
    return pointer<T>(get<uintptr_t>(name, 0));
  }
  // (address, stride of the batch, of the sequence, of the heads)
  Rows rows(const char* name) {
    int64_t v[4];
    return numbers(name, v, 4) ? Rows{reinterpret_cast<void*>(v[0]), v[1], v[2], v[3]} : Rows{};
  }
  // (address, strides of batch, heads, queries, keys, dtype)
  Plane plane(const char* name) {
    int64_t v[6];
    if (!numbers(name, v, 6)) return Plane{};
    return Plane{reinterpret_cast<void*>(v[0]), v[1], v[2], v[3], v[4], static_cast<int>(v[5])};
  }
  void done() const {
    if (read_ != words_.size()) throw pybind11::type_error("attention: a keyword that the extension does not know");
  }

 private:
  // What was given under that name, or null. Names as Python has them are kept: the dictionary would make each anew.
  PyObject* find(const char* name) {
    static auto* names = new std::unordered_map<const char*, PyObject*>;
    PyObject*& key = (*names)[name];
    if (key == nullptr) key = PyUnicode_InternFromString(name);
    PyObject* value = PyDict_GetItemWithError(words_.ptr(), key);
    read_ += value != nullptr;
    return value;
  }

  bool numbers(const char* name, int64_t* out, size_t count) {
    PyObject* value = find(name);
    if (value == nullptr) return false;
    const auto given = pybind11::reinterpret_borrow<pybind11::tuple>(value);
    if (given.size() != count) throw pybind11::type_error(std::string("attention: wrong number of values in ") + name);
    for (size_t i = 0; i < count; ++i) out[i] = given[i].cast<int64_t>();
    return true;
  }

  const pybind11::kwargs& words_;
  size_t read_ = 0;
};

AttentionCall read_call(Words& w) {
  AttentionCall call{};
  call.q = w.rows("q");
  call.k = w.rows("k");
  call.v = w.rows("v");
  call.dtype = w.get<int>("dtype", 0);
  call.batch = w.get<int64_t>("batch", 0);
  call.nheads = w.get<int64_t>("nheads", 0);
  call.nheads_kv = w.get<int64_t>("nheads_kv", 0);
  call.head_dim = w.get<int64_t>("head_dim", 0);
  call.head_dim_v = w.get<int64_t>("head_dim_v", 0);
  call.seqlen_q = w.get<int64_t>("seqlen_q", 0);
  call.seqlen_k = w.get<int64_t>("seqlen_k", 0);
  call.key_lengths = w.address<int32_t>("key_lengths");
  call.query_lengths = w.address<int32_t>("query_lengths");
  call.cu_q = w.address<int32_t>("cu_q");
  call.cu_k = w.address<int32_t>("cu_k");
  call.shifts = w.address<int32_t>("shifts");
  call.own_shift = w.get<bool>("own_shift", false);
  call.shift = w.get<int64_t>("shift", 0);
  call.has_left = w.get<bool>("has_left", false);
  call.has_right = w.get<bool>("has_right", false);
  call.left = w.get<int64_t>("left", 0);
  call.right = w.get<int64_t>("right", 0);
  call.bias = w.plane("bias");
  call.mask = w.plane("mask");
  call.table = w.address<float>("table");
  call.table_row = w.get<int64_t>("table_row", 0);
  call.table_column = w.get<int64_t>("table_column", 0);
  call.buckets = w.address<int32_t>("buckets");
  call.span = w.get<int64_t>("span", 0);
  call.slopes = w.address<float>("slopes");
  call.slopes_b = w.get<int64_t>("slopes_b", 0);
  call.slopes_h = w.get<int64_t>("slopes_h", 0);
  call.sinks = w.address<float>("sinks");
  call.scale = w.get<float>("scale", 1.0F);
  call.softcap = w.get<float>("softcap", 0.0F);
  call.dropout = w.get<bool>("dropout", false);
  call.state = w.get<uint32_t>("state", 0);
  call.threshold = w.get<uint32_t>("threshold", 0);
  call.keep_scale = w.get<float>("keep_scale", 1.0F);
  call.threads = w.get<int>("threads", 1);
  return call;
}

void forward(const pybind11::kwargs& words) {
  Words w(words);
  AttentionForward job{};
  job.call = read_call(w);
  job.out = w.rows("out");
  job.lse = w.address<float>("lse");
  job.lse_b = w.get<int64_t>("lse_b", 0);
  job.lse_h = w.get<int64_t>("lse_h", 0);
  job.in_tiles = w.get<bool>("in_tiles", false);
  w.done();
  pybind11::gil_scoped_release release;
  UNDIVIDED_PICK(attention_forward)(job);
}

void backward(const pybind11::kwargs& words) {
  Words w(words);
  AttentionBackward job{};
  job.call = read_call(w);
  job.out = w.rows("out");
  job.dout = w.rows("dout");
  job.dq = w.rows("dq");
  job.dk = w.rows("dk");
  job.dv = w.rows("dv");
  job.lse = w.address<float>("lse");
  job.dlse = w.address<float>("dlse");
  job.lse2 = w.address<float>("lse2");
  job.delta = w.address<float>("delta");
  job.lse_b = w.get<int64_t>("lse_b", 0);
  job.lse_h = w.get<int64_t>("lse_h", 0);
  job.lse_size = w.get<int64_t>("lse_size", 0);
  job.chunks = w.get<int64_t>("chunks", 1);
  job.dq_parts = w.address<float>("dq_parts");
  job.dbias = w.plane("dbias");
  job.dbias_chunk = w.get<int64_t>("dbias_chunk", 0);
  job.sum_batch = w.get<bool>("sum_batch", false);
  job.sum_heads = w.get<bool>("sum_heads", false);
  job.distance_sums = w.address<float>("distance_sums");
  job.dtable = w.address<float>("dtable");
  job.sink_sums = w.address<float>("sink_sums");
  job.dsinks = w.address<float>("dsinks");
  w.done();
  pybind11::gil_scoped_release release;
  UNDIVIDED_PICK(attention_backward)(job);
}

}  // namespace

UNDIVIDED_BINDINGS(attention, module) {
  module.def("attention_forward", &forward);
  module.def("attention_backward", &backward);
}
