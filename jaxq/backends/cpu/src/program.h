// The program of a region: a list of numbers that jaxq/backends/cpu/program.py writes, read here with every bound checked.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace jaxq {

// Becomes an XLA FFI error: the call was made with another program, or other buffers, than this library takes.
struct Invalid : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Buffer {
  uint8_t* data;
  int64_t size;  // bytes
};

constexpr int64_t kProgramVersion = 10;

class Reader {
 public:
  Reader(const int64_t* begin, size_t size, std::vector<Buffer> buffers)
      : next_(begin), end_(begin + size), buffers_(std::move(buffers)) {}

  int64_t number() {
    if (next_ == end_) throw Invalid("the program ends early");
    return *next_++;
  }

  int64_t number(int64_t least, int64_t most) {
    const int64_t value = number();
    if (value < least || value > most) throw Invalid("the program holds " + std::to_string(value) + ", out of range");
    return value;
  }

  // A size or a stride.
  int64_t size() { return number(0, int64_t{1} << 40); }
  int64_t positive() { return number(1, int64_t{1} << 40); }
  DType dtype() { return static_cast<DType>(number(0, 2)); }
  DType bytes_dtype() { return static_cast<DType>(number(0, 1)); }

  float real() {
    const auto bits = static_cast<uint32_t>(number(0, 0xFFFFFFFF));
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  bool done() const { return next_ == end_; }

  // A place in a buffer: the buffer's number and an offset. `check` follows once its extent is known.
  struct Place {
    uint8_t* data = nullptr;
    int64_t room = 0;  // bytes from there to the buffer's end
    explicit operator bool() const { return data != nullptr; }
  };

  // Buffer -1: none.
  Place place(bool may_lack = false) {
    const int64_t index = number(may_lack ? -1 : 0, static_cast<int64_t>(buffers_.size()) - 1), offset = size();
    if (index < 0) return {};
    const Buffer& buffer = buffers_[static_cast<size_t>(index)];
    if (offset > buffer.size) throw Invalid("a value begins behind the end of its buffer");
    return {buffer.data + offset, buffer.size - offset};
  }

  const float* floats(int64_t n) {
    const Place p = place();
    check(p, n * 4, DType::f32);
    return reinterpret_cast<const float*>(p.data);
  }

  const float* optional_floats(int64_t n) {
    const Place p = place(true);
    if (p) check(p, n * 4, DType::f32);
    return reinterpret_cast<const float*>(p.data);
  }

  static void check(const Place& place, int64_t bytes, DType dtype = DType::u8) {
    if (bytes > place.room) {
      throw Invalid("a value of " + std::to_string(bytes) + " bytes lies in " + std::to_string(place.room));
    }
    if (dtype == DType::f32 && reinterpret_cast<uintptr_t>(place.data) % 4) throw Invalid("a float value is misaligned");
  }

  // True where some buffer holds those bytes.
  bool holds(const uint8_t* data, int64_t bytes) const {
    for (const Buffer& buffer : buffers_) {  // one may begin where another ends
      const uint8_t* const end = buffer.data + buffer.size;
      if (data >= buffer.data && data <= end && bytes <= end - data) return true;
    }
    return false;
  }

 private:
  const int64_t* next_;
  const int64_t* end_;
  std::vector<Buffer> buffers_;
};

// Bytes from the first value to behind the last of `rows` rows, `last` bytes each, `stride` apart.
inline int64_t extent(int64_t rows, int64_t stride, int64_t last) {
  if (rows == 0 || last == 0) return 0;
  const __int128 total = static_cast<__int128>(rows - 1) * stride + last;
  if (total > (int64_t{1} << 50)) throw Invalid("a value is too large");
  return static_cast<int64_t>(total);
}

// Of rows of which (r / repeat) % period is that of output row r, those that `rows` output rows take.
inline int64_t rows_seen(int64_t rows, int64_t repeat, int64_t period) {
  return std::min((rows + repeat - 1) / repeat, period);
}

inline void demand(bool holds) {
  if (!holds) throw Invalid("an operation has operands of other dtypes than it takes");
}

}  // namespace jaxq
