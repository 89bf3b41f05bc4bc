// The storage dtypes: 16 bits wide, in products with float32 sums.
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace fastrnn {

struct Bfloat16 {
  using Word = uint16_t;
  static constexpr ElementKind KIND = ElementKind::kBfloat16;

  static DEVICE float to_float(Word v) { return device::bfloat16_to_float(v); }
  static DEVICE Word from_float(float x) { return static_cast<Word>(device::pack_bfloat16(x, 0.f)); }
  static DEVICE uint32_t pack(float low, float high) { return device::pack_bfloat16(low, high); }
  static DEVICE void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
    device::mma_bfloat16(d, a, b0, b1);
  }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr ElementKind KIND = ElementKind::kFloat16;

  static DEVICE float to_float(Word v) { return device::float16_to_float(v); }
  static DEVICE Word from_float(float x) { return static_cast<Word>(device::pack_float16(x, 0.f)); }
  static DEVICE uint32_t pack(float low, float high) { return device::pack_float16(low, high); }
  static DEVICE void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) { device::mma_float16(d, a, b0, b1); }
};

}  // namespace fastrnn
