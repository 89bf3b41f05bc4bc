// What a cell's class is. cells.cuh has one for each cell, written by fastrnn/cells/emit/cuda.py.
//
// A cell is three functions of one unit of one sequence:
//
//   preactivations(gx, gh, pre)
//   step<Element>(pre, before, parameters, inputs, after, saved)
//   derivative<Element>(dafter, saved, before, after, parameters, inputs, dblocks, dbefore)
//
// gx and gh are the gates' shares of the input's product and of the state's, each with its bias. `pre` has them in the
// order of the blocks of gradients: of gates with a share of the input alone, then the sums of those whose two shares
// are only ever added, then those of the state alone. `after` are the states after the step, `saved` is what the
// derivative needs of it beside the states. `dblocks` are the gradients of `pre`, then those of parameters and inputs
// that nothing else tells, and `dbefore` is what reaches the states before the step but for what comes through gh.
// `Element` has the functions that are applied (elements.cuh).
//
// Its constants:
//
//   KIND                               as the planner knows it
//   X_GATES, U_GATES                   gates of gx, and those of gh: the rows of w_hh
//   BLOCKS                             of gradients, of which the first PREACTIVATIONS are those of `pre`
//   SAVED, STATES, PARAMETERS, INPUTS  how many values
//   ADDS                               whether gx and gh are only ever added, so that b_hh is part of gx
//   U_ORDER                            of which gate of gh each of its blocks is, in four bits each, the lowest first
//   FINITE                             whether finite numbers give finite ones
//
// and of these, the lowest bit for the first value:
//
//   UNBOUNDED                          saved values that may be larger than 16 bits hold
//   SAVED_READ                         states before the step that what is saved comes from
//   READS_BEFORE, READS_AFTER          states before and after the step that the derivative reads
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace fastrnn {

// So many numbers, of which there may be none: then there is room for one.
template <int N>
constexpr int ROOM = N > 0 ? N : 1;
template <int N>
using Values = float[ROOM<N>];

// Whether value `i` is one of those that `bits` says.
constexpr DEVICE bool has(unsigned bits, int i) { return bits >> i & 1; }

// Pointer `i` of the first N of an argument. Of constants one is chosen: an argument that is indexed by a loop's
// counter costs nvcc 13 registers, though the loop is unrolled.
template <int N, class Pointer, int MOST>
DEVICE Pointer pick(const Pointer (&from)[MOST], int i) {
  if constexpr (N > 1) {
    return i == N - 1 ? from[N - 1] : pick<N - 1>(from, i);
  } else {
    return from[0];
  }
}

// The first of the blocks that w_hh is multiplied by, backward, and of which gate of gh block `i` from there on is.
template <class Cell>
constexpr DEVICE int first_u() {
  return Cell::PREACTIVATIONS - Cell::U_GATES;
}
template <class Cell>
constexpr DEVICE int u_gate(int i) {
  return static_cast<int>(Cell::U_ORDER >> 4 * i & 15);
}

// Which states before and after a step backward looks at. A step is entered by what the one before it left: a state of
// which both are looked at is loaded once.
template <class Cell>
struct Looks {
  static constexpr unsigned BEFORE = Cell::READS_BEFORE | Cell::SAVED_READ, AFTER = Cell::READS_AFTER;

  static constexpr DEVICE bool before(int s) { return has(BEFORE, s); }
  static constexpr DEVICE bool after(int s) { return has(AFTER, s); }
  static constexpr DEVICE bool both(int s) { return has(BEFORE & AFTER, s); }
  static constexpr DEVICE bool any(int s) { return has(BEFORE | AFTER, s); }
};

// What backward reads of a unit's step beside states: the values that were saved, or pre-activations.
template <class Cell>
struct Kept {
  static constexpr int SAVED = Cell::SAVED, PRE = SAVED > 0 ? Cell::PREACTIVATIONS : 0;
  static constexpr int MOST = SAVED > PRE ? SAVED : PRE, LEAST = SAVED < PRE ? SAVED : PRE;
  // Whether both have rows as long as those of the gradients.
  static constexpr bool ALIKE = SAVED == 0 || SAVED == Cell::BLOCKS;

  // How many values a row has, and whether value `v` is among those that are read.
  static DEVICE int row(bool are_preactivations) { return ALIKE || are_preactivations ? Cell::BLOCKS : SAVED; }
  static DEVICE bool is_read(int v, bool are_preactivations) {
    return v < LEAST || v < (are_preactivations ? PRE : SAVED);
  }
};

// How many of `count` values are beyond those that any built-in cell has.
constexpr DEVICE int beyond(int count, int most) { return count > most ? count - most : 0; }

// About the registers that an item, a unit of one sequence, takes beyond those of an LSTM. They are as many fewer for
// weights.
template <class Cell>
struct Extra {
  static constexpr int INPUTS = 2 * Cell::INPUTS, GATES = beyond(Cell::X_GATES, 4) + 2 * beyond(Cell::U_GATES, 4);
  static constexpr int FORWARD = 2 * beyond(Cell::STATES, 2) + INPUTS + GATES;
  static constexpr int BACKWARD =
      5 * beyond(Cell::STATES, 2) + INPUTS + 2 * beyond(Kept<Cell>::MOST, 4) + beyond(Cell::BLOCKS, 4);
};

// Which cells the kernels serve.
template <class Cell>
struct Served {
  static_assert(Cell::U_GATES >= 1, "it has no gates of the state");
  static_assert(Cell::U_GATES <= 16, "it has more than 16 gates of the state");
  static_assert(Cell::STATES <= MOST_STATES && Cell::INPUTS <= MOST_INPUTS,
                "it has more than 8 states or inputs of a step");
  static constexpr bool value = true;
};

}  // namespace fastrnn
