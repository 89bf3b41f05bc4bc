// Runs the recurrence kernels on the CPU over many schedules, for sanitizers and planted faults.
//
// Prints a line for each case: its name and a hash of all that the kernel wrote. Exits with 1 where two schedules give
// different bits, and with 2 where a kernel deadlocks or breaks a rule of its barriers. Buffers are exactly as large as
// the kernel is told, so that a sanitizer sees an access beside them. FASTRNN_CHECK_FORWARD and FASTRNN_CHECK_BACKWARD,
// of which a build may define one alone, say what is compiled. Argument: how many schedules, 20 by default.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "cells.cuh"
#include "elements.cuh"
#ifdef FASTRNN_CHECK_FORWARD
#include "cluster/forward.cuh"
#endif
#ifdef FASTRNN_CHECK_BACKWARD
#include "cluster/backward.cuh"
#endif

namespace fastrnn {
namespace {

constexpr int kDefaultSchedules = 20;
constexpr uint16_t kUnwritten = 0xffff;                                               // NaN in both dtypes
constexpr uint64_t kHashStart = 14695981039346656037u, kHashFactor = 1099511628211u;  // FNV-1a

// A recurrence; `masks`: lengths and resets too.
struct Case {
  int T, B, units, heads, directions;
  bool reverse, masks;
};

struct Random {
  std::mt19937 engine{7};
  float number(float scale) { return std::uniform_real_distribution<float>(-scale, scale)(engine); }
};

template <class Element>
std::vector<uint16_t> words(Random& random, size_t count, float scale) {
  std::vector<uint16_t> result(count);
  for (auto& word : result) word = Element::from_float(random.number(scale));
  return result;
}

uint64_t hash(uint64_t seed, const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) seed = (seed ^ at[i]) * kHashFactor;
  return seed;
}

template <class Word>
uint64_t hash(uint64_t seed, const std::vector<Word>& data) {
  return hash(seed, data.data(), data.size() * sizeof(Word));
}

struct Masks {
  std::vector<int64_t> lengths;
  std::vector<uint8_t> resets;

  Masks(Random& random, const Case& one) : lengths(one.B), resets(size_t(one.T) * one.B) {
    for (auto& length : lengths) length = random.engine() % (one.T + 1);
    for (auto& reset : resets) reset = random.engine() % 3 == 0;
  }
};

template <class Shape, class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, unsigned seed) {
  const int clusters = (a.B + Shape::ROWS - 1) / Shape::ROWS * a.heads * a.directions;
  host::launch(clusters, Shape::BLOCKS, Shape::THREADS, Shape::SHARED_BYTES, [&] { kernel(a); }, seed);
}

// Runs `once`, which returns a hash of its results, over the schedules. Returns whether all agree.
template <class Once>
bool agree(const std::string& name, int schedules, Once once) {
  const uint64_t first = once(1);
  std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(first));
  std::fflush(stdout);
  for (int seed = 2; seed <= schedules; ++seed) {
    if (once(seed) != first) {
      std::fprintf(stderr, "%s: schedule %d gives other bits than the first\n", name.c_str(), seed);
      return false;
    }
  }
  return true;
}

template <class Arguments>
void set_sizes(Arguments& a, const Case& one, const Masks& masks) {
  a.T = one.T;
  a.B = one.B;
  a.H = one.units * one.heads;
  a.heads = one.heads;
  a.directions = one.directions;
  a.reverse = one.reverse;
  a.lengths = one.masks ? masks.lengths.data() : nullptr;
  a.resets = one.masks ? masks.resets.data() : nullptr;
}

#ifdef FASTRNN_CHECK_FORWARD
template <class Shape>
bool forward(const std::string& name, const Case& one, int schedules) {
  using Cell = typename Shape::Cell;
  using Element = typename Shape::Element;
  Random random;
  const size_t H = one.units * one.heads, rows = size_t(one.T) * one.B, wide = one.directions * H;
  const size_t states = size_t(one.directions) * one.B * H, weights = one.heads * Cell::GATES * one.units * one.units;
  const Masks masks(random, one);
  const auto gx = words<Element>(random, rows * wide * Cell::GATES, 2.f);
  const auto w0 = words<Element>(random, weights, 0.2f), w1 = words<Element>(random, weights, 0.2f);
  const auto b0 = words<Element>(random, Cell::GATES * H, 1.f), b1 = words<Element>(random, Cell::GATES * H, 1.f);
  const auto h0 = words<Element>(random, states, 1.f), c0 = words<Element>(random, states, 1.f);
  std::vector<uint16_t> ys(rows * wide), gates(rows * wide * Cell::SAVED), h_last(states), c_last(states);
  std::vector<float> cs(rows * wide);
  ForwardArguments a{};
  set_sizes(a, one, masks);
  a.gx = gx.data();
  a.w_hh[0] = w0.data();
  a.w_hh[1] = one.directions == 2 ? w1.data() : nullptr;
  if (!Cell::ADDS) a.b_hh[0] = b0.data();
  if (!Cell::ADDS && one.directions == 2) a.b_hh[1] = b1.data();
  a.h0 = h0.data();
  a.ys = ys.data();
  a.h_last = h_last.data();
  if (Cell::STATES == 2) {
    a.c0 = c0.data();
    a.cs = cs.data();
    a.c_last = c_last.data();
  }
  if (Cell::SAVED) a.gates = gates.data();
  return agree(name, schedules, [&](unsigned seed) {
    for (auto* buffer : {&ys, &gates, &h_last, &c_last}) std::fill(buffer->begin(), buffer->end(), kUnwritten);
    std::fill(cs.begin(), cs.end(), 0.f);
    launch<Shape>(cluster::forward_kernel<Shape>, a, seed);
    return hash(hash(hash(hash(hash(kHashStart, ys), gates), h_last), c_last), cs);
  });
}
#endif

#ifdef FASTRNN_CHECK_BACKWARD
std::vector<float> floats(Random& random, size_t count) {
  std::vector<float> result(count);
  for (auto& number : result) number = random.number(1.f);
  return result;
}

template <class Shape>
bool backward(const std::string& name, const Case& one, bool are_preactivations, int schedules) {
  using Cell = typename Shape::Cell;
  using Element = typename Shape::Element;
  Random random;
  const size_t H = one.units * one.heads, rows = size_t(one.T) * one.B, wide = one.directions * H;
  const size_t states = size_t(one.directions) * one.B * H, weights = one.heads * Cell::GATES * one.units * one.units;
  const Masks masks(random, one);
  const auto w0 = words<Element>(random, weights, 0.2f), w1 = words<Element>(random, weights, 0.2f);
  const auto ys = words<Element>(random, rows * wide, 1.f), dys = words<Element>(random, rows * wide, 1.f);
  const auto cs = floats(random, rows * wide), dcs = floats(random, rows * wide);
  const size_t saved = rows * wide * Cell::SAVED;
  const auto gates = are_preactivations ? words<Element>(random, saved, 2.f) : words<Float16>(random, saved, 1.f);
  const auto h0 = words<Element>(random, states, 1.f), c0 = words<Element>(random, states, 1.f);
  const auto dh = words<Element>(random, states, 1.f), dc = words<Element>(random, states, 1.f);
  std::vector<uint16_t> dgates(rows * wide * Cell::VALUES), dh0(states), dc0(states);
  BackwardArguments a{};
  set_sizes(a, one, masks);
  a.w_hh[0] = w0.data();
  a.w_hh[1] = one.directions == 2 ? w1.data() : nullptr;
  a.ys = ys.data();
  a.gates = Cell::SAVED ? gates.data() : nullptr;
  a.are_preactivations = are_preactivations;
  a.h0 = h0.data();
  a.dys = dys.data();
  a.dh_last = dh.data();
  a.dgates = dgates.data();
  a.dh0 = dh0.data();
  if (Cell::STATES == 2) {
    a.cs = cs.data();
    a.c0 = c0.data();
    a.dcs = dcs.data();
    a.dc_last = dc.data();
    a.dc0 = dc0.data();
  }
  return agree(name, schedules, [&](unsigned seed) {
    for (auto* buffer : {&dgates, &dh0, &dc0}) std::fill(buffer->begin(), buffer->end(), kUnwritten);
    launch<Shape>(cluster::backward_kernel<Shape>, a, seed);
    return hash(hash(hash(kHashStart, dgates), dh0), dc0);
  });
}
#endif

// Of every cell: a cluster whose units are not all used, with all masks, and one that is full, without; and one block.
constexpr Case kMasked{7, 9, 100, 1, 2, false, true}, kFull{9, 3, 128, 1, 1, true, false},
    kHeads{5, 9, 33, 2, 1, false, true};

template <class Cell, class Element>
bool check(const std::string& name, int schedules) {
  bool good = true;
#ifdef FASTRNN_CHECK_FORWARD
  using Cluster = cluster::ForwardShape<Cell, Element, FASTRNN_CHECK_FORWARD>;
  using Block = cluster::ForwardShape<Cell, Element, 64, 1, 4, 1>;
  good &= forward<Cluster>(name + " forward masked", kMasked, schedules);
  good &= forward<Cluster>(name + " forward full", kFull, schedules);
  good &= forward<Block>(name + " forward heads", kHeads, schedules);
#endif
#ifdef FASTRNN_CHECK_BACKWARD
  using BackwardCluster = cluster::BackwardShape<Cell, Element, FASTRNN_CHECK_BACKWARD>;
  using BackwardBlock = cluster::BackwardShape<Cell, Element, 64, 1, 4, 1>;
  good &= backward<BackwardCluster>(name + " backward masked", kMasked, false, schedules);
  good &= backward<BackwardCluster>(name + " backward full", kFull, Cell::SAVED > 0, schedules);
  good &= backward<BackwardBlock>(name + " backward heads", kHeads, false, schedules);
#endif
  return good;
}

bool check_all(int schedules) {
  bool good = check<Lstm, Bfloat16>("lstm", schedules);
#ifndef FASTRNN_CHECK_LSTM_ALONE
  good &= check<Gru, Float16>("gru", schedules);
  good &= check<RnnTanh, Bfloat16>("rnn_tanh", schedules);
  good &= check<RnnRelu, Float16>("rnn_relu", schedules);
#endif
  return good;
}

}  // namespace
}  // namespace fastrnn

int main(int count, char** values) {
  const int schedules = count > 1 ? std::atoi(values[1]) : fastrnn::kDefaultSchedules;
  try {
    return fastrnn::check_all(schedules) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
