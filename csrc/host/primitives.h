// The primitives of device.cuh on fibers, for tests on machines without a GPU. What they do is said there.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define DEVICE inline
#define KERNEL(threads) inline void

namespace fastrnn::device {

using remote = char*;

inline int block() { return host::cluster->self().block; }
inline int thread() { return host::cluster->self().thread; }
inline int cluster_rank() { return host::cluster->self().block; }
inline int cluster_id() { return host::cluster->id(); }
inline char* shared_memory() { return host::cluster->block().shared.get(); }
inline remote map(const void* shared, int rank) {
  return host::cluster->block(rank).shared.get() + (static_cast<const char*>(shared) - shared_memory());
}

inline uint32_t bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

inline float from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

inline float bfloat16_to_float(uint16_t v) { return from_bits(uint32_t(v) << 16); }

// To nearest, ties to even; NaN is 0x7fff.
inline uint32_t round_to_bfloat16(float x) {
  const uint32_t u = bits(x);
  return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

// Sign, 5 bits of exponent with a bias of 15, 10 of fraction.
inline float float16_to_float(uint16_t v) {
  const int exponent = v >> 10 & 31, fraction = v & 1023;
  float size = std::ldexp(exponent ? 1024.f + fraction : fraction, (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return v >> 15 ? -size : size;
}

inline uint32_t round_to_float16(float x) {
  const uint32_t sign = bits(x) >> 31 << 15;
  if (x != x) return 0x7fff;
  if (std::isinf(x)) return sign | 0x7c00;
  if (x == 0) return sign;
  int exponent;
  std::frexp(x, &exponent);
  exponent = std::max(exponent - 1, -14);  // of the leading bit; below 2⁻¹⁴ the spacing stays 2⁻²⁴
  // In units of the last place, to nearest, ties to even; a carry moves on to the exponent.
  const uint32_t units = static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(x), 10 - exponent)));
  if (exponent > 15) return sign | 0x7c00;
  return sign | std::min<uint32_t>((uint32_t(exponent + 14) << 10) + units, 0x7c00);
}

inline uint32_t pack_bfloat16(float low, float high) { return round_to_bfloat16(low) | round_to_bfloat16(high) << 16; }
inline uint32_t pack_float16(float low, float high) { return round_to_float16(low) | round_to_float16(high) << 16; }
inline float tanh_fast(float x) { return std::tanh(x); }
inline float sigmoid_precise(float x) { return 1 / (1 + std::exp(-x)); }
inline float exp(float x) { return std::exp(x); }
inline float log(float x) { return std::log(x); }
inline float log1p(float x) { return std::log1p(x); }
inline float sqrt(float x) { return std::sqrt(x); }

inline uint32_t round_to_tf32(float x) {
  const uint32_t u = bits(x);
  if (x != x) return 0x7fffffff;
  return std::isinf(x) ? u : (u + 0x1000) & ~0x1fffu;
}

// Every lane of the warp shows up to Warp::kWords words, and once all have, sees the others'.
inline auto& exchange(const void* words, size_t bytes) {
  host::Fiber& fiber = host::cluster->self();
  host::Warp& warp = host::cluster->block().warps[fiber.thread / host::kWarp];
  auto& box = warp.box[fiber.turn ^= 1];
  memcpy(box[fiber.thread % host::kWarp], words, bytes);
  host::cluster->sync(warp.barrier, host::kWarp, "its warp", fiber.thread / host::kWarp);
  return box;
}

template <float (*to_float)(uint16_t)>
inline void mma(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a.x[0], a.x[1], a.x[2], a.x[3], b0, b1};
  uint32_t floats[12];
  for (int i = 0; i < 12; ++i) floats[i] = bits(to_float(static_cast<uint16_t>(words[i / 2] >> i % 2 * 16)));
  const auto& box = exchange(floats, sizeof floats);
  const int lane = thread() % host::kWarp, row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {  // row + 8 where i / 2, column + 1 where i % 2
    const auto *rows = &box[row * 4], *columns = &box[(column + i % 2) * 4];
    for (int half = 0; half < 2; ++half) {  // of k, of which a lane has two in a row each
      for (int k = 0; k < 4; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          const uint32_t left = rows[k][i / 2 * 2 + half * 4 + odd], right = columns[k][8 + half * 2 + odd];
          d[i] += from_bits(left) * from_bits(right);
        }
      }
    }
  }
}

inline void mma_bfloat16(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  mma<bfloat16_to_float>(d, a, b0, b1);
}
inline void mma_float16(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  mma<float16_to_float>(d, a, b0, b1);
}

inline void mma_tf32(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a.x[0], a.x[1], a.x[2], a.x[3], b0, b1};
  const auto& box = exchange(words, sizeof words);
  const int lane = thread() % host::kWarp, row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {  // row + 8 where i / 2, column + 1 where i % 2
    const auto *rows = &box[row * 4], *columns = &box[(column + i % 2) * 4];
    for (int half = 0; half < 2; ++half) {  // of k, of which a lane has one each
      for (int k = 0; k < 4; ++k) {
        const uint32_t left = rows[k][i / 2 + half * 2], right = columns[k][4 + half];
        if (((left | right) & 0x1fff) && from_bits(left) == from_bits(left) && from_bits(right) == from_bits(right)) {
          throw host::Error("a product of tf32 takes numbers that are not rounded to it");
        }
        d[i] += from_bits(left) * from_bits(right);
      }
    }
  }
}

inline word4 load_matrices(const void* shared, int lane) {
  word4 v;
  for (int i = 0; i < 4; ++i) {
    memcpy(&v.x[i], static_cast<const char*>(shared) + i * 128 + slot(lane / 4) * 16 + lane % 4 * 4, 4);
  }
  return v;
}

inline uint32_t transpose(uint32_t v) {
  const auto& box = exchange(&v, sizeof v);
  const int lane = thread() % host::kWarp, row = lane / 4, column = lane % 4 * 2;
  auto element = [&](int r, int c) { return box[r * 4 + c / 2][0] >> c % 2 * 16 & 0xffff; };
  return element(column, row) | element(column + 1, row) << 16;
}

inline uint32_t shuffle(uint32_t v, int lane) { return exchange(&v, sizeof v)[lane][0]; }

inline uint32_t ballot(bool predicate) {
  const uint32_t mine = predicate;
  const auto& box = exchange(&mine, sizeof mine);
  uint32_t all = 0;
  for (int lane = 0; lane < host::kWarp; ++lane) all |= box[lane][0] << lane;
  return all;
}

inline void compiler_fence() {}
inline void schedule_fence(int) {}
inline int hide(int x) { return x; }
inline int64_t hide(int64_t x) { return x; }

inline void named_barrier(int id, int threads) {
  host::cluster->sync(host::cluster->block().barriers[id], threads, "the block's barrier", id);
}
inline void block_barrier() { named_barrier(0, host::cluster->threads()); }
inline void cluster_arrive() { host::cluster->cluster_arrive(); }
inline void cluster_wait() { host::cluster->cluster_wait(); }

inline void store_async(remote to, const word4& v, remote barrier) {
  host::cluster->store(to, v, reinterpret_cast<host::MBarrier*>(barrier));
}

inline word4 load_strong(const word4* from) { return *from; }
inline uint32_t load_strong(const uint32_t* from) { return *from; }
inline uint16_t load_strong(const uint16_t* from) { return *from; }
inline void store_strong(uint32_t* to, uint32_t v) { host::cluster->store_strong(to, &v, sizeof v); }
inline void store_strong(uint16_t* to, uint16_t v) { host::cluster->store_strong(to, &v, sizeof v); }
inline void pause() { host::cluster->pause(); }
inline void warp_barrier() {
  host::Fiber& fiber = host::cluster->self();
  const int warp = fiber.thread / host::kWarp;
  host::cluster->sync(host::cluster->block().warps[warp].barrier, host::kWarp, "its warp", warp);
}

inline void mbarrier_init(uint64_t* barrier, int count) {
  const host::MBarrier fresh{static_cast<int16_t>(count), static_cast<int16_t>(count), 0, 0};
  memcpy(barrier, &fresh, sizeof fresh);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_expect(uint64_t* barrier, int bytes) {
  host::cluster->expect(reinterpret_cast<host::MBarrier*>(barrier), bytes);
}
inline void mbarrier_wait(uint64_t* barrier, int parity) {
  host::cluster->wait(reinterpret_cast<const host::MBarrier*>(barrier), parity);
}

}  // namespace fastrnn::device
