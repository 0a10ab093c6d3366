// Functions of single numbers, free of branches so that loops over them become vectors, and rows of
// (batch, time, width) tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace workbench {

// what numbers are computed in: bfloat16 is only how they lie in memory
template <class T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Within two units in the last place; NaN stays NaN. Beyond 60 as at 60: what
// is multiplied with such an end must not become a denormal number, which takes a hundred times as
// long.
inline float exp_of(float x) {
  x = x < -60.0f ? -60.0f : x;
  x = x > 60.0f ? 60.0f : x;
  // adding and taking away 1.5 * 2^23 rounds to a whole number
  const float n = (x * 1.44269504089f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}
inline double exp_of(double x) { return std::exp(x); }

// 1 / x of a positive number. Processors divide far slower than they multiply: a guess from the bits,
// wrong by at most 7 %, and three steps of Newton's that square the error.
inline float inverse_of(float x) {
  float r = std::bit_cast<float>(0x7EF60000 - std::bit_cast<int32_t>(x));
  r = r * (2.0f - x * r);
  r = r * (2.0f - x * r);
  return r + r * (1.0f - x * r);
}
inline double inverse_of(double x) { return 1 / x; }

template <class T>
inline T sigmoid_of(T x) {
  return inverse_of(T(1) + exp_of(-x));
}

inline float tanh_of(float x) {
  // near zero the quotient below would lose digits to cancellation
  const float s = x * x;
  float near = -5.70498872745e-3f;
  near = near * s + 2.06390887954e-2f;
  near = near * s - 5.37397155531e-2f;
  near = near * s + 1.33314422036e-1f;
  near = near * s - 3.33332819422e-1f;
  near = near * s * x + x;
  const float far = 1.0f - 2.0f * inverse_of(exp_of(2.0f * x) + 1.0f);
  return s < 0.390625f ? near : far;
}
inline double tanh_of(double x) { return std::tanh(x); }

// Rows of a tensor (batch, time, width): the width is contiguous, the others have any stride.
template <class T>
class Lines {
 public:
  explicit Lines(const at::Tensor& x) : base_(pointer(x)), batch_(x.stride(0)), time_(x.stride(1)) {}
  T* operator()(int64_t b, int64_t t) const { return base_ + b * batch_ + t * time_; }

 private:
  static T* pointer(const at::Tensor& x) {
    if constexpr (std::is_const_v<T>) return x.const_data_ptr<std::remove_const_t<T>>();
    else return x.mutable_data_ptr<T>();
  }

  T* base_;
  int64_t batch_, time_;
};

// Run a function template for the element type of x.
template <class Work>
auto for_stored_type(const at::Tensor& x, const Work& work) {
  switch (x.scalar_type()) {
    case at::kFloat: return work(float{});
    case at::kDouble: return work(double{});
    case at::kBFloat16: return work(at::BFloat16{});
    default: TORCH_CHECK(false, "got numbers of type ", x.scalar_type(), ", expected float, double or bfloat16");
  }
}

}  // namespace workbench
