// Memory for what a call needs beside its buffers. It is kept from call to call: fresh pages cost more than the kernels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace jaxq {

class Block {
 public:
  Block() = default;
  explicit Block(int64_t size) : size_(size) {
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, (static_cast<size_t>(size) + 127) / 64 * 64));
    if (!data_) throw std::bad_alloc();
  }
  Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Block() { std::free(data_); }
  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

// The values inside a region, for one block of a call. A few blocks wait for the next calls, whichever threads make them.
class Arena {
 public:
  explicit Arena(int64_t size) {
    {
      std::lock_guard<std::mutex> lock(mutex());
      auto& blocks = waiting();
      for (auto& block : blocks) {
        if (block.size() < size) continue;
        block_ = std::move(block);
        std::swap(block, blocks.back());
        blocks.pop_back();
        return;
      }
    }
    block_ = Block(size);
  }
  ~Arena() {
    std::lock_guard<std::mutex> lock(mutex());
    auto& blocks = waiting();
    if (blocks.size() >= kept()) blocks.erase(blocks.begin());
    blocks.push_back(std::move(block_));
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* data() const { return block_.data(); }

 private:
  // As many as calls and threads may need at a time. Asked once: the answer may come from a file.
  static size_t kept() {
    static const size_t count = std::max<size_t>(4, std::thread::hardware_concurrency());
    return count;
  }
  // Never destroyed: a thread of XLA's may still be in a call when the process ends.
  static std::mutex& mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
  }
  static std::vector<Block>& waiting() {
    static auto* blocks = new std::vector<Block>;
    return *blocks;
  }
  Block block_;
};

// A thread's own memory for a task, of that number; valid until the thread asks for that number again.
template <int number = 0>
uint8_t* thread_scratch(int64_t size) {
  thread_local Block block;
  if (block.size() < size) block = Block(size);
  return block.data();
}

}  // namespace jaxq
