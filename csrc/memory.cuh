// Loads and stores of several bytes at once, and of rows of elements that may end early.
#pragma once

#include <cstring>

#include "device.cuh"

namespace fastrnn {

constexpr int ROW_ELEMENTS = 8;  // of 16 bits: what one load or store moves

// `from` is aligned to the size of what is loaded, `to` to that of what is stored.
template <class Value>
DEVICE Value load(const void* from) {
  Value v;
  memcpy(&v, __builtin_assume_aligned(from, sizeof(Value)), sizeof(Value));
  return v;
}

template <class Value>
DEVICE void store(void* to, const Value& v) {
  memcpy(__builtin_assume_aligned(to, sizeof(Value)), &v, sizeof(Value));
}

// Elements 0 and 1 of `from`, zero from `count` on, which may be below zero. Aligned, `from` is so to 4 bytes and
// `count` is even.
DEVICE uint32_t load_pair(const uint16_t* from, int count, bool aligned) {
  if (aligned) return count > 0 ? load<uint32_t>(from) : 0;
  const uint32_t low = count > 0 ? from[0] : 0, high = count > 1 ? from[1] : 0;
  return low | high << 16;
}

// ROW_ELEMENTS elements of `from`, zero from `count` on, which may be below zero. Aligned, `from` is so to 16 bytes and
// `count` is a multiple of ROW_ELEMENTS.
DEVICE word4 load_row(const uint16_t* from, int count, bool aligned) {
  word4 v = {};
  if (aligned) {
    if (count > 0) v = load<word4>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v.x[i] = load_pair(from + 2 * i, count - 2 * i, false);
  }
  return v;
}

// The first `count` elements of a row to `to`, as load_row.
DEVICE void store_row(uint16_t* to, const word4& v, int count, bool aligned) {
  if (aligned) {
    if (count > 0) store(to, v);
  } else {
#pragma unroll
    for (int i = 0; i < ROW_ELEMENTS; ++i) {
      if (i < count) to[i] = static_cast<uint16_t>(v.x[i / 2] >> i % 2 * 16);
    }
  }
}

}  // namespace fastrnn
