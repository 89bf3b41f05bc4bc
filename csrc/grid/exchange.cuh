// How the blocks of a team exchange what they compute: through the kernel's own output.
//
// Every word of it is kNotYet before the launch (launch.cuh), and never again: a reader looks until it finds another
// value. So a word is its own signal, and nothing has to arrive in order.
#pragma once

#include "../device.cuh"
#include "../memory.cuh"
#include "shape.cuh"

namespace fastrnn::grid {

// What a lane reads of a row that is multiplied.
template <class Word>
struct Row {
  const Word* from;  // its first element
  int64_t gate;      // elements from a gate to the next
  int count;         // of elements from the first to the end of the row; none where the row counts as zero
  bool waits;        // whether the row is written while the kernel runs
  bool vectors;      // whether `from` is aligned to 16 bytes, and `count` to vectors

  DEVICE bool is_vector(int unit) const { return unit < count; }
};

DEVICE bool has_come(uint32_t word) { return word != ~uint32_t(0); }
DEVICE bool has_come(uint16_t word) { return word != uint16_t(~0); }
DEVICE bool has_come(const word4& v) {
  return has_come(v.x[0]) && has_come(v.x[1]) && has_come(v.x[2]) && has_come(v.x[3]);
}

// A vector of elements, the first the lowest.
DEVICE word4 join(const uint16_t (&words)[8]) {
  word4 v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.x[i] = words[2 * i] | uint32_t(words[2 * i + 1]) << 16;
  return v;
}
DEVICE word4 join(const uint32_t (&words)[4]) { return {{words[0], words[1], words[2], words[3]}}; }

// The vector at `from` element by element, zero from element `count` on, once all of it has come.
template <class Word>
DEVICE word4 gather(const Word* from, int count, bool waits) {
  constexpr int VECTOR = VECTOR_BYTES / sizeof(Word);
  Word words[VECTOR];
  bool come;
  do {
    come = true;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      words[i] = i < count ? device::load_strong(from + i) : Word(0);
      come = come && has_come(words[i]);
    }
    come = come || !waits;
    if (!come) device::pause();
  } while (!come);
  return join(words);
}

// Two groups of vectors of a row: one is waited for and multiplied, the next is on its way. Vectors are numbered by
// slices, then gates.
template <class P>
struct Window {
  using Word = typename P::Word;
  using Group = word4[P::GROUP];
  Group v[2];

  // Starts to load a group, if by vectors.
  DEVICE void issue(const Row<Word>& row, int group) {
    if (!row.vectors) return;
#pragma unroll
    for (int i = 0; i < P::GROUP; ++i) {
      v[group % 2][i] = word4{};
      load(row, group, i);
    }
  }

  // Waits until all of a group has come.
  DEVICE const Group& wait(const Row<Word>& row, int group) {
    Group& mine = v[group % 2];
    if (row.vectors) {
      while (row.waits && !all_come(mine)) {
        device::pause();
        // What came next may be as old.
        load_missing(row, group);
        load_missing(row, group + 1);
      }
    } else {
      // Not unrolled, for the code's size: each turn moves all vectors on by one.
#pragma unroll 1
      for (int i = 0; i < P::GROUP; ++i) {
        const int number = group * P::GROUP + i, unit = number / P::K_GATES * P::SLICE_UNITS;
        const word4 last = gather(row.from + number % P::K_GATES * row.gate + unit, row.count - unit, row.waits);
#pragma unroll
        for (int k = 0; k + 1 < P::GROUP; ++k) mine[k] = mine[k + 1];
        mine[P::GROUP - 1] = last;
      }
    }
    device::warp_barrier();
    return mine;
  }

 private:
  static DEVICE bool all_come(const Group& vectors) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < P::GROUP; ++i) all = all && has_come(vectors[i]);
    return all;
  }

  DEVICE void load_missing(const Row<Word>& row, int group) {
#pragma unroll
    for (int i = 0; i < P::GROUP; ++i) {
      if (!has_come(v[group % 2][i])) load(row, group, i);
    }
  }

  DEVICE void load(const Row<Word>& row, int group, int i) {
    const int number = group * P::GROUP + i, unit = number / P::K_GATES * P::SLICE_UNITS;
    if (unit >= row.count) return;
    const Word* from = row.from + number % P::K_GATES * row.gate + unit;
    v[group % 2][i] = device::load_strong(reinterpret_cast<const word4*>(from));
  }
};

// Stores an element of every lane of a warp where readers wait for it. In pairs, lanes that are neighbours have
// elements that are, and `to` of an even lane is aligned to two.
template <class Word>
DEVICE void publish(Word* to, Word word, bool inside, bool in_pairs) {
  if constexpr (sizeof(Word) == sizeof(uint16_t)) {
    const int lane = device::thread() % 32;
    const uint32_t other = device::shuffle(word, lane ^ 1);
    if (in_pairs) {
      if (inside && lane % 2 == 0) device::store_strong(reinterpret_cast<uint32_t*>(to), word | other << 16);
      return;
    }
  }
  if (inside) device::store_strong(to, word);
}

}  // namespace fastrnn::grid
