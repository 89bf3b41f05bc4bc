// Words that several lanes of a warp exchange, and their place in shared memory.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace fastrnn {

// 16 bytes: a lane's share of a 16 x 16 matrix of 16-bit elements, or eight elements of a row.
struct alignas(16) word4 {
  uint32_t x[4];
};

// Where row n of an 8 x 8 matrix lies in shared memory, in rows of 16 bytes: even rows before odd ones.
HOST_DEVICE constexpr int slot(int n) { return (n & 1) * 4 + n / 2; }

}  // namespace fastrnn
