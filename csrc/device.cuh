// What kernels need of a device beside arithmetic: here in PTX, for nvcc, where what is about clusters and mbarriers is
// for sm_90 or later; in host/ for a C++ compiler, where threads are fibers. Kernels contain no PTX themselves, and so
// run on either.
#pragma once

#include <cstddef>
#include <cstdint>

#include "words.h"

#ifndef __CUDACC__
#include "host/primitives.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) __global__ void __launch_bounds__(threads, 1)

namespace fastrnn::device {

// An address in the shared memory of any block of the cluster.
using remote = uint32_t;

DEVICE int thread() { return threadIdx.x; }

// The block's number in the grid.
DEVICE int block() { return blockIdx.x; }

DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

DEVICE int cluster_id() {
  uint32_t id;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(id));
  return id;
}

// The block's dynamic shared memory, aligned to 128 bytes.
DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char shared[];
  return shared;
}

DEVICE uint32_t local(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// The place in block `rank` of the cluster that corresponds to `shared` in this block.
DEVICE remote map(const void* shared, int rank) {
  remote address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(local(shared)), "r"(rank));
  return address;
}

// d += a b with a 16 x 16, b 16 x 8 and d 16 x 8. With row = lane / 4 and column = lane % 4 * 2, a lane holds of d
// [row][column + {0, 1}], then [row + 8][column + {0, 1}]; of a, two elements a word, [row][column..], [row +
// 8][column..], [row][column + 8..], [row + 8][column + 8..]; of b, [column + {0, 1}][row] and [column + 8 + {0,
// 1}][row].
DEVICE void mma_bfloat16(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_float16(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

// The same with a 16 x 8 and b 8 x 8, of numbers that round_to_tf32 gave. With row = lane / 4 and column = lane % 4, a
// lane holds of a [row][column], [row + 8][column], [row][column + 4], [row + 8][column + 4]; of b, [column][row] and
// [column + 4][row].
DEVICE void mma_tf32(float (&d)[4], const word4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices that lie one after the other, 512 bytes, the rows of each by `slot`; of each, a lane gets
// [lane / 4][lane % 4 * 2 + {0, 1}].
DEVICE word4 load_matrices(const void* shared, int lane) {
  word4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "r"(local(shared) + lane / 8 * 128 + slot(lane % 8) * 16)
               : "memory");
  return v;
}

// Transposes an 8 x 8 matrix of which a lane holds [lane / 4][lane % 4 * 2 + {0, 1}].
DEVICE uint32_t transpose(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

DEVICE uint32_t shuffle(uint32_t v, int lane) { return __shfl_sync(~0u, v, lane); }

// Bit i is lane i's `predicate`.
DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(~0u, predicate); }

// Keeps the compiler from moving loads and stores across.
DEVICE void compiler_fence() { asm volatile("" ::: "memory"); }

// Keeps the assembler from moving anything across, which it otherwise does within straight code, whatever the compiler
// was told: loads to where what they load is used. A branch that is never taken, of which that is not known: `count` is
// not below zero.
DEVICE void schedule_fence(int count) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.lt.s32 p, %0, 0;\n"
      "STAY: @!p bra GO;\n"
      "nanosleep.u32 1;\n"
      "bra STAY;\n"
      "GO:}" ::"r"(count)
      : "memory");
}

// The same number, though the compiler does not know it: what follows from it is computed where it is used, and takes
// no register through a loop.
DEVICE int hide(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

DEVICE int64_t hide(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}

DEVICE void block_barrier() { __syncthreads(); }

// Waits for `threads` threads of the block, which all name this barrier, 1 to 15; 0 is the block's own.
DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Stores in time, then counts 16 bytes on `barrier`, which lies in the same block as the destination.
DEVICE void store_async(remote to, const word4& v, remote barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "r"(v.x[0]), "r"(v.x[1]), "r"(v.x[2]), "r"(v.x[3]), "r"(barrier)
               : "memory");
}

// A phase of the barrier ends when `count` threads have arrived and all bytes that they expect have.
DEVICE void mbarrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(local(barrier)), "r"(count) : "memory");
}

// Makes initialised barriers visible to the cluster, ahead of a cluster barrier.
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and adds `bytes` to what this phase waits for.
DEVICE void mbarrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("{.reg .b64 t; mbarrier.arrive.expect_tx.shared.b64 t, [%0], %1;}" ::"r"(local(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity has ended; the first phase has parity 0. What other blocks stored lies in this
// block's own shared memory, which no cache holds: to acquire at the cluster's scope would only empty L1 in each step.
DEVICE void mbarrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra WAIT;}" ::"r"(local(barrier)),
      "r"(parity)
      : "memory");
}

// Loads and stores that blocks exchange words by, through the memory that all of them see: each word arrives whole, and
// in no order with any other. Between two loads of a word that has not arrived, call `pause`.
DEVICE word4 load_strong(const word4* from) {
  word4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(from)
               : "memory");
  return v;
}

DEVICE uint32_t load_strong(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

DEVICE uint16_t load_strong(const uint16_t* from) {
  uint16_t v;
  asm volatile("ld.relaxed.gpu.global.b16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
  return v;
}

DEVICE void store_strong(uint32_t* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

DEVICE void store_strong(uint16_t* to, uint16_t v) {
  asm volatile("st.relaxed.gpu.global.b16 [%0], %1;" ::"l"(to), "h"(v) : "memory");
}

DEVICE void pause() {}

// Waits for the other lanes of the warp.
DEVICE void warp_barrier() { __syncwarp(); }

DEVICE uint32_t bits(float x) { return __float_as_uint(x); }
DEVICE float from_bits(uint32_t v) { return __uint_as_float(v); }

// To 10 bits of fraction, ties away from zero.
DEVICE uint32_t round_to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// 1 / (1 + e⁻ˣ), with a relative error of 2⁻²¹.
DEVICE float sigmoid_precise(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * x));  // log2 e
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.f + power));
  return y;
}

// With an error of at most two units in the last place.
DEVICE float exp(float x) { return expf(x); }
DEVICE float log(float x) { return logf(x); }
DEVICE float log1p(float x) { return log1pf(x); }

// With a relative error of 2⁻²³.
DEVICE float sqrt(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// With a relative error of 2⁻¹¹.
DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

DEVICE uint32_t pack_float16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

DEVICE float bfloat16_to_float(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }

DEVICE float float16_to_float(uint16_t v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}

}  // namespace fastrnn::device

#endif
