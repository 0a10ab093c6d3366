// Tensors of layout (B, T, H, width) as rows of numbers, and work shared out over their heads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <type_traits>

#include "panel.h"

namespace workbench {

// One head's rows over time. The width is contiguous; batch, time and heads may have any stride.
template <class T>
struct Rows {
  T* base;
  int64_t stride;
  T* operator[](int64_t t) const { return base + t * stride; }
};

template <class T>
class Heads {
 public:
  explicit Heads(const at::Tensor& x)
      : base_(pointer(x)), batch_(x.stride(0)), time_(x.stride(1)), head_(x.stride(2)) {}
  Rows<T> operator()(int64_t b, int64_t h) const { return {base_ + b * batch_ + h * head_, time_}; }

 private:
  static T* pointer(const at::Tensor& x) {
    if constexpr (std::is_const_v<T>) return x.const_data_ptr<std::remove_const_t<T>>();
    else return x.mutable_data_ptr<T>();
  }

  T* base_;
  int64_t batch_, time_, head_;
};

inline at::Tensor with_contiguous_width(const at::Tensor& x) {
  return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

struct Sizes {
  int64_t B, T, H, F, V;
};

// The contract of the ops, checked for callers that do not come through their Python front.
inline Sizes check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& state) {
  TORCH_CHECK(q.dim() == 4 && state.dim() == 4, "got queries with ", q.dim(), " and a state with ",
              state.dim(), " dimensions, expected 4 for both");
  const Sizes s{q.size(0), q.size(1), q.size(2), q.size(3), state.size(3)};
  TORCH_CHECK(k.sizes() == q.sizes(), "got keys of shape ", k.sizes(), ", expected ", q.sizes());
  TORCH_CHECK(state.size(0) == s.B && state.size(1) == s.H && state.size(2) == s.F,
              "got a state of shape ", state.sizes(), " beside queries of shape ", q.sizes());
  return s;
}

inline void check_like(const at::Tensor& x, const at::Tensor& q, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(x.sizes() == shape, "got ", name, " of shape ", x.sizes(), ", expected ", shape);
  TORCH_CHECK(x.scalar_type() == q.scalar_type() && x.device() == q.device(), "got ", name, " of type ",
              x.scalar_type(), " on ", x.device(), ", expected ", q.scalar_type(), " on ", q.device());
}

// Run a function template for the element type of x.
template <class Work>
auto for_type(const at::Tensor& x, const Work& work) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
              "got numbers of type ", x.scalar_type(), ", expected float or double");
  return x.scalar_type() == at::kFloat ? work(float{}) : work(double{});
}

// Call work(b, h, panel, first column) for every head and every panel of its matrix.
template <class T, class Work>
void for_each_panel(const Sizes& s, const Cut<T>& cut, const Work& work) {
  const int64_t panels = cut.panels();
  // below some 50 microseconds of work a second thread costs more than it brings
  const int64_t grain = 1 + (1 << 19) / (1 + s.T * cut.scratch());
  at::parallel_for(0, s.B * s.H * panels, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(cut.scratch());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / panels;
      with_panel(cut, i % panels, scratch.get(), [&](auto panel, int64_t first) {
        work(head / s.H, head % s.H, panel, first);
      });
    }
  });
}

}  // namespace workbench
