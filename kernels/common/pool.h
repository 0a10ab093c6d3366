// Memory for large results, kept when they are freed and handed out again.
//
// A system gives fresh memory page by page, each cleared first: for results of some megabytes that
// takes as long as a good part of the work on them.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace workbench {

class Pool final : public c10::Allocator {
 public:
  static constexpr size_t kPage = size_t(2) << 20;     // a large page
  static constexpr size_t kSmallest = size_t(1) << 20;  // below, memory is not fresh anyway
  static constexpr size_t kMostIdle = size_t(256) << 20;

  // never destroyed: tensors may outlive everything else
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }
  c10::DataPtr allocate(size_t n) override {
    const size_t bytes = (n + kPage - 1) / kPage * kPage;
    Block* block = found(bytes);
    if (!block) block = fresh(bytes);
    return {block->data, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t n) const override {
    default_copy_data(to, from, n);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  // the last one that was given back: more of it is in a cache
  Block* found(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = idle_.size(); i-- > 0;) {
      if (idle_[i]->bytes != bytes) continue;
      Block* block = idle_[i];
      idle_.erase(idle_.begin() + i);
      idle_bytes_ -= bytes;
      return block;
    }
    return nullptr;
  }
  static Block* fresh(size_t bytes) {
    void* data = ::operator new(bytes, std::align_val_t(kPage));
#if defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return new Block{data, bytes};
  }
  static void give_back(void* context) {
    Pool& pool = instance();
    std::vector<Block*> too_many;
    {
      const std::lock_guard<std::mutex> lock(pool.mutex_);
      pool.idle_.push_back(static_cast<Block*>(context));
      pool.idle_bytes_ += pool.idle_.back()->bytes;
      while (pool.idle_bytes_ > kMostIdle) {  // the largest go: the fewest that are cleared again
        const auto largest =
            std::max_element(pool.idle_.begin(), pool.idle_.end(),
                             [](const Block* a, const Block* b) { return a->bytes < b->bytes; });
        too_many.push_back(*largest);
        pool.idle_bytes_ -= (*largest)->bytes;
        pool.idle_.erase(largest);
      }
    }
    for (Block* block : too_many) {
      ::operator delete(block->data, std::align_val_t(kPage));
      delete block;
    }
  }

  std::mutex mutex_;
  std::vector<Block*> idle_;
  size_t idle_bytes_ = 0;
};

// An empty tensor on the CPU, its memory from the pool where that is large.
inline at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType type) {
  int64_t bytes = int64_t(c10::elementSize(type));
  for (const int64_t size : sizes) bytes *= size;
  if (bytes < int64_t(Pool::kSmallest)) return at::detail::empty_cpu(sizes, type);
  constexpr c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  return at::detail::empty_generic(sizes, &Pool::instance(), cpu, type, std::nullopt);
}

}  // namespace workbench
