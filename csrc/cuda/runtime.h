// CUDA's runtime on the host: errors, the current device, and the one function of the driver that is needed.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace undivided::cuda {

inline void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(result));
}
#define CHECK(call) ::undivided::cuda::check(call, #call)

// Makes a device the current one of this thread for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    CHECK(cudaGetDevice(&before_));
    if (before_ != device) CHECK(cudaSetDevice(device));
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

// Looked up through the runtime, so that a machine without a driver can load this module.
inline TensorMapEncoder tensor_map_encoder() {
  static const TensorMapEncoder found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status));
    if (function == nullptr || status != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("the driver has no cuTensorMapEncodeTiled; it must be one for CUDA 12.0 or later");
    }
    return reinterpret_cast<TensorMapEncoder>(function);
  }();
  return found;
}

// The text of an error of the encoder.
inline std::string refused_map(const uint64_t (&size)[4], const uint64_t (&stride)[4], CUresult result) {
  std::string text = "cuTensorMapEncodeTiled refuses a tensor of sizes";
  for (uint64_t each : size) text += " " + std::to_string(each);
  text += " and strides of bytes";
  for (uint64_t each : stride) text += " " + std::to_string(each);
  return text + ": error " + std::to_string(static_cast<int>(result));
}

}  // namespace undivided::cuda
