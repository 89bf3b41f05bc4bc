// The threads of a cluster on the CPU: each is a fiber, and all take turns on one thread of the operating system.
//
// A fiber runs until it waits. Which blocks and warps rest, for how long, and when asynchronous stores arrive, and in
// which order, is random by a seed: a kernel whose result depends on it lacks a wait. Shared memory starts as NaN. A
// cluster in which all wait for good throws, and names what they wait for; clusters run one after another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../words.h"
#include "context.h"

namespace fastrnn::host {

constexpr int kWarp = 32;
constexpr int kNamedBarriers = 16;
constexpr size_t kSharedAlignment = 128;
#ifdef FASTRNN_FIBERS_ASAN
constexpr size_t kStackBytes = 256 << 10;  // the sanitizer's frames are several times as large
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Barrier {
  int arrived = 0, generation = 0;
};

// What the lanes of a warp show each other: two boxes, so that one barrier between writing and reading is enough.
struct Warp {
  static constexpr int kWords = 12;
  uint32_t box[2][kWarp][kWords];
  Barrier barrier;
};

struct FreeShared {
  void operator()(char* shared) const { ::operator delete[](shared, std::align_val_t{kSharedAlignment}); }
};

struct Block {
  std::unique_ptr<char, FreeShared> shared;
  std::vector<Warp> warps;
  Barrier barriers[kNamedBarriers];  // 0 is the block's
};

// An mbarrier in shared memory, in its 8 bytes.
struct MBarrier {
  int16_t count, pending;
  uint32_t phase : 1;
  int32_t bytes : 31;  // outstanding; below zero where stores come before they are expected
};
static_assert(sizeof(MBarrier) == sizeof(uint64_t), "an mbarrier has 8 bytes");

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // the sanitizer's
  int block = 0, thread = 0;
  int turn = 0;           // which box of the warp is next
  int cluster_token = 0;  // between arriving at the cluster's barrier and waiting for it
  const char* wait = "";  // what it waits for, and of those which
  int wait_id = 0;
  const Barrier* barrier = nullptr;  // either of them until it is no longer in this generation or phase
  const MBarrier* mbarrier = nullptr;
  int was = 0;
  bool done = false, rests = false;

  bool waits() const {
    return (barrier && barrier->generation == was) || (mbarrier && static_cast<int>(mbarrier->phase) == was);
  }
};

// A store on its way to another block.
struct Store {
  char* to;
  word4 value;
  size_t bytes;
  MBarrier* barrier;  // that counts it, or null
};

class Cluster {
 public:
  // `stacks` has kStackBytes for each thread.
  Cluster(int id, int blocks, int threads, size_t shared_bytes, const std::function<void()>& body, char* stacks,
          unsigned seed);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  void run();

  // For the fiber that runs now.
  Fiber& self() { return fibers_[current_]; }
  Block& block() { return blocks_[self().block]; }
  Block& block(int rank) { return blocks_.at(rank); }
  int id() const { return id_; }
  int threads() const { return threads_; }
  int arrive(Barrier& barrier, int expected);
  void wait(const Barrier& barrier, int token, const char* what, int which);
  void sync(Barrier& barrier, int expected, const char* what, int which);
  void cluster_arrive() { self().cluster_token = arrive(barrier_, static_cast<int>(fibers_.size())); }
  void cluster_wait() { wait(barrier_, self().cluster_token, "the cluster's barrier", 0); }
  void store(char* to, const word4& value, MBarrier* barrier) { stores_.push_back({to, value, sizeof value, barrier}); }
  void store_strong(void* to, const void* value, size_t bytes);
  void pause();
  void expect(MBarrier* barrier, int bytes);
  void wait(const MBarrier* barrier, int parity);

 private:
  static void entry();
  void switch_to(Context& from, void** fake_stack, Context& to, const void* stack, size_t stack_bytes);
  void next();
  void fail(const std::string& message);
  size_t first_awake(size_t i) const;
  void choose_resting(bool everybody_runs);
  void deliver(size_t at_most);
  void complete(MBarrier* barrier);
  std::string waiting() const;

  int id_, threads_;
  std::vector<Block> blocks_;
  std::vector<Fiber> fibers_;  // warps lie together, in a random order
  Barrier barrier_;
  std::vector<Store> stores_;
  std::mt19937 random_;
  const std::function<void()>& body_;
  Context main_;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  void* main_fake_stack_ = nullptr;
  size_t current_ = 0, live_;
  bool progress_ = true;  // whether anything that somebody may wait for has happened in this round
  uint32_t resting_blocks_ = 0;
  std::vector<bool> resting_warps_;
  int rounds_ = 0;  // until others rest
  std::string error_;
};

// The cluster that this thread of the operating system runs.
inline thread_local Cluster* cluster = nullptr;

// Runs `body` in every thread of `clusters` clusters of `blocks` blocks. Throws `Error` on a deadlock and where an
// mbarrier is used against its rules.
inline void launch(int clusters, int blocks, int threads, size_t shared_bytes, const std::function<void()>& body,
                   unsigned seed = 1) {
  const std::unique_ptr<char[]> stacks(new char[kStackBytes * blocks * threads]);
  for (int id = 0; id < clusters; ++id) {
    Cluster(id, blocks, threads, shared_bytes, body, stacks.get(), seed + id).run();
  }
}

inline Cluster::Cluster(int id, int blocks, int threads, size_t shared_bytes, const std::function<void()>& body,
                        char* stacks, unsigned seed)
    : id_(id),
      threads_(threads),
      blocks_(blocks),
      fibers_(size_t(blocks) * threads),
      random_(seed),
      body_(body),
      live_(fibers_.size()),
      resting_warps_(fibers_.size() / kWarp) {
  for (Block& block : blocks_) {
    block.shared.reset(static_cast<char*>(::operator new[](shared_bytes, std::align_val_t{kSharedAlignment})));
    memset(block.shared.get(), 0xff, shared_bytes);  // NaN in every format
    block.warps.resize(threads / kWarp);
  }
  std::vector<int> warps(fibers_.size() / kWarp);
  for (size_t i = 0; i < warps.size(); ++i) warps[i] = static_cast<int>(i);
  std::shuffle(warps.begin(), warps.end(), random_);
  for (size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& fiber = fibers_[i];
    const int thread = warps[i / kWarp] * kWarp + static_cast<int>(i % kWarp);
    fiber.block = thread / threads;
    fiber.thread = thread % threads;
    fiber.stack = stacks + i * kStackBytes;
    fiber.context.begin(fiber.stack, kStackBytes, entry);
  }
}

// An error drops the fibers' stacks, it does not unwind them: kernels hold nothing that needs it.
inline void Cluster::run() {
  cluster = this;
  // Rounds in a row in which everybody ran and nothing came of it. One is not enough: a fiber that was released while
  // it rested goes on, in the first, to wait for what it loaded long before, and looks again in the second.
  int idle_rounds = 0;
  bool everybody_runs = false;
  while (live_ && error_.empty()) {
    idle_rounds = everybody_runs && !progress_ && stores_.empty() ? idle_rounds + 1 : 0;
    if (idle_rounds == 2) {
      error_ = "deadlock: " + waiting();
      break;
    }
    deliver(progress_ ? random_() % (stores_.size() / 4 + 2) : stores_.size());
    everybody_runs = !progress_ && stores_.empty();
    choose_resting(everybody_runs);
    progress_ = false;
    current_ = first_awake(0);
    if (current_ == fibers_.size()) continue;
    switch_to(main_, &main_fake_stack_, self().context, self().stack, kStackBytes);
  }
  if (error_.empty()) deliver(stores_.size());  // what the kernel's end waits for
  cluster = nullptr;
  if (!error_.empty()) throw Error("cluster " + std::to_string(id_) + ": " + error_);
}

inline void Cluster::entry() {
#ifdef FASTRNN_FIBERS_ASAN
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (!cluster->main_stack_) {  // the first fiber comes from there
    cluster->main_stack_ = stack;
    cluster->main_stack_bytes_ = bytes;
  }
#endif
  try {
    cluster->body_();
  } catch (const std::exception& error) {
    cluster->fail(error.what());
  }
  cluster->self().done = true;
  --cluster->live_;
  cluster->progress_ = true;
  cluster->next();
}

inline void Cluster::switch_to(Context& from, void** fake_stack, Context& to, const void* stack, size_t stack_bytes) {
#ifdef FASTRNN_FIBERS_ASAN
  __sanitizer_start_switch_fiber(fake_stack, stack, stack_bytes);
#else
  (void)stack;
  (void)stack_bytes;
#endif
  from.switch_to(to);
#ifdef FASTRNN_FIBERS_ASAN
  __sanitizer_finish_switch_fiber(fake_stack ? *fake_stack : nullptr, nullptr, nullptr);
#else
  (void)fake_stack;
#endif
}

// Gives way to the next fiber that is awake, or to `run` after the last of a round.
inline void Cluster::next() {
  Fiber& me = self();
  void** fake_stack = me.done ? nullptr : &me.fake_stack;
  const size_t i = error_.empty() ? first_awake(current_ + 1) : fibers_.size();
  if (i < fibers_.size()) {
    current_ = i;
    switch_to(me.context, fake_stack, self().context, self().stack, kStackBytes);
  } else {
    switch_to(me.context, fake_stack, main_, main_stack_, main_stack_bytes_);
  }
}

inline size_t Cluster::first_awake(size_t i) const {
  while (i < fibers_.size() && (fibers_[i].done || fibers_[i].rests || fibers_[i].waits())) ++i;
  return i;
}

// For up to 128 rounds nobody rests, or half the blocks do, or a quarter of the warps; and a quarter of the warps for
// this round alone: so that others run far ahead of some, and a little ahead of others.
inline void Cluster::choose_resting(bool everybody_runs) {
  if (!progress_ || --rounds_ < 0) {
    rounds_ = 1 << random_() % 8;
    const unsigned kind = random_() % 3;
    resting_blocks_ = kind == 1 ? static_cast<uint32_t>(random_()) : 0;
    for (size_t w = 0; w < resting_warps_.size(); ++w) resting_warps_[w] = kind == 2 && random_() % 4 == 0;
  }
  if (everybody_runs) rounds_ = 0;
  for (size_t w = 0; w < resting_warps_.size(); ++w) {
    const int block = fibers_[w * kWarp].block;
    const bool rests =
        !everybody_runs && ((resting_blocks_ >> block % 32 & 1) || resting_warps_[w] || random_() % 4 == 0);
    for (int lane = 0; lane < kWarp; ++lane) fibers_[w * kWarp + lane].rests = rests;
  }
}

inline void Cluster::fail(const std::string& message) {
  if (error_.empty()) error_ = message;
}

inline std::string Cluster::waiting() const {
  std::string all;
  for (const Fiber& fiber : fibers_) {
    if (fiber.done || fiber.thread % kWarp != 0) continue;
    all += (all.empty() ? "block " : "; block ") + std::to_string(fiber.block) + " warp " +
           std::to_string(fiber.thread / kWarp) + " waits for " + fiber.wait + " " + std::to_string(fiber.wait_id);
  }
  return all;
}

inline int Cluster::arrive(Barrier& barrier, int expected) {
  const int token = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    progress_ = true;
  }
  return token;
}

inline void Cluster::wait(const Barrier& barrier, int token, const char* what, int which) {
  self().wait = what;
  self().wait_id = which;
  self().barrier = &barrier;
  self().was = token;
  if (self().waits()) next();
  self().barrier = nullptr;
}

inline void Cluster::sync(Barrier& barrier, int expected, const char* what, int which) {
  const int token = arrive(barrier, expected);
  wait(barrier, token, what, which);
}

inline void Cluster::deliver(size_t at_most) {
  for (; at_most && !stores_.empty(); --at_most) {
    std::swap(stores_[random_() % stores_.size()], stores_.back());
    const Store store = stores_.back();
    stores_.pop_back();
    memcpy(store.to, &store.value, store.bytes);
    progress_ = true;
    if (store.barrier == nullptr) continue;
    store.barrier->bytes -= static_cast<int32_t>(store.bytes);
    complete(store.barrier);
  }
}

inline void Cluster::store_strong(void* to, const void* value, size_t bytes) {
  Store store{static_cast<char*>(to), {}, bytes, nullptr};
  memcpy(&store.value, value, bytes);
  stores_.push_back(store);
}

inline void Cluster::pause() {
  self().wait = "words of other blocks, seen from block";
  self().wait_id = self().block;
  next();
}

inline void Cluster::expect(MBarrier* barrier, int bytes) {
  if (barrier->pending == 0) fail("more threads arrive at an mbarrier in a phase than it counts");
  barrier->bytes += bytes;
  --barrier->pending;
  complete(barrier);
}

inline void Cluster::complete(MBarrier* barrier) {
  progress_ = true;
  if (barrier->pending != 0 || barrier->bytes != 0) return;
  barrier->phase ^= 1;
  barrier->pending = barrier->count;
  for (const Store& store : stores_) {
    if (store.barrier == barrier) fail("a phase of an mbarrier ends while stores that count on it are on their way");
  }
}

inline void Cluster::wait(const MBarrier* barrier, int parity) {
  self().wait = "the mbarrier at byte";
  self().wait_id = static_cast<int>(reinterpret_cast<const char*>(barrier) - block().shared.get());
  self().mbarrier = barrier;
  self().was = parity;
  if (self().waits()) next();
  self().mbarrier = nullptr;
}

}  // namespace fastrnn::host
