// The functions of every cell's class over arrays: for each cell a function of its name, which tests call by ctypes.
#include "cells.cuh"

#include "elements.cuh"

namespace fastrnn {
namespace {

// A unit's N values, and back. Units follow one another.
template <int N>
struct Unit {
  Values<N> x = {};

  Unit() = default;
  Unit(const float* from, int unit) {
    for (int i = 0; i < N; ++i) x[i] = from[unit * N + i];
  }
  void store(float* to, int unit) const {
    for (int i = 0; i < N; ++i) to[unit * N + i] = x[i];
  }
};

// `in`: gx, gh, before, parameters, inputs and the gradients of the states after the step; `out`: those states, what is
// saved, the blocks' gradients and those of the states before.
template <class Cell, class Element>
void compute(int units, const float* const* in, float* const* out) {
  for (int unit = 0; unit < units; ++unit) {
    const Unit<Cell::X_GATES> gx(in[0], unit);
    const Unit<Cell::U_GATES> gh(in[1], unit);
    const Unit<Cell::STATES> before(in[2], unit), dafter(in[5], unit);
    const Unit<Cell::PARAMETERS> parameters(in[3], unit);
    const Unit<Cell::INPUTS> inputs(in[4], unit);
    Unit<Cell::PREACTIVATIONS> pre;
    Unit<Cell::STATES> after, dbefore;
    Unit<Cell::SAVED> saved;
    Unit<Cell::BLOCKS> dblocks;
    Cell::preactivations(gx.x, gh.x, pre.x);
    Cell::template step<Element>(pre.x, before.x, parameters.x, inputs.x, after.x, saved.x);
    Cell::template derivative<Element>(dafter.x, saved.x, before.x, after.x, parameters.x, inputs.x, dblocks.x,
                                       dbefore.x);
    after.store(out[0], unit);
    saved.store(out[1], unit);
    dblocks.store(out[2], unit);
    dbefore.store(out[3], unit);
  }
}

}  // namespace
}  // namespace fastrnn

#define FASTRNN_FUNCTION(Cell, name)                                                              \
  extern "C" void name(bool sixteen_bits, int units, const float* const* in, float* const* out) { \
    const auto function = sixteen_bits ? fastrnn::compute<fastrnn::Cell, fastrnn::Bfloat16>       \
                                       : fastrnn::compute<fastrnn::Cell, fastrnn::Tf32>;          \
    function(units, in, out);                                                                     \
  }
FASTRNN_CELLS(FASTRNN_FUNCTION)
