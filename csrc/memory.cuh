// Loads and stores of several bytes at once, and of rows of elements that may end early.
#pragma once

#include <cstring>

#include "device.cuh"

namespace fastrnn {

// Elements, each of a Word, that one load or store of a row moves; and of 32 bits of them.
template <class Word>
constexpr int ROW_ELEMENTS = sizeof(word4) / sizeof(Word);
template <class Word>
constexpr int PACKED_ELEMENTS = sizeof(uint32_t) / sizeof(Word);

// `from` is aligned to the size of what is loaded, `to` to that of what is stored.
template <class Value>
DEVICE Value load(const void* from) {
  Value v;
  memcpy(&v, __builtin_assume_aligned(from, sizeof(Value)), sizeof(Value));
  return v;
}

// The same of weights, out of the device's memory, though they are stored as another type. Of a memcpy nvcc 13.0 and
// NVRTC 12.6 and 13.0 make loads of single bytes there; NVRTC 13.5 does not.
template <class Value>
DEVICE Value load_global(const void* from) {
#ifdef __CUDACC__
  struct __attribute__((may_alias)) Any {
    Value value;
  };
  return static_cast<const Any*>(__builtin_assume_aligned(from, sizeof(Value)))->value;
#else
  return load<Value>(from);
#endif
}

template <class Value>
DEVICE void store(void* to, const Value& v) {
  memcpy(__builtin_assume_aligned(to, sizeof(Value)), &v, sizeof(Value));
}

// PACKED_ELEMENTS elements of `from`, zero from `count` on, which may be below zero. Aligned, `from` is so to 4 bytes
// and `count` is a multiple of PACKED_ELEMENTS.
DEVICE uint32_t load_packed(const uint16_t* from, int count, bool aligned) {
  if (aligned) return count > 0 ? load_global<uint32_t>(from) : 0;
  const uint32_t low = count > 0 ? from[0] : 0, high = count > 1 ? from[1] : 0;
  return low | high << 16;
}

DEVICE uint32_t load_packed(const uint32_t* from, int count, bool) { return count > 0 ? *from : 0; }

// ROW_ELEMENTS elements of `from`, zero from `count` on, which may be below zero. Aligned, `from` is so to 16 bytes
// and `count` is a multiple of ROW_ELEMENTS. Of a state before the first step: by load_global nvcc 13.0 would spill in
// the LSTM's kernels that have no register to spare, for a row that each thread loads once or twice.
template <class Word>
DEVICE word4 load_row(const Word* from, int count, bool aligned) {
  constexpr int PACKED = PACKED_ELEMENTS<Word>;
  word4 v = {};
  if (aligned) {
    if (count > 0) v = load<word4>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v.x[i] = load_packed(from + PACKED * i, count - PACKED * i, false);
  }
  return v;
}

// The first `count` elements of a row to `to`, as load_row.
template <class Word>
DEVICE void store_row(Word* to, const word4& v, int count, bool aligned) {
  constexpr int PACKED = PACKED_ELEMENTS<Word>;
  if (aligned) {
    if (count > 0) store(to, v);
  } else {
#pragma unroll
    for (int i = 0; i < ROW_ELEMENTS<Word>; ++i) {
      if (i < count) to[i] = static_cast<Word>(v.x[i / PACKED] >> i % PACKED * 16);
    }
  }
}

}  // namespace fastrnn
