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

template <class Element, class Pointer, int N>
void point(Pointer* (&to)[N], std::vector<Words<Element>>& buffers) {
  for (size_t i = 0; i < buffers.size(); ++i) to[i] = buffers[i].data();
}

// `count` tensors of so many random elements each.
template <class Element>
std::vector<Words<Element>> each(Random& random, int count, size_t elements) {
  std::vector<Words<Element>> result;
  for (int i = 0; i < count; ++i) result.push_back(words<Element>(random, elements, 1.f));
  return result;
}

inline std::vector<std::vector<float>> floats(Random& random, int count, size_t elements) {
  std::vector<std::vector<float>> result(count, std::vector<float>(elements));
  for (auto& numbers : result) {
    for (auto& number : numbers) number = random.number(1.f);
  }
  return result;
}

// What a cell takes beside gates and states.
template <class Cell, class Element>
struct Own {
  Words<Element> parameters;
  std::vector<Words<Element>> inputs;

  Own(Random& random, size_t parameter, size_t input)
      : parameters(words<Element>(random, Cell::PARAMETERS * parameter, 1.f)),
        inputs(each<Element>(random, Cell::INPUTS, input)) {}

  template <class Arguments>
  void point_to(Arguments& a) {
    if (Cell::PARAMETERS) a.parameters = parameters.data();
    point<Element>(a.inputs, inputs);
  }
};

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
  auto states0 = each<Element>(random, Cell::STATES, states);
  Own<Cell, Element> own(random, wide, rows * wide);
  Words<Element> ys(rows * wide);
  std::vector<Words<Element>> finals(Cell::STATES, Words<Element>(states));
  Words<typename Element::Saved> gates(rows * wide * Cell::SAVED);
  std::vector<std::vector<float>> others(Cell::STATES - 1, std::vector<float>(rows * wide));
  ForwardArguments a{};
  set_sizes(a, one, masks);
  a.gx = gx.data();
  a.w_hh[0] = w0.data();
  a.w_hh[1] = one.directions == 2 ? w1.data() : nullptr;
  if (!Cell::ADDS) a.b_hh[0] = b0.data();
  if (!Cell::ADDS && one.directions == 2) a.b_hh[1] = b1.data();
  point<Element>(a.states0, states0);
  own.point_to(a);
  a.histories[0] = ys.data();
  for (int s = 1; s < Cell::STATES; ++s) a.histories[s] = others[s - 1].data();
  point<Element>(a.finals, finals);
  if (Cell::SAVED) a.gates = gates.data();
  return agree(name, schedules, [&](unsigned seed) {
    forget(ys);
    forget(gates);
    for (auto& final : finals) forget(final);
    for (auto& history : others) std::fill(history.begin(), history.end(), 0.f);
    launch(a, seed);
    uint64_t result = hash(hash(kHashStart, ys), gates);
    for (const auto& final : finals) result = hash(result, final);
    for (const auto& history : others) result = hash(result, history);
    return result;
  });
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
  const auto others = floats(random, Cell::STATES - 1, rows * wide);
  const auto d_others = floats(random, Cell::STATES - 1, rows * wide);
  const auto gates = are_preactivations ? words<Element>(random, rows * wide * Cell::BLOCKS, 2.f)
                                        : words<typename Element::Saved>(random, rows * wide * Cell::SAVED, 1.f);
  auto states0 = each<Element>(random, Cell::STATES, states), d_finals = each<Element>(random, Cell::STATES, states);
  Own<Cell, Element> own(random, wide, rows * wide);
  Words<Element> dgates(rows * wide * Cell::BLOCKS);
  std::vector<Words<Element>> d_states0(Cell::STATES, Words<Element>(states));
  BackwardArguments a{};
  set_sizes(a, one, masks);
  a.w_hh[0] = w0.data();
  a.w_hh[1] = one.directions == 2 ? w1.data() : nullptr;
  a.gates = Cell::SAVED ? gates.data() : nullptr;
  a.are_preactivations = are_preactivations;
  point<Element>(a.states0, states0);
  own.point_to(a);
  a.histories[0] = ys.data();
  a.d_histories[0] = dys.data();
  for (int s = 1; s < Cell::STATES; ++s) {
    a.histories[s] = others[s - 1].data();
    a.d_histories[s] = d_others[s - 1].data();
  }
  point<Element>(a.d_finals, d_finals);
  a.dgates = dgates.data();
  point<Element>(a.d_states0, d_states0);
  return agree(name, schedules, [&](unsigned seed) {
    forget(dgates);
    for (auto& d : d_states0) forget(d);
    launch(a, seed);
    uint64_t result = hash(kHashStart, dgates);
    for (const auto& d : d_states0) result = hash(result, d);
    return result;
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
