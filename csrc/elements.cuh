// The storage dtypes, and how they are multiplied: in products with float32 sums.
//
// A word holds one element. A product takes tiles of 16 x TILE_K elements by TILE_K x 8, of which a lane has 16 bytes
// of the first and 8 of the second (device.cuh says which); what `operand` makes of words that were loaded is what it
// takes. Gates are saved as `Saved` stores them.
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace fastrnn {

constexpr int VECTOR_BYTES = 16;  // what one load or store moves

// What cells apply beside tanh and sigmoid, of which the storage dtype makes no difference.
struct Functions {
  static DEVICE float relu(float x) { return x <= 0.f ? 0.f : x; }
  static DEVICE float exp(float x) { return device::exp(x); }
  static DEVICE float log(float x) { return device::log(x); }
  static DEVICE float sqrt(float x) { return device::sqrt(x); }
  static DEVICE float abs(float x) { return fabsf(x); }
  // NaN where one of the two is.
  static DEVICE float maximum(float a, float b) { return a < b || b != b ? b : a; }
  static DEVICE float minimum(float a, float b) { return a > b || b != b ? b : a; }
  // log(1 + eˣ), which does not overflow.
  static DEVICE float softplus(float x) { return maximum(x, 0.f) + device::log1p(exp(-abs(x))); }
};

// What the formats of 16 bits have in common: they are multiplied as they are.
struct SixteenBits : Functions {
  using Word = uint16_t;
  static constexpr int TILE_K = 16;

  static DEVICE Word operand(Word v) { return v; }
  static DEVICE word4 operand(const word4& v) { return v; }
  static DEVICE float tanh(float x) { return device::tanh_fast(x); }
  static DEVICE float sigmoid(float x) { return 0.5f * device::tanh_fast(0.5f * x) + 0.5f; }
};

struct Float16 : SixteenBits {
  using Saved = Float16;
  static constexpr ElementKind KIND = ElementKind::kFloat16;

  static DEVICE float to_float(Word v) { return device::float16_to_float(v); }
  static DEVICE Word from_float(float x) { return static_cast<Word>(device::pack_float16(x, 0.f)); }
  static DEVICE uint32_t pack(float low, float high) { return device::pack_float16(low, high); }
  // The nearest number that the format holds; NaN is NaN.
  static DEVICE float finite(float x) { return x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x; }
  static DEVICE void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) { device::mma_float16(d, a, b0, b1); }
};

// Gates nearly all lie in [-1, 1], where float16 has 3 bits more.
struct Bfloat16 : SixteenBits {
  using Saved = Float16;
  static constexpr ElementKind KIND = ElementKind::kBfloat16;

  static DEVICE float to_float(Word v) { return device::bfloat16_to_float(v); }
  static DEVICE Word from_float(float x) { return static_cast<Word>(device::pack_bfloat16(x, 0.f)); }
  static DEVICE uint32_t pack(float low, float high) { return device::pack_bfloat16(low, high); }
  static DEVICE void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
    device::mma_bfloat16(d, a, b0, b1);
  }
};

// float32 that is multiplied with 10 bits of fraction. A word has the bits of a float; a NaN that is stored is always
// the same one, so that no stored word has all bits set. Activations are as precise as the sums.
struct Tf32 : Functions {
  using Word = uint32_t;
  using Saved = Tf32;
  static constexpr ElementKind KIND = ElementKind::kTf32;
  static constexpr int TILE_K = 8;

  static DEVICE float to_float(Word v) { return device::from_bits(v); }
  static DEVICE Word from_float(float x) { return x != x ? 0x7fffffffu : device::bits(x); }
  static DEVICE float finite(float x) { return x; }
  static DEVICE Word operand(Word v) { return device::round_to_tf32(device::from_bits(v)); }
  static DEVICE word4 operand(const word4& v) {
    return {{operand(v.x[0]), operand(v.x[1]), operand(v.x[2]), operand(v.x[3])}};
  }
  static DEVICE void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) { device::mma_tf32(d, a, b0, b1); }
  static DEVICE float tanh(float x) { return 2.f * device::sigmoid_precise(2.f * x) - 1.f; }
  static DEVICE float sigmoid(float x) { return device::sigmoid_precise(x); }
};

}  // namespace fastrnn
