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
//   IN_ORDER                           whether the blocks of gh follow one another as its gates do
//
// and of these, the lowest bit for the first value:
//
//   UNBOUNDED                          saved values that may be larger than 16 bits hold
//   STEP_READS, SAVED_READ             states before the step that the step reads; that what is saved comes from
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

// The first of the blocks that w_hh is multiplied by, backward.
template <class Cell>
constexpr DEVICE int first_u() {
  return Cell::PREACTIVATIONS - Cell::U_GATES;
}

// What a step takes beside states, of which the kernels have none.
template <class Cell>
struct Others {
  Values<Cell::PARAMETERS> parameters = {};
  Values<Cell::INPUTS> inputs = {};
};

// Which cells the kernels serve.
template <class Cell>
struct Served {
  static constexpr bool READS_H_BEFORE = has(Cell::READS_BEFORE, 0), READS_H_AFTER = has(Cell::READS_AFTER, 0);

  static_assert(Cell::U_GATES >= 1 && Cell::U_GATES <= 4, "a lane's sums of an item are loaded at once");
  static_assert(Cell::IN_ORDER, "a block's place says which rows of w_hh it is multiplied by");
  static_assert(Cell::SAVED == 0 || Cell::SAVED == Cell::BLOCKS, "gradients lie as what they take the place of");
  static_assert(Cell::PARAMETERS == 0 && Cell::INPUTS == 0, "kernels are handed neither");
  static_assert(Cell::STATES <= 2, "kernels are handed h and c");
  static_assert((Cell::SAVED_READ & ~Cell::READS_BEFORE) == 0, "what is read to compute saved values again is there");
  static_assert(Cell::STATES == 1 ? !(READS_H_BEFORE && READS_H_AFTER) : !(READS_H_BEFORE || READS_H_AFTER),
                "backward loads h once, and c alone where there is one");
  static constexpr bool value = true;
};

}  // namespace fastrnn
