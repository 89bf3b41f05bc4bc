// Recurrences of random numbers, computed under many schedules: what the programs share that run kernels on the CPU for
// sanitizers and planted faults.
//
// Such a program prints a line for each case: its name and a hash of all that the kernel wrote. It exits with 1 where
// two schedules give different bits, and with 2 where a kernel deadlocks or breaks a rule of its barriers. Buffers are
// exactly as large as the kernel is told, so that a sanitizer sees an access beside them. Argument: how many schedules,
// 20 by default.
#pragma once

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

namespace fastrnn {

constexpr int kDefaultSchedules = 20;
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
using Words = std::vector<typename Element::Word>;

template <class Element>
Words<Element> words(Random& random, size_t count, float scale) {
  Words<Element> result(count);
  for (auto& word : result) word = Element::from_float(random.number(scale));
  return result;
}

inline uint64_t hash(uint64_t seed, const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) seed = (seed ^ at[i]) * kHashFactor;
  return seed;
}

template <class Word>
uint64_t hash(uint64_t seed, const std::vector<Word>& data) {
  return hash(seed, data.data(), data.size() * sizeof(Word));
}

// Words that no kernel stores: NaN in every dtype.
template <class Word>
void forget(std::vector<Word>& data) {
  std::fill(data.begin(), data.end(), static_cast<Word>(-1));
}

struct Masks {
  std::vector<int64_t> lengths;
  std::vector<uint8_t> resets;

  Masks(Random& random, const Case& one) : lengths(one.B), resets(size_t(one.T) * one.B) {
    for (auto& length : lengths) length = random.engine() % (one.T + 1);
    for (auto& reset : resets) reset = random.engine() % 3 == 0;
  }
};

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

// Whether every schedule gives the same bits of a forward recurrence, which `launch(arguments, seed)` computes.
template <class Cell, class Element, class Launch>
bool forward(const std::string& name, const Case& one, int schedules, const Launch& launch) {
  Random random;
  const size_t H = one.units * one.heads, rows = size_t(one.T) * one.B, wide = one.directions * H;
  const size_t states = size_t(one.directions) * one.B * H, weights = one.heads * Cell::U_GATES * one.units * one.units;
  const Masks masks(random, one);
  const auto gx = words<Element>(random, rows * wide * Cell::X_GATES, 2.f);
  const auto w0 = words<Element>(random, weights, 0.2f), w1 = words<Element>(random, weights, 0.2f);
  const auto b0 = words<Element>(random, Cell::U_GATES * H, 1.f), b1 = words<Element>(random, Cell::U_GATES * H, 1.f);
  const auto h0 = words<Element>(random, states, 1.f), c0 = words<Element>(random, states, 1.f);
  Words<Element> ys(rows * wide), h_last(states), c_last(states);
  Words<typename Element::Saved> gates(rows * wide * Cell::SAVED);
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
    for (auto* buffer : {&ys, &h_last, &c_last}) forget(*buffer);
    forget(gates);
    std::fill(cs.begin(), cs.end(), 0.f);
    launch(a, seed);
    return hash(hash(hash(hash(hash(kHashStart, ys), gates), h_last), c_last), cs);
  });
}

inline std::vector<float> floats(Random& random, size_t count) {
  std::vector<float> result(count);
  for (auto& number : result) number = random.number(1.f);
  return result;
}

// As `forward`.
template <class Cell, class Element, class Launch>
bool backward(const std::string& name, const Case& one, bool are_preactivations, int schedules, const Launch& launch) {
  Random random;
  const size_t H = one.units * one.heads, rows = size_t(one.T) * one.B, wide = one.directions * H;
  const size_t states = size_t(one.directions) * one.B * H, weights = one.heads * Cell::U_GATES * one.units * one.units;
  const Masks masks(random, one);
  const auto w0 = words<Element>(random, weights, 0.2f), w1 = words<Element>(random, weights, 0.2f);
  const auto ys = words<Element>(random, rows * wide, 1.f), dys = words<Element>(random, rows * wide, 1.f);
  const auto cs = floats(random, rows * wide), dcs = floats(random, rows * wide);
  const size_t saved = rows * wide * Cell::SAVED;
  const auto gates =
      are_preactivations ? words<Element>(random, saved, 2.f) : words<typename Element::Saved>(random, saved, 1.f);
  const auto h0 = words<Element>(random, states, 1.f), c0 = words<Element>(random, states, 1.f);
  const auto dh = words<Element>(random, states, 1.f), dc = words<Element>(random, states, 1.f);
  Words<Element> dgates(rows * wide * Cell::BLOCKS), dh0(states), dc0(states);
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
    for (auto* buffer : {&dgates, &dh0, &dc0}) forget(*buffer);
    launch(a, seed);
    return hash(hash(hash(kHashStart, dgates), dh0), dc0);
  });
}

// The program: whether all cases of `check_all(schedules)` are right.
template <class CheckAll>
int run(int count, char** values, const CheckAll& check_all) {
  const int schedules = count > 1 ? std::atoi(values[1]) : kDefaultSchedules;
  try {
    return check_all(schedules) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

}  // namespace fastrnn
