// The kernels of ceilings.h. They move and wait for what the recurrence's kernels do, without a product: what is sent
// is the number of the step, by which whoever receives it sees that it is what it waited for.
//
// Nothing is waited for without end: a kernel gives up, and says so, some time after it has begun.
#pragma once

#include "device.cuh"
#include "grid/exchange.cuh"

namespace fastrnn::ceilings {

constexpr int kThreads = 256;             // of a block: eight warps, as most of the recurrence's have
constexpr int kWarmUp = 10;               // steps that are not timed: blocks begin one after the other
constexpr int64_t kPatience = 1ll << 31;  // cycles: a second or more

// What a kernel leaves in memory that was zero.
struct Measured {
  uint64_t nanoseconds;  // of all steps but the first kWarmUp
  int failed;            // whether something did not arrive, or something else did
};

DEVICE uint64_t now() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

// Zero where all of `v` is `expected`: without a branch, which would be timed as well.
DEVICE uint32_t difference(const word4& v, uint32_t expected) {
  return (v.x[0] ^ expected) | (v.x[1] ^ expected) | (v.x[2] ^ expected) | (v.x[3] ^ expected);
}

constexpr int kSlice = 32;                   // words of 16 bytes: 32 units of eight sequences in 16 bits
constexpr int kSenders = kThreads / kSlice;  // threads that have the same word, and share out whom to send it to
constexpr int kBarrierBytes = 128;           // in front of the state: two barriers, and what aligns it
constexpr int kMostClusterBlocks = 16;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// device::mbarrier_wait, but for its patience; `until` is a number of the clock. Returns whether the phase has ended.
DEVICE bool wait(uint64_t* barrier, int parity, int64_t until) {
  for (;;) {
    uint32_t ended;
    asm volatile(
        "{.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(ended)
        : "r"(device::local(barrier)), "r"(parity)
        : "memory");
    if (ended) return true;
    if (clock64() > until) return false;
  }
}

// There are two buffers, for the reason that forward.cuh has. A step is: send, wait, load one word.
DEVICE void exchange_in_cluster(int blocks, int steps, Measured* measured) {
  const int thread = device::thread(), rank = device::cluster_rank();
  const int word = thread / kSenders, sender = thread % kSenders, next = (rank + 1) % blocks;
  const int bytes = blocks * kSlice * int(sizeof(word4));
  uint64_t* arrivals = reinterpret_cast<uint64_t*>(device::shared_memory());                // [2]
  word4* state = reinterpret_cast<word4*>(device::shared_memory() + kBarrierBytes) + word;  // [2][blocks][kSlice]
  if (thread == 0) {
    for (int i = 0; i < 2; ++i) device::mbarrier_init(arrivals + i, 1);
    device::mbarrier_init_fence();
    device::mbarrier_expect(arrivals, bytes);
  }
  device::cluster_arrive();
  device::cluster_wait();

  const int64_t until = clock64() + kPatience;
  uint64_t begin = 0;
  uint32_t number = 0, wrong = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (step == kWarmUp) begin = now();
    const int buffer = step & 1;
    uint64_t* arrival = arrivals + buffer;
    word4* to = state + (buffer * blocks + rank) * kSlice;
#pragma unroll
    for (int first = 0; first < kMostClusterBlocks; first += kSenders) {
      const int block = first + sender;
      if (block >= blocks) break;
      device::store_async(device::map(to, block), {{number, number, number, number}}, device::map(arrival, block));
    }
    if (thread == 0 && step + 1 < steps) device::mbarrier_expect(arrivals + (buffer ^ 1), bytes);
    const bool has_ended = wait(arrival, step >> 1 & 1, until);
    const word4 v = state[(buffer * blocks + next) * kSlice];
    wrong |= difference(v, step);
    number = v.x[0] + 1;  // so that nothing is sent before it has come
    if (device::ballot(!has_ended) != 0) {
      wrong = 1;
      break;
    }
    device::warp_barrier();  // all of the warp have read what is overwritten once they send again
  }
  if (wrong) measured->failed = 1;
  if (thread == 0 && rank == 0) measured->nanoseconds = now() - begin;
  // A block that has given up may still be sent to.
  device::cluster_arrive();
  device::cluster_wait();
}

#endif

// Of one cluster.
KERNEL(kThreads) cluster_exchange_kernel(int blocks, int steps, Measured* measured) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  exchange_in_cluster(blocks, steps, measured);
#else
  measured->failed = 1;
#endif
}

// A row is the state of a step in 16 bits: eight sequences, for each of them 16 units of every block.
constexpr int kSequences = 8, kBlockUnits = 16, kVectorUnits = 8;
constexpr int kBlockPairs = kSequences * kBlockUnits / 2;          // of units, a store each
constexpr int kSliceUnits = kThreads / kSequences * kVectorUnits;  // of which each thread reads one vector
constexpr int kMostSlices = 10;                                    // that registers are for
constexpr int kMostGridBlocks = kMostSlices * kSliceUnits / kBlockUnits;
constexpr int kLooks = 1024;  // that pass before a thread asks for the time

// `rows`: (steps, blocks · kBlockPairs), all bits set. A step is: store, look until all of the row is there, a barrier
// of the block.
KERNEL(kThreads) grid_exchange_kernel(int blocks, int steps, uint32_t* rows, Measured* measured) {
  const int thread = device::thread(), lane = thread % 32;
  const int units = blocks * kBlockUnits, row_pairs = blocks * kBlockPairs;
  // The pair of units that this thread stores, and the first unit that it reads, of its sequences.
  const int own = (thread / (kBlockUnits / 2) * units + device::block() * kBlockUnits) / 2 + thread % (kBlockUnits / 2);
  const int unit = (thread / 32 * 4 + lane % 4) * kVectorUnits, first = lane / 4 * units + unit;
  const int64_t until = clock64() + kPatience;
  uint64_t begin = 0;
  int looks = 0;
  bool late = false;
  uint32_t wrong = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (step == kWarmUp) begin = now();
    uint32_t* row = rows + int64_t(step) * row_pairs;
    if (thread < kBlockPairs) device::store_strong(row + own, uint32_t(step));
    word4 v[kMostSlices] = {};
    auto load = [&](int slice) {
      if (unit + slice * kSliceUnits >= units) return;
      const uint32_t* from = row + (first + slice * kSliceUnits) / 2;
      v[slice] = device::load_strong(reinterpret_cast<const word4*>(from));
    };
    auto all_come = [&] {
      bool all = true;
#pragma unroll
      for (int slice = 0; slice < kMostSlices; ++slice) all = all && grid::has_come(v[slice]);
      return all;
    };
#pragma unroll
    for (int slice = 0; slice < kMostSlices; ++slice) load(slice);
    while (!late && !all_come()) {
      late = ++looks % kLooks == 0 && clock64() > until;
#pragma unroll
      for (int slice = 0; slice < kMostSlices; ++slice) {
        if (!grid::has_come(v[slice])) load(slice);
      }
    }
#pragma unroll
    for (int slice = 0; slice < kMostSlices; ++slice) {
      wrong |= difference(v[slice], unit + slice * kSliceUnits < units ? step : 0);
    }
    // Who has given up goes on without waiting: others wait for what the block stores.
    device::block_barrier();
  }
  if (late || wrong) measured->failed = 1;
  if (thread == 0 && device::block() == 0) measured->nanoseconds = now() - begin;
}

// Of one block.
KERNEL(kThreads) block_barrier_kernel(int steps, Measured* measured) {
  uint64_t begin = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (step == kWarmUp) begin = now();
    device::block_barrier();
  }
  if (device::thread() == 0) measured->nanoseconds = now() - begin;
}

}  // namespace fastrnn::ceilings
